import itertools
from typing import Any

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from itgan_data.augmentation import DSA, CropFlip
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.data.loader import SyntheticLoader
from itgan_data.datasets import CIFAR10
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.images import LabeledImages
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet

Batches = list[tuple[torch.Tensor, torch.Tensor]]
SIZE = 22


@pytest.fixture
def images() -> LabeledImages:
    """Images that differ, each with its own label."""
    pixels = torch.randint(0, 256, (SIZE, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return LabeledImages(pixels.to(torch.uint8), torch.arange(SIZE), [str(i) for i in range(SIZE)])


def make_loader(dataset: Any, batch_size: int = 5, **options: Any) -> SyntheticLoader:
    options = {"shuffle": True, "drop_last": False, "augment": CropFlip(padding=2)} | options
    return SyntheticLoader(dataset, batch_size, **options)


def make_synthetic(**options: Any) -> SyntheticDataset:
    generator = BigGAN(BigGANConfig(num_classes=2, channels=(8, 8), latent_dim=4))
    latents = options.pop("latents", LatentSet(torch.randn(SIZE, 4), torch.arange(SIZE) % 2))
    return SyntheticDataset(generator, latents, **options)


def labels_of(loader: SyntheticLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def by_label(batches: Batches) -> torch.Tensor:
    """All images of an epoch in the order of their labels."""
    labels = torch.cat([labels for _, labels in batches])
    return torch.cat([images for images, _ in batches])[labels.argsort()]


def assert_equal(left: Batches, right: Batches) -> None:
    assert len(left) == len(right)
    for (images, labels), (other_images, other_labels) in zip(left, right, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 2]), (True, [5, 5, 5, 5])])
def test_an_epoch_has_every_image_once(images: LabeledImages, drop_last: bool, sizes: list[int]) -> None:
    loader = make_loader(images, drop_last=drop_last)
    batches = labels_of(loader)
    assert [len(batch) for batch in batches] == sizes
    assert len(loader) == len(sizes)
    seen = [label for batch in batches for label in batch]
    assert len(set(seen)) == len(seen)


def test_without_shuffling_the_order_is_that_of_the_data_set(images: LabeledImages) -> None:
    assert labels_of(make_loader(images, SIZE, shuffle=False)) == [list(range(SIZE))]


def test_images_are_unit_then_standardized_then_augmented(images: LabeledImages) -> None:
    unit = images.unit_batch(torch.arange(SIZE))[0]
    plain = next(iter(make_loader(images, SIZE, shuffle=False, augment=None)))[0]
    assert torch.equal(plain, unit)
    options = {"shuffle": False, "normalization": CIFAR10.normalization}
    standardized = next(iter(make_loader(images, SIZE, augment=None, **options)))[0]
    assert torch.equal(standardized, CIFAR10.normalization.standardize(unit))
    augmented = next(iter(make_loader(images, SIZE, **options)))[0]
    assert (augmented == 0).any()  # padding is the mean colour
    assert not torch.equal(augmented, standardized)


@pytest.mark.parametrize("augment", [CropFlip(), DSA()])
def test_an_augmented_image_does_not_depend_on_batch_size_or_order(images: LabeledImages, augment: Any) -> None:
    one = by_label(list(make_loader(images, 22, augment=augment)))
    for options in ({"batch_size": 3}, {"batch_size": 7, "shuffle": False}):
        torch.testing.assert_close(by_label(list(make_loader(images, augment=augment, **options))), one)


def test_epochs_and_seeds_differ_in_order_and_augmentation(images: LabeledImages) -> None:
    loader = make_loader(images)
    first, second, other = list(loader), list(loader), list(make_loader(images, seed=1))
    for batches in (second, other):
        assert not torch.equal(batches[0][1], first[0][1])
        assert not torch.equal(by_label(batches), by_label(first))
    assert_equal(list(make_loader(images)), first)


def test_each_iteration_is_the_next_epoch_unless_one_was_set(images: LabeledImages) -> None:
    loader = make_loader(images)
    epochs = [list(loader) for _ in range(3)]
    loader.set_epoch(1)
    assert_equal(list(loader), epochs[1])
    assert_equal(list(loader), epochs[2])
    loader.set_epoch(0)
    next(iter(loader))  # an epoch that is left early is over all the same
    assert_equal(list(loader), epochs[1])


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 9, 10])
def test_a_resumed_run_equals_an_uninterrupted_one(images: LabeledImages, stop: int) -> None:
    loader = make_loader(images)
    whole = [batch for _ in range(3) for batch in loader]
    interrupted, batches = make_loader(images), []
    state = interrupted.state_dict()
    for _ in range(3):
        for batch in interrupted:
            if len(batches) < stop:
                batches.append(batch)
                state = interrupted.state_dict()
    resumed = make_loader(images)
    resumed.load_state_dict(state)
    for _ in range(state["epoch"], 3):
        batches += list(resumed)
    assert_equal(batches, whole)


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_resumed_run_may_set_its_epochs(images: LabeledImages, stop: int) -> None:
    uninterrupted = make_loader(images)
    whole = [batch for _ in range(2) for batch in uninterrupted]
    interrupted = make_loader(images)
    batches = list(itertools.islice(interrupted, stop))
    resumed = make_loader(images)
    resumed.load_state_dict(interrupted.state_dict())
    for epoch in range(2):
        resumed.set_epoch(epoch)
        batches += list(resumed)
    assert_equal(batches, whole)


def test_a_state_between_epochs_is_that_of_the_next(images: LabeledImages) -> None:
    loader = make_loader(images)
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)


def test_a_state_of_another_loader_is_refused(images: LabeledImages) -> None:
    state = make_loader(images).state_dict()
    for options in ({"batch_size": 4}, {"seed": 1}, {"shuffle": False}):
        with pytest.raises(ValueError, match="the state is of a loader with"):
            make_loader(images, **options).load_state_dict(state)


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch(images: LabeledImages, drop_last: bool) -> None:
    ranks = [list(make_loader(images, 3, rank=rank, world_size=4, drop_last=drop_last)) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [label for batches in ranks for _, labels in batches for label in labels.tolist()]
    assert len(seen) == (12 if drop_last else 24)
    assert len(set(seen)) == (12 if drop_last else SIZE)
    alone = by_label(list(make_loader(images, SIZE)))
    for augmented, labels in (batch for batches in ranks for batch in batches):
        torch.testing.assert_close(augmented, alone[labels])


def test_more_ranks_than_images_still_get_a_batch_each() -> None:
    few = LabeledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), ["a", "b"])
    for rank in range(5):
        assert labels_of(make_loader(few, rank=rank, world_size=5, shuffle=False)) == [[rank % 2]]


def test_synthetic_images_are_those_of_the_data_set() -> None:
    dataset = make_synthetic()
    batches = list(make_loader(dataset, shuffle=False, augment=None))
    items = torch.stack([pil_to_tensor(image) for image, _ in dataset]) / 255
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), items)
    assert torch.cat([labels for _, labels in batches]).tolist() == dataset.targets


def test_fresh_latents_follow_the_epochs_of_the_loader() -> None:
    dataset = make_synthetic(latents=RandomLatents(SIZE, 4, 2))
    loader = make_loader(dataset, SIZE, shuffle=False, augment=None)
    first, second = next(iter(loader))[0], next(iter(loader))[0]
    assert not torch.equal(first, second)
    assert torch.equal(second, dataset.unit_batch(torch.arange(SIZE), epoch=1)[0])


class Overriding(SyntheticDataset):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return super().__getitem__(index)


def test_a_data_set_whose_transforms_would_be_skipped_is_refused() -> None:
    for name in ("transform", "target_transform", "batch_transform"):
        with pytest.raises(ValueError, match=f"does not call {name};"):
            make_loader(make_synthetic(**{name: lambda x: x}))
    plain = make_synthetic()
    assert plain.generator is not None
    assert plain.latents is not None
    with pytest.raises(ValueError, match="Overriding overrides __getitem__"):
        make_loader(Overriding(plain.generator, plain.latents))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 23, "drop_last": True}, "22 images on 1 ranks make no batch of 23"),
    ],
)
def test_sizes_out_of_range_are_refused(images: LabeledImages, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(images, **options)


def test_a_data_set_without_images_is_refused() -> None:
    empty = LabeledImages(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ["a"])
    with pytest.raises(ValueError, match="no images"):
        make_loader(empty)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_the_same_on_the_gpu(images: LabeledImages) -> None:
    options: dict[str, Any] = {"augment": DSA(), "normalization": CIFAR10.normalization}
    there = list(make_loader(images.to("cuda"), device="cuda", **options))
    for (left, labels), (right, other) in zip(make_loader(images, **options), there, strict=True):
        assert right.is_cuda
        assert other.is_cuda
        torch.testing.assert_close(left, right.cpu(), atol=1e-4, rtol=0)
        assert torch.equal(labels, other.cpu())
