import itertools
import math
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import TinyGenerator
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from itgan_data.augmentation import CropFlip
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.data.ensemble import SyntheticEnsemble
from itgan_data.data.loader import SyntheticLoader
from itgan_data.evaluation.protocol import evaluate
from itgan_data.images import LabeledImages, Normalization
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.latents.stored import LatentSet, LatentSource
from itgan_data.networks import create_network
from itgan_data.recipes import Recipe

SIZE = 24
BATCH = 4
HALF = Normalization((0.5,) * 3, (0.5,) * 3)


class Flat(TinyGenerator):
    """Images of one colour, which tells the generator."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(latents), *self.image_shape), self.number / 5)


def make_ensemble(count: int = 3, *, options: dict[str, Any] | None = None, **rest: Any) -> SyntheticEnsemble:
    latents = RandomLatents(SIZE, 6, 3)
    return SyntheticEnsemble([SyntheticDataset(Flat(k), latents, **(options or {})) for k in range(count)], **rest)


def drawn(images: torch.Tensor) -> list[int]:
    """The generators that made unit images."""
    return ((images[:, 0, 0, 0] * 2 - 1) * 5).round().int().tolist()


def drawn_by_batch(batches: Any) -> list[int]:
    """The generator of each batch, which is only one."""
    generators = [set(drawn(images)) for images, _ in batches]
    assert {len(few) for few in generators} == {1}
    return [few.pop() for few in generators]


def make_loader(dataset: Any, batch_size: int = BATCH, **options: Any) -> SyntheticLoader:
    return SyntheticLoader(dataset, batch_size, **{"shuffle": True, "drop_last": False, **options})


def test_each_batch_is_of_one_generator_and_others_follow() -> None:
    loader = make_loader(make_ensemble())
    generators = [drawn_by_batch(loader) for _ in range(6)]
    assert {number for few in generators for number in few} == {0, 1, 2}
    assert len({tuple(few) for few in generators}) > 1  # epochs differ


def to_tensor(image: Any) -> torch.Tensor:
    return pil_to_tensor(image) / 255


@pytest.mark.parametrize("transform", [None, to_tensor])
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_so_is_each_batch_of_a_data_loader(transform: Any, num_workers: int) -> None:
    ensemble = make_ensemble(options={"transform": transform})
    batches = []
    for epoch in range(3):
        ensemble.set_epoch(epoch)
        batches += list(DataLoader(ensemble, batch_size=BATCH, num_workers=num_workers))
    assert len(set(drawn_by_batch(batches))) > 1
    loader = make_loader(make_ensemble(), shuffle=False)
    assert drawn_by_batch(batches) == [number for _ in range(3) for number in drawn_by_batch(loader)]


@pytest.mark.parametrize("weights", [None, (1, 1, 2), (0.0, 0.3, 0.1), (5, 0, 0)])
def test_weights_are_obeyed_in_the_long_run(weights: Sequence[float] | None) -> None:
    loader = make_loader(make_ensemble(weights=weights), 1)
    counts = torch.tensor([number for _ in range(20) for number in drawn_by_batch(loader)]).bincount(minlength=3)
    expected = torch.tensor([float(weight) for weight in weights or (1, 1, 1)])
    torch.testing.assert_close(counts / counts.sum(), expected / expected.sum(), atol=0.07, rtol=0)
    assert not counts[expected == 0].any()


def test_images_and_targets_are_those_of_the_data_set_that_was_drawn(tiny_generator: TinyGenerator) -> None:
    datasets = [
        SyntheticDataset(TinyGenerator(seed), RandomLatents(SIZE, 6, 3, seed=seed, truncation=trunc), cache=None)
        for seed, trunc in enumerate([None, 0.5])
    ]
    ensemble = SyntheticEnsemble(datasets)
    indices = torch.tensor([7, 2, 2, 20])
    chosen = set()
    for epoch in range(6):
        images, targets = ensemble.unit_batch(indices, epoch)
        candidates = [dataset.unit_batch(indices, epoch) for dataset in datasets]
        (number,) = (k for k, batch in enumerate(candidates) if torch.equal(batch[0], images))
        assert torch.equal(targets, candidates[number][1])
        chosen.add(number)
    assert chosen == {0, 1}


def test_the_draw_depends_on_seed_epoch_and_first_index_alone() -> None:
    ensemble = make_ensemble()
    for epoch in range(3):
        for first in range(SIZE):
            (alone,) = drawn(ensemble.unit_batch(torch.tensor([first]), epoch)[0])
            assert drawn(ensemble.unit_batch(torch.tensor([first, 5, 9]), epoch)[0]) == [alone] * 3
    one, other = (make_ensemble(seed=seed) for seed in (0, 1))
    firsts = [torch.tensor([first]) for first in range(SIZE)]
    assert [drawn(one.unit_batch(i, 0)[0]) for i in firsts] != [drawn(other.unit_batch(i, 0)[0]) for i in firsts]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int) -> None:
    loader = make_loader(make_ensemble())
    whole = [batch for _ in range(2) for batch in loader]
    interrupted = make_loader(make_ensemble())
    batches = list(itertools.islice(interrupted, stop))
    resumed = make_loader(make_ensemble())
    resumed.load_state_dict(interrupted.state_dict())
    batches += [batch for _ in range(2) for batch in resumed]
    for (images, labels), (others, other_labels) in zip(batches, whole, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_it_is_a_data_set() -> None:
    ensemble = make_ensemble()
    assert len(ensemble) == SIZE
    assert ensemble.targets == [label for _, label in ensemble]
    assert ensemble.classes == ["0", "1", "2"]
    ensemble.set_epoch(4)
    assert {dataset.epoch for dataset in ensemble.datasets} == {ensemble.epoch} == {4}
    assert pil_to_tensor(ensemble[-1][0]).equal(pil_to_tensor(ensemble[SIZE - 1][0]))
    with pytest.raises(IndexError):
        ensemble[SIZE]
    again = pickle.loads(pickle.dumps(ensemble))
    indices = torch.arange(BATCH)
    assert torch.equal(again.unit_batch(indices)[0], ensemble.unit_batch(indices)[0])


def test_stored_images_of_all_generators_are_kept() -> None:
    latents = LatentSet.drawn_from(RandomLatents(SIZE, 6, 3))
    ensemble = SyntheticEnsemble([SyntheticDataset(TinyGenerator(seed), latents) for seed in range(2)])
    ensemble.make_all()
    for dataset in ensemble.datasets:
        dataset.generator.forward = None  # type: ignore[union-attr]  # not needed any more
    assert len(list(make_loader(ensemble))) == SIZE // BATCH


class OtherShape(TinyGenerator):
    image_shape = (3, 4, 16)


class FourClasses(TinyGenerator):
    num_classes = 4


def test_data_sets_that_are_not_interchangeable_are_refused(tiny_generator: TinyGenerator) -> None:
    latents = RandomLatents(SIZE, 6, 3)
    first = SyntheticDataset(tiny_generator, latents)
    reordered = RandomLatents(SIZE, 6, 3, labels=latents.labels.flip(0))
    detached = SyntheticDataset(tiny_generator, LatentSet.drawn_from(latents))
    detached.data = detached.data.copy()
    stored = LatentSet.drawn_from(latents)
    soft = LatentSet(stored.latents, stored.labels, soft_labels=torch.eye(3)[stored.labels])
    for other, message in (
        (SyntheticDataset(OtherShape(), latents), r"image shape of the first, \(3, 8, 8\), got \(3, 4, 16\) in 1"),
        (SyntheticDataset(FourClasses(), latents), r"classes of the first, .* got \['0', '1', '2', '3'\] in 1"),
        (SyntheticDataset(tiny_generator, reordered), r"targets of the first .* in 1 \(24 and 24 images\)"),
        (SyntheticDataset(tiny_generator, RandomLatents(6, 6, 3)), r"targets .* \(6 and 24 images\)"),
        (SyntheticDataset(tiny_generator, soft, soft_labels=True), "soft_labels of the first, False, got True in 1"),
        (detached, "no generator, for its `data` were assigned"),
    ):
        with pytest.raises(ValueError, match=message):
            SyntheticEnsemble([first, other])
    with pytest.raises(ValueError, match="no data sets; expected at least one"):
        SyntheticEnsemble([])


@pytest.mark.parametrize(
    "weights", [(1, 2), (0, 0, 0), (1, -1, 1), (1, math.nan, 1), (1, math.inf, 1), ("a", 1, 1), ()]
)
def test_weights_that_are_none_are_refused(weights: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 3 finite numbers, not negative and not all zero, got"):
        make_ensemble(weights=weights)


@pytest.mark.parametrize("name", ["transform", "target_transform", "batch_transform"])
def test_a_transform_that_is_assigned_is_that_of_every_data_set(name: str) -> None:
    ensemble = make_ensemble()
    assert getattr(ensemble, name) is None
    setattr(ensemble, name, to_tensor)
    assert [getattr(dataset, name) for dataset in ensemble.datasets] == [to_tensor] * 3
    assert getattr(ensemble, name) is to_tensor


def test_transforms_that_a_loader_would_skip_are_refused() -> None:
    with pytest.raises(ValueError, match="does not call transform"):
        make_loader(make_ensemble(options={"transform": to_tensor}))


def make_source(name: str, generator: TinyGenerator) -> LatentSource:
    drawn = RandomLatents(SIZE, 6, 3, truncation=1.5)
    learned = LatentSet.drawn_from(drawn, epoch=1)
    if name == "fixed":
        return learned
    if name == "jittered":
        return JitteredLatents(learned, 0.1)
    if name == "mixed":
        return MixedLatents(learned, drawn)
    if name == "filtered":
        network = create_network("convnet", 3, image_shape=(3, 8, 8), width=4)
        return FilteredLatents(drawn, generator, network, normalization=HALF, min_probability=0.0, max_tries=3)
    return drawn


@pytest.mark.parametrize("name", ["drawn", "fixed", "jittered", "mixed", "filtered"])
class TestEveryStrategyWithEveryUse:
    """Each source of latents, alone and under several generators, in what takes images."""

    @pytest.fixture
    def uses(self, name: str) -> list[SyntheticDataset | SyntheticEnsemble]:
        generators = [TinyGenerator(seed) for seed in range(2)]
        datasets = [SyntheticDataset(generator, make_source(name, generator)) for generator in generators]
        return [datasets[0], SyntheticEnsemble(datasets, weights=[1, 3])]

    def test_loaders_agree_on_the_images(self, uses: list[Any]) -> None:
        for dataset in uses:
            loader = make_loader(dataset, shuffle=False)
            for epoch in range(2):
                dataset.set_epoch(epoch)
                for (images, labels), (others, other_labels) in zip(
                    DataLoader(dataset, batch_size=BATCH), loader, strict=True
                ):
                    torch.testing.assert_close(images, others)
                    assert torch.equal(labels, other_labels)

    def test_items_are_images_with_their_targets(self, uses: list[Any]) -> None:
        for dataset in uses:
            image, target = dataset[4]
            torch.testing.assert_close(
                to_tensor(image), dataset.unit_batch(torch.tensor([4]), 0)[0][0], atol=0.51 / 255, rtol=0
            )
            assert target == dataset.targets[4]

    def test_a_classifier_trains_on_them(self, uses: list[Any], tiny_images: LabeledImages) -> None:
        recipe = Recipe(steps=3, batch_size=BATCH, lr=0.01, augmentation=CropFlip(padding=1))
        for dataset in uses:
            (result,) = evaluate(
                dataset,
                tiny_images,
                lambda rng: create_network("convnet", 3, image_shape=(3, 8, 8), width=4, rng=rng),
                recipe,
                seeds=[0],
                normalization=HALF,
                device="cpu",
            )
            assert math.isfinite(result.final_loss)
