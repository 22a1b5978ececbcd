"""kornia's augmentations in the loader and in recipes."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from kornia.augmentation.auto import RandAugment
from torch import nn

from itgan_data.augmentation import Compose, CropFlip, Kornia, standardize_and_augment
from itgan_data.data.loader import SyntheticLoader
from itgan_data.images import LabeledImages, Normalization
from itgan_data.networks import create_network
from itgan_data.recipes import ClassifierTraining, Recipe, accuracy, train_classifier

SIZE = 12
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
KORNIA: dict[str, Callable[[], nn.Module]] = {
    "RandAugment": lambda: RandAugment(n=2, m=10),
    "ColorJiggle": lambda: K.ColorJiggle(0.3, 0.3, 0.3, 0.1, p=1.0),
    "RandomErasing": lambda: K.RandomErasing(p=1.0),
    "RandomJigsaw": lambda: K.RandomJigsaw((2, 2), p=1.0),
    "container": lambda: K.AugmentationSequential(K.RandomAffine(20.0, p=1.0), K.RandomHorizontalFlip()),
}
ONE = (torch.zeros(1, 3, 16, 16), *torch.zeros(2, 1, dtype=torch.int64))
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def images() -> LabeledImages:
    """Image k is of brightness 20 k all over, but for noise; its class is k modulo 3."""
    noise = torch.randint(0, 30, (SIZE, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    pixels = 20 * torch.arange(SIZE).view(-1, 1, 1, 1) + noise
    return LabeledImages(pixels.to(torch.uint8), torch.arange(SIZE) % 3, list("abc"))


def loaded(images: LabeledImages, augment: Any, *, seed: int = 0, batch_size: int = SIZE) -> list[Batch]:
    """Two epochs, in the order of the images."""
    options: dict[str, Any] = {"shuffle": False, "drop_last": False, "normalization": NORMALIZATION}
    loader = SyntheticLoader(images, batch_size, augment=augment, seed=seed, **options)
    return [batch for _ in range(2) for batch in loader]


def of_recipe(images: LabeledImages, augment: Any, *, epoch: int = 0) -> Batch:
    recipe = Recipe(steps=1, batch_size=SIZE, lr=0.1, augmentation=augment)
    network = create_network("convnet", 3, image_shape=images.image_shape, width=1, depth=1)
    training = ClassifierTraining(network, images, recipe, normalization=NORMALIZATION, seed=0)
    return training.batch(torch.arange(SIZE), epoch)


@pytest.mark.parametrize("make", KORNIA.values(), ids=KORNIA)
def test_a_batch_follows_seed_and_epoch_and_nothing_else(
    make: Callable[[], nn.Module], images: LabeledImages, global_rng_untouched: None
) -> None:
    (first, labels), (second, _) = loaded(images, Kornia(make()))
    assert not torch.equal(first, second)
    assert not torch.equal(first, loaded(images, Kornia(make()), seed=1)[0][0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        (again, _), (second_again, _) = loaded(images, Kornia(make()))
    assert torch.equal(again, first)
    assert torch.equal(second_again, second)
    assert torch.equal(labels, images.labels)
    for epoch, expected in enumerate((first, second)):
        assert torch.equal(of_recipe(images, Kornia(make()), epoch=epoch)[0], expected)


def test_batches_of_an_epoch_have_draws_of_their_own(images: LabeledImages) -> None:
    alike = images.select(torch.zeros(SIZE, dtype=torch.int64))
    one, other, *_ = loaded(alike, Kornia(RandAugment(2, 10)), batch_size=6)
    assert not torch.equal(one[0], other[0])


def test_kornia_sees_unit_images_and_ours_follow_on_standardized_ones(images: LabeledImages) -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, unit: torch.Tensor) -> torch.Tensor:
            seen.append(unit)
            return unit.flip(3)

    (found, _), _ = loaded(images, Kornia(Look(), Look(), then=CropFlip(2)))
    assert torch.equal(seen[0], images.unit_batch(torch.arange(SIZE))[0])
    assert torch.equal(found, loaded(images, CropFlip(2))[0][0])


class TestMixUp:
    def test_labels_are_mixed_as_images_are(self, images: LabeledImages) -> None:
        """Images of one class are alike here, and those of all classes are linearly independent."""
        of_class = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).mul(255).to(torch.uint8)
        alike = LabeledImages(of_class[images.labels], images.labels, images.class_names)
        for batch in (loaded(alike, Kornia(K.RandomMixUpV2(), num_classes=3))[0], mixed_by_recipe(alike)):
            found, labels = batch
            assert labels.shape == (SIZE, 3)
            assert ((labels > 0).sum(dim=1) == 2).any()
            torch.testing.assert_close(labels.sum(dim=1), torch.ones(SIZE))
            standardized = NORMALIZATION.standardize(of_class.float() / 255)
            torch.testing.assert_close(found, torch.einsum("nk,kchw->nchw", labels, standardized))

    def test_a_batch_that_is_not_mixed_has_its_labels_as_shares(self, images: LabeledImages) -> None:
        (_, labels), _ = loaded(images, Kornia(K.RandomMixUpV2(p=0.0), num_classes=3))
        assert torch.equal(labels, torch.eye(3)[images.labels])

    def test_a_recipe_learns_from_it(self, bright_and_dark: LabeledImages) -> None:
        augment = Kornia(K.RandomMixUpV2(lambda_val=(0.0, 0.4)), num_classes=2)
        network = create_network("convnet", 2, image_shape=(3, 16, 16), width=8)
        recipe = Recipe(steps=20, batch_size=8, lr=0.02, augmentation=augment)
        train_classifier(network, bright_and_dark, recipe, normalization=NORMALIZATION, seed=0)
        assert accuracy(network, bright_and_dark, NORMALIZATION) == 1.0


def mixed_by_recipe(images: LabeledImages) -> Batch:
    return of_recipe(images, Kornia(K.RandomMixUpV2(), num_classes=3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kornia(K.RandomMixUpV2()), "give num_classes"),
        (lambda: Kornia(K.RandomMixUpV2(), K.RandomMixUpV2(), num_classes=3), "one RandomMixUpV2, got 2"),
        (lambda: Kornia(K.RandomCutMixV2(use_correct_lambda=True), num_classes=3), "RandomCutMixV2 mixes images"),
        (lambda: Kornia(K.RandomMosaic((16, 16))), "RandomMosaic mixes images"),
        (lambda: Kornia(K.AugmentationSequential(K.RandomMixUpV2()), num_classes=3), "rather than to a container"),
        (
            lambda: standardize_and_augment(*ONE, RandAugment(2, 10), None, seed=0, epoch=0),
            "RandAugment takes no draws",
        ),
        (lambda: Compose(CropFlip(), Kornia(RandAugment(2, 10))), "Kornia takes no draws.*to its then="),
    ],
)
def test_what_cannot_be_applied_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_its_repr_tells_settings_apart_on_one_line() -> None:
    """Results name their recipe by it."""
    one, other = (repr(Kornia(RandAugment(n=2, m=m), then=CropFlip())) for m in (5, 10))
    assert one != other
    assert "\n" not in one
    assert one.endswith(f"then={CropFlip()!r})")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_global_rng_is_left_alone(images: LabeledImages) -> None:
    before = torch.cuda.get_rng_state()
    augment = Kornia(RandAugment(2, 10), K.RandomGaussianNoise(p=1.0))
    one, again = (loaded(images.to("cuda"), augment)[0][0] for _ in range(2))
    assert one.is_cuda
    assert torch.equal(one, again)
    assert torch.equal(torch.cuda.get_rng_state(), before)
