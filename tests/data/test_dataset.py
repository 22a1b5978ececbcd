import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyGenerator
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision.datasets import VisionDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from itgan_data.data.dataset import SyntheticDataset
from itgan_data.data.loader import SyntheticLoader
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.images import Normalization
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.networks import create_network
from itgan_data.recipes import Recipe, accuracy, train_classifier

# Python 3.12 and later warn at every fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SIZE = 20
QUANTISATION = 0.5 / 255 + 1e-5


class Painter(nn.Module):
    """A generator of flat 4 px images: the latent is the colour, the label shifts it. Counts its calls."""

    latent_dim = 3
    num_classes = 4
    image_shape = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()
        self.calls: list[int] = []

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(latents))
        colour = torch.tanh(latents + labels.unsqueeze(1))
        images: torch.Tensor = self.dropout(colour[:, :, None, None].expand(-1, -1, 4, 4))
        return images


def make_latents(width: int = 3, *, classes: int = 4) -> LatentSet:
    rng = torch.Generator().manual_seed(0)
    return LatentSet(torch.randn(SIZE, width, generator=rng), torch.arange(SIZE) % classes)


def make_dataset(**options: Any) -> SyntheticDataset:
    return SyntheticDataset(Painter(), make_latents(), **options)


def calls(dataset: SyntheticDataset) -> list[int]:
    assert isinstance(dataset.generator, Painter)
    return dataset.generator.calls


def all_images(dataset: SyntheticDataset) -> torch.Tensor:
    return dataset.unit_batch(torch.arange(len(dataset)))[0]


def test_an_item_is_what_torchvision_gives() -> None:
    dataset = make_dataset(classes=["a", "b", "c", "d"])
    image, target = dataset[5]
    assert isinstance(dataset, VisionDataset)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, target, type(target)) == ("RGB", (4, 4), 1, int)
    assert dataset.class_to_idx == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert repr(dataset) == f"Dataset SyntheticDataset\n    Number of datapoints: {SIZE}"


def test_a_loader_yields_what_to_tensor_would_give_in_one_generator_call_a_batch() -> None:
    dataset = make_dataset(cache=None)
    batches = list(DataLoader(dataset, batch_size=8))
    assert calls(dataset) == [8, 8, 4]
    images, targets = batches[1]
    assert (images.shape, images.dtype, targets.dtype) == ((8, 3, 4, 4), torch.float32, torch.int64)
    assert images.is_contiguous()
    assert targets.tolist() == dataset.targets[8:16]
    items = torch.stack([pil_to_tensor(dataset[index][0]) for index in range(8, 16)]) / 255
    torch.testing.assert_close(images, items, atol=QUANTISATION, rtol=0)


@pytest.mark.parametrize("cache", ["auto", "float", None])
def test_an_image_does_not_depend_on_batch_order_or_mode(cache: Any) -> None:
    generator = BigGAN(BigGANConfig(num_classes=4, channels=(8, 8, 8, 8), latent_dim=16))
    expected = all_images(SyntheticDataset(generator, make_latents(16), cache="float"))
    dataset = SyntheticDataset(generator, make_latents(16), cache=cache)
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
    for indices in (order[:3], order[:1], order, order[:2].repeat(2)):
        images, targets = dataset.unit_batch(indices)
        torch.testing.assert_close(images, expected[indices], atol=QUANTISATION, rtol=0)
        assert targets.tolist() == [dataset.targets[index] for index in indices]
    for index in (7, -1):
        item = pil_to_tensor(dataset[index][0]) / 255
        torch.testing.assert_close(item, expected[index], atol=QUANTISATION, rtol=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_image_does_not_depend_on_the_number_of_workers(workers: int) -> None:
    generator = BigGAN(BigGANConfig(num_classes=4, channels=(8, 8, 8, 8), latent_dim=16))
    expected = all_images(SyntheticDataset(generator, make_latents(16), cache=None))
    for cache, tolerance in (("auto", QUANTISATION), ("float", 1e-5), (None, 1e-5)):
        dataset: Any = SyntheticDataset(generator, make_latents(16), cache=cache)
        loader = DataLoader(
            dataset, batch_size=3, num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        images = torch.cat([images for images, _ in loader])
        torch.testing.assert_close(images, expected, atol=tolerance, rtol=0)


def test_kept_images_are_made_once() -> None:
    dataset = make_dataset()
    for _ in range(2):
        for _ in DataLoader(dataset, batch_size=8, shuffle=True):
            pass
    assert sum(calls(dataset)) == SIZE


def test_an_item_brings_its_neighbours() -> None:
    dataset = make_dataset()
    for index in reversed(range(SIZE)):
        dataset[index]
    assert calls(dataset) == [SIZE]


@pytest.mark.parametrize("cache", ["auto", "float"])
def test_forked_workers_share_what_they_make(cache: Any) -> None:
    dataset = make_dataset(cache=cache)
    loader = DataLoader(dataset, batch_size=5, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, all_images(dataset))
    assert calls(dataset) == []  # nothing was left for this process


def test_spawned_workers_read_what_this_process_made() -> None:
    dataset = pickle.loads(pickle.dumps(make_dataset()))
    assert calls(dataset) == [SIZE]
    assert torch.equal(all_images(dataset), all_images(make_dataset()))
    assert calls(dataset) == [SIZE]
    assert dataset.targets == make_dataset().targets


def test_targets_are_read_live_and_never_change_images() -> None:
    dataset, expected = make_dataset(cache=None), all_images(make_dataset(cache=None))
    dataset.targets[0] = 3
    dataset.targets[1:3] = [0, 0]
    images, targets = dataset.unit_batch(torch.arange(4))
    assert torch.equal(images, expected[:4])
    assert targets.tolist() == [3, 0, 0, 3]
    assert dataset[0][1] == 3
    dataset.targets = np.array(dataset.targets)
    assert next(iter(DataLoader(dataset, batch_size=2)))[1].tolist() == [3, 0]


@pytest.mark.parametrize("cache", ["auto", "float", None])
def test_data_is_an_array_whose_edits_count(cache: Any) -> None:
    dataset = make_dataset(cache=cache)
    assert (dataset.data.shape, dataset.data.dtype) == ((SIZE, 4, 4, 3), np.uint8)
    assert np.array_equal(dataset.data[6], np.asarray(dataset[6][0]))
    dataset.data[6] = 255
    assert np.asarray(dataset[6][0]).min() == 255
    assert dataset.unit_batch(torch.tensor([6]))[0].min() == 1
    assert sum(calls(dataset)) == SIZE


def test_assigned_data_detach_from_the_generator() -> None:
    dataset = make_dataset()
    dataset.data, dataset.targets = dataset.data[10:] // 2, dataset.targets[10:]
    assert dataset.generator is None
    assert dataset.latents is None
    assert len(dataset) == 10
    assert np.array_equal(np.asarray(dataset[-1][0]), dataset.data[9])
    images, targets = next(iter(DataLoader(dataset, batch_size=10)))
    assert np.array_equal((images * 255).round().permute(0, 2, 3, 1).numpy(), dataset.data)
    assert targets.tolist() == dataset.targets
    assert len(pickle.loads(pickle.dumps(dataset))) == 10


def test_a_subset_keeps_the_batch_path() -> None:
    dataset = make_dataset(cache=None)
    images, targets = next(iter(DataLoader(Subset(dataset, [3, 5, -1]), batch_size=3)))
    assert calls(dataset) == [3]
    assert targets.tolist() == [3, 1, 3]
    torch.testing.assert_close(images, all_images(dataset)[[3, 5, -1]])
    with pytest.raises(IndexError, match="out of range for 20"):
        next(iter(DataLoader(dataset, sampler=[0, SIZE], batch_size=2)))


def test_samples_may_be_collated_again() -> None:
    """Whatever a `collate_fn` has left out or reordered, `default_collate` stacks the tensors of the rest."""
    dataset = make_dataset(cache="float")
    collate: Any = lambda samples: default_collate([sample for sample in reversed(samples) if sample[1] < 3])  # noqa: E731
    ((images, targets),) = DataLoader(dataset, batch_size=SIZE, collate_fn=collate)
    kept = [place for place in reversed(range(SIZE)) if dataset.targets[place] < 3]
    assert torch.equal(images, all_images(dataset)[kept])
    assert targets.tolist() == [dataset.targets[place] for place in kept]


def test_a_batch_goes_through_the_batch_transform_and_the_target_transform() -> None:
    dataset = make_dataset(batch_transform=lambda images: images - images.mean(), target_transform=lambda t: t + 10)
    images, targets = next(iter(DataLoader(dataset, batch_size=SIZE)))
    assert float(images.mean()) == pytest.approx(0, abs=1e-6)
    assert targets.tolist() == [target + 10 for target in dataset.targets]
    with pytest.warns(UserWarning, match="batch_transform has no effect"):
        make_dataset(batch_transform=torch.abs, transform=pil_to_tensor)


def test_a_batch_is_not_stacked_again_by_the_default_collate() -> None:
    whole: list[torch.Tensor] = []

    def remember(images: torch.Tensor) -> torch.Tensor:
        whole.append(images)
        return images

    ((images, targets),) = DataLoader(make_dataset(batch_transform=remember), batch_size=SIZE)
    assert images is whole[0]
    assert targets.tolist() == make_dataset().targets


@pytest.mark.parametrize("transform", [list, tuple])
def test_a_batch_transform_may_return_images_one_by_one(transform: Callable[..., Any]) -> None:
    ((images, _),) = DataLoader(make_dataset(batch_transform=transform), batch_size=SIZE)
    assert torch.equal(images, all_images(make_dataset()))
    with pytest.raises(ValueError, match="batch_transform must return 20 images, one for each, got 19"):
        next(iter(DataLoader(make_dataset(batch_transform=lambda images: images[1:]), batch_size=SIZE)))


@pytest.mark.parametrize("name", ["transform", "target_transform", "batch_transform"])
def test_a_transform_that_spawned_workers_cannot_get_is_named(name: str) -> None:
    dataset = make_dataset(**{name: lambda value: value})
    for method in ("spawn", "forkserver"):
        loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method)
        with pytest.raises(ValueError, match=rf"^{name} must be picklable for workers that are spawned.*lambda"):
            iter(loader)
    assert calls(dataset) == calls(copy.copy(dataset)) == []  # refused before any work
    assert getattr(copy.deepcopy(dataset), name) is getattr(dataset, name)


def test_fresh_latents_give_new_images_every_epoch() -> None:
    dataset = SyntheticDataset(Painter(), RandomLatents(SIZE, 3, 4))
    first, item = all_images(dataset), dataset[3]
    dataset.set_epoch(1)
    assert not torch.equal(all_images(dataset), first)
    assert dataset[3][0].tobytes() != item[0].tobytes()
    assert torch.equal(dataset.unit_batch(torch.arange(SIZE), epoch=0)[0], first)
    dataset.set_epoch(0)
    assert torch.equal(all_images(dataset), first)
    assert not hasattr(dataset, "data")


def test_persistent_workers_see_the_epoch() -> None:
    dataset = SyntheticDataset(Painter(), RandomLatents(SIZE, 3, 4))
    loader = DataLoader(dataset, batch_size=SIZE, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        (images, _), *_ = loader
        assert torch.equal(images, all_images(dataset))


def make_soft(soft_labels: torch.Tensor, **options: Any) -> SyntheticDataset:
    plain = make_latents()
    latents = LatentSet(plain.latents, plain.labels, soft_labels=soft_labels)
    return SyntheticDataset(Painter(), latents, soft_labels=True, **options)


def test_soft_labels_stand_in_for_targets() -> None:
    soft = torch.rand(SIZE, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    dataset = make_soft(soft, length=2 * SIZE)
    assert dataset.targets == 2 * make_dataset().targets
    assert torch.equal(dataset[-3][1], soft[-3])
    assert torch.equal(next(iter(DataLoader(dataset, batch_size=2 * SIZE)))[1], torch.cat([soft, soft]))
    loader = SyntheticLoader(dataset, SIZE, shuffle=False, drop_last=True)
    assert all(torch.equal(labels, soft) for _, labels in loader)
    hard = make_soft(soft, target_transform=lambda probabilities: int(probabilities.argmax()))
    assert hard[2][1] == next(iter(DataLoader(hard, batch_size=3)))[1][2] == soft[2].argmax()
    with pytest.warns(UserWarning, match="soft labels no longer fit"):
        dataset.data = dataset.data[:3]
    assert [target for _, target in dataset] == dataset.targets[:3]
    with pytest.raises(ValueError, match="have no soft labels"):
        make_dataset(soft_labels=True)


def test_soft_labels_of_certainty_teach_what_labels_do() -> None:
    weights = []
    certain = torch.eye(4)[make_latents().labels]
    for dataset in (make_dataset(), make_soft(certain), make_soft(certain.flip(1))):
        network = create_network("convnet", 4, image_shape=(3, 4, 4), width=4, depth=1, rng=torch.Generator())
        recipe = Recipe(steps=5, batch_size=8, lr=0.1)
        train_classifier(network, dataset, recipe, normalization=Normalization((0.5,) * 3, (0.5,) * 3), seed=0)
        weights.append(network.classifier.weight.detach())
        assert accuracy(network, dataset, Normalization((0.5,) * 3, (0.5,) * 3)) <= 1
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("cache", ["auto", "float", None])
def test_images_are_float32_whatever_the_default_is(cache: Any) -> None:
    generator = BigGAN(BigGANConfig(num_classes=4, channels=(8, 8), latent_dim=3))
    stored = LatentSet(make_latents().latents.float(), make_latents().labels)
    drawn, truncated = RandomLatents(SIZE, 3, 4), RandomLatents(SIZE, 3, 4, truncation=0.5)
    classifier = create_network("convnet", 4, image_shape=(3, 8, 8), width=4, depth=1, rng=torch.Generator()).float()
    half = Normalization((0.5,) * 3, (0.5,) * 3)
    filtered = FilteredLatents(drawn, generator, classifier, normalization=half, min_probability=0, max_tries=9)
    fresh = [drawn, truncated, JitteredLatents(stored, 0.1), MixedLatents(stored, drawn_like(stored)), filtered]
    for latents in [stored] if cache == "float" else [stored, *fresh]:
        assert latents.batch(torch.arange(5))[0].dtype == torch.float32
        dataset = SyntheticDataset(generator, latents, cache=cache)
        assert all_images(dataset).dtype == next(iter(DataLoader(dataset, batch_size=5)))[0].dtype == torch.float32
        assert all(
            images.dtype == torch.float32 for images, _ in SyntheticLoader(dataset, 8, shuffle=True, drop_last=True)
        )


def drawn_like(latents: LatentSet) -> RandomLatents:
    return RandomLatents(len(latents), latents.latent_dim, 4, labels=latents.labels)


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        DistributedDataParallel,
        lambda generator: torch.compile(generator, backend="eager"),
        lambda generator: torch.compile(nn.DataParallel(generator), backend="eager"),
    ],
    ids=["DataParallel", "DistributedDataParallel", "compiled", "compiled DataParallel"],
)
def test_a_wrapped_generator_makes_the_same_images(wrap: Callable[[nn.Module], nn.Module]) -> None:
    latents = LatentSet(torch.randn(SIZE, 6, generator=torch.Generator().manual_seed(0)), torch.arange(SIZE) % 3)
    expected = SyntheticDataset(TinyGenerator(), latents)
    dataset = SyntheticDataset(wrap(TinyGenerator()), latents)
    assert dataset.classes == expected.classes
    assert np.array_equal(dataset.data, expected.data)
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).data, expected.data)


def test_reduced_precision_stays_close() -> None:
    generator = BigGAN(BigGANConfig(num_classes=4, channels=(8, 8, 8, 8), latent_dim=16))
    exact, reduced = (
        all_images(SyntheticDataset(generator, make_latents(16), cache="float", dtype=dtype))
        for dtype in (None, torch.bfloat16)
    )
    assert reduced.dtype == torch.float32
    assert not torch.equal(exact, reduced)
    torch.testing.assert_close(exact, reduced, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        (make_latents(5), {}, "takes latents of width 3, got 5"),
        (make_latents(classes=5), {}, r"labels must lie in 0\.\.3"),
        (make_latents(), {"cache": "disk"}, "cache must be one of"),
        (make_latents(), {"dtype": torch.int8}, "dtype must be"),
        (make_latents(), {"classes": ["a"]}, "name the generator's 4, got 1"),
        (RandomLatents(9, 3, 4), {"cache": "float"}, "cannot be kept"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    latents: LatentSet, options: dict[str, Any], message: str
) -> None:
    generator = Painter()
    with pytest.raises(ValueError, match=message):
        SyntheticDataset(generator, latents, **options)
    assert generator.calls == []


def test_a_generator_of_other_images_than_it_says_is_refused() -> None:
    dataset = make_dataset()
    dataset.generator.forward = lambda latents, labels: torch.zeros(len(latents), 3, 8, 8)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"must return images \(1, 3, 4, 4\), got \(1, 3, 8, 8\)"):
        dataset.unit_batch(torch.tensor([0]))


class NoLatents:
    """A source of one's own, for `LatentSet` and `RandomLatents` refuse to be empty."""

    fresh = False
    latent_dim = 3
    num_classes = 4
    labels = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return 0


def test_a_source_without_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there are no latents.*expected at least one"):
        SyntheticDataset(Painter(), NoLatents())  # type: ignore[arg-type]


@pytest.mark.parametrize("latents", [make_latents(), RandomLatents(SIZE, 3, 4)])
def test_a_worker_is_told_not_to_generate_on_the_gpu(latents: Any) -> None:
    dataset = SyntheticDataset(Painter(), latents, cache=None)
    dataset._generated.device = torch.device("cuda")  # type: ignore[union-attr]  # no device is needed to be refused
    loader = DataLoader(dataset, batch_size=5, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match=r"cannot generate on the GPU: use num_workers=0 .*make_all\(\)"):
        next(iter(loader))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_made_on_the_gpu_reach_workers_by_the_cache() -> None:
    dataset = make_dataset(device="cuda")
    assert all_images(make_dataset(device="cuda", cache=None)).is_cuda
    with pytest.raises(RuntimeError, match="make_all"):
        list(DataLoader(dataset, batch_size=5, num_workers=1))
    dataset.make_all()
    images = torch.cat([images for images, _ in DataLoader(dataset, batch_size=5, num_workers=1)])
    torch.testing.assert_close(images, all_images(make_dataset()), atol=1.01 / 255, rtol=0)
    assert pickle.loads(pickle.dumps(dataset)).unit_batch(torch.tensor([0]))[0].device.type == "cpu"
    assert all_images(dataset).is_cuda


@pytest.mark.parametrize("target", [0.5, "cat", None, torch.tensor([0.0, 1.0])])
def test_targets_that_are_no_labels_are_not_read_as_some(target: Any) -> None:
    dataset = make_dataset()
    dataset.targets[1] = target
    assert dataset.unit_batch(torch.tensor([0, 2]))[1].dtype == torch.int64
    with pytest.raises(ValueError, match="a label must be an integer, got"):
        dataset.unit_batch(torch.tensor([0, 1]))
