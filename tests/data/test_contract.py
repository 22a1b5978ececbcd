"""What code written for torchvision's CIFAR10 relies on, asked of torchvision's own and of ours alike."""

import copy
import multiprocessing
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_bundle, write_cifar10
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    StackDataset,
    Subset,
    WeightedRandomSampler,
    random_split,
)
from torchvision.datasets import CIFAR10, VisionDataset
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms import Compose, Normalize, ToTensor

from itgan_data.data.cifar import ITGANCIFAR10
from itgan_data.datasets import CIFAR10 as INFO
from itgan_data.images import LabeledImages

SIZE = 20
TARGETS = [index // 2 for index in range(SIZE)]

# Python 3.12 and later warn at every fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@dataclass(frozen=True)
class Subject:
    """One of the two classes, with what it takes to open its training split of twenty images."""

    type: type[Any]
    root: str
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.type(self.root, *arguments, **options, **self.options)


@pytest.fixture(scope="module")
def subjects(unchecked_cifar10: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("contract")
    pixels = torch.randint(0, 256, (SIZE, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    real = LabeledImages(pixels, torch.tensor(TARGETS), INFO.class_names)
    write_cifar10(folder, real, real.select(torch.arange(4)))
    bundle = write_bundle(folder / "bundle", INFO.class_names)
    return {
        "torchvision": Subject(CIFAR10, str(folder)),
        "ours": Subject(ITGANCIFAR10, str(folder), {"source": bundle}),
    }


@pytest.fixture(params=["torchvision", "ours"])
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


def tensors_of(dataset: Any) -> torch.Tensor:
    """What `ToTensor` makes of the images, by way of `data`."""
    return torch.from_numpy(dataset.data.copy()).permute(0, 3, 1, 2) / 255


def test_arguments_may_be_positional(subject: Subject) -> None:
    dataset = subject(True, ToTensor(), operator.neg, False)
    image, target = dataset[-1]
    assert (image.shape, image.dtype, target) == ((3, 32, 32), torch.float32, -9)
    assert len(subject(True)) == len(subject()) == SIZE


def test_it_is_a_cifar10_and_says_so(subject: Subject) -> None:
    dataset = subject(transform=ToTensor())
    assert isinstance(dataset, CIFAR10)
    assert isinstance(dataset, VisionDataset)
    assert repr(dataset).splitlines() == [
        f"Dataset {subject.type.__name__}",
        f"    Number of datapoints: {SIZE}",
        f"    Root location: {subject.root}",
        "    Split: Train",
        "    StandardTransform",
        "Transform: ToTensor()",
    ]


def test_attributes_describe_it(subject: Subject) -> None:
    dataset = subject()
    assert dataset.classes == list(INFO.class_names)
    assert dataset.class_to_idx == {name: label for label, name in enumerate(INFO.class_names)}
    assert dataset.train is True
    assert dataset.root == subject.root
    assert (dataset.transform, dataset.target_transform, dataset.transforms) == (None, None, None)


def test_an_item_is_a_pil_image_and_an_int(subject: Subject) -> None:
    dataset = subject()
    for image, target in (dataset[3], dataset[np.int64(3)], dataset[torch.tensor(3)], dataset[3 - SIZE]):
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size, target, type(target)) == ("RGB", (32, 32), 1, int)
        assert np.array_equal(np.asarray(image), dataset.data[3])


def test_an_index_out_of_range_is_an_index_error_and_ends_a_loop(subject: Subject) -> None:
    dataset = subject()
    for index in (SIZE, -SIZE - 1):
        with pytest.raises(IndexError, match=r"out of (range|bounds)"):
            dataset[index]
    assert [target for _, target in dataset] == TARGETS


def test_data_is_an_array_to_slice_edit_and_assign(subject: Subject) -> None:
    dataset = subject()
    assert (dataset.data.shape, dataset.data.dtype) == ((SIZE, 32, 32, 3), np.uint8)
    assert type(dataset.data) is np.ndarray
    dataset.data[4] = 7
    assert np.unique(np.asarray(dataset[4][0])).tolist() == [7]
    half = dataset.data[::2].copy()
    dataset.data, dataset.targets = dataset.data[::2], dataset.targets[::2]
    assert len(dataset) == SIZE // 2
    assert np.array_equal(np.stack([np.asarray(image) for image, _ in dataset]), half)
    dataset.data = np.concatenate([dataset.data, dataset.data])
    dataset.targets = dataset.targets + dataset.targets
    assert len(dataset) == SIZE


def test_targets_are_a_list_read_live(subject: Subject) -> None:
    dataset = subject()
    assert (type(dataset.targets), dataset.targets, {type(t) for t in dataset.targets}) == (list, TARGETS, {int})
    before = np.asarray(dataset[0][0])
    dataset.targets[0] = 9
    dataset.targets[2:4] = [8, 8]
    assert [dataset[index][1] for index in range(4)] == [9, 0, 8, 8]
    assert np.array_equal(np.asarray(dataset[0][0]), before)  # label noise leaves images alone
    dataset.targets = [0] * SIZE
    assert dataset[5][1] == 0


def test_transforms_may_be_set_later(subject: Subject) -> None:
    dataset = subject()
    dataset.transform, dataset.target_transform = ToTensor(), operator.neg
    image, target = dataset[7]
    assert torch.equal(image, tensors_of(dataset)[7])
    assert target == -3
    dataset.transform = None
    assert isinstance(dataset[7][0], Image.Image)


def test_transforms_holds_what_the_constructor_was_given(subject: Subject) -> None:
    transform = ToTensor()
    dataset = subject(transform=transform, target_transform=operator.neg)
    assert isinstance(dataset.transforms, StandardTransform)
    assert (dataset.transforms.transform, dataset.transforms.target_transform) == (transform, operator.neg)
    dataset.transform = None  # torchvision keeps the two apart from here on
    assert dataset.transforms.transform is transform


@pytest.mark.parametrize(
    ("combine", "places"),
    [
        (lambda dataset: Subset(dataset, [3, 11, 19]), [3, 11, 19]),
        (lambda dataset: ConcatDataset([dataset, Subset(dataset, [1])]), [*range(SIZE), 1]),
        (lambda dataset: random_split(dataset, [15, 5], torch.Generator().manual_seed(0))[1], None),
    ],
    ids=["Subset", "ConcatDataset", "random_split"],
)
def test_torch_combines_it(subject: Subject, combine: Callable[[Any], Any], places: list[int] | None) -> None:
    dataset = subject(transform=ToTensor())
    combined = combine(dataset)
    places = combined.indices if places is None else places
    batches = list(DataLoader(combined, batch_size=4))
    assert torch.equal(torch.cat([images for images, _ in batches]), tensors_of(dataset)[places])
    assert torch.cat([targets for _, targets in batches]).tolist() == [TARGETS[place] for place in places]


def test_torch_stacks_it(subject: Subject) -> None:
    dataset = subject(transform=ToTensor())
    (images, targets), twice = next(iter(DataLoader(StackDataset(dataset, range(0, 2 * SIZE, 2)), batch_size=SIZE)))
    assert torch.equal(images, tensors_of(dataset))
    assert targets.tolist() == TARGETS
    assert twice.tolist() == list(range(0, 2 * SIZE, 2))


def test_samplers_choose_from_it(subject: Subject) -> None:
    dataset = subject(transform=ToTensor())
    threes = WeightedRandomSampler([float(target == 3) for target in dataset.targets], 8)
    assert {target for _, targets in DataLoader(dataset, sampler=threes) for target in targets.tolist()} == {3}
    ranks = [DistributedSampler(dataset, num_replicas=2, rank=rank) for rank in range(2)]
    seen = [target for rank in ranks for _, targets in DataLoader(dataset, sampler=rank) for target in targets.tolist()]
    assert sorted(seen) == TARGETS


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))])
def test_a_copy_is_equal_and_independent(subject: Subject, duplicate: Callable[[Any], Any]) -> None:
    dataset = subject(transform=ToTensor())
    twin = duplicate(dataset)
    assert np.array_equal(twin.data, dataset.data)
    assert (twin.targets, twin.classes, repr(twin)) == (dataset.targets, dataset.classes, repr(dataset))
    twin.data[0], twin.targets[0] = 0, 5
    assert dataset.data[0].any()
    assert dataset.targets[0] == 0
    assert not twin[0][0].any()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_deliver_what_the_main_process_would(subject: Subject, method: str) -> None:
    dataset = subject(transform=ToTensor(), target_transform=operator.neg)
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["itgan_data"])  # imported once for all tests
    options = {"num_workers": 1, "multiprocessing_context": context, "persistent_workers": True}
    loader = DataLoader(dataset, batch_size=8, **options)
    for _ in range(2):
        batches = list(loader)
        assert torch.equal(torch.cat([images for images, _ in batches]), tensors_of(dataset))
        assert torch.cat([targets for _, targets in batches]).tolist() == [-target for target in TARGETS]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")  # there may be no accelerator
def test_batches_may_be_pinned(subject: Subject) -> None:
    dataset = subject(transform=ToTensor())
    images, targets = next(iter(DataLoader(dataset, batch_size=SIZE, pin_memory=True)))
    assert torch.equal(images, tensors_of(dataset))
    assert images.is_pinned() == targets.is_pinned() == torch.cuda.is_available()


def test_a_collate_fn_gets_a_list_like_batch_of_pairs(subject: Subject) -> None:
    def by_hand(samples: Any) -> tuple[torch.Tensor, list[int]]:
        assert len(samples) == 6
        assert all(isinstance(sample, tuple) for sample in samples)
        first, *rest = samples
        assert len(rest) == len(samples[1:]) == 5
        images, targets = zip(*samples, strict=True)
        assert torch.equal(images[0], first[0])
        return torch.stack(images), list(targets)

    dataset = subject(transform=ToTensor())
    images, targets = next(iter(DataLoader(dataset, batch_size=6, collate_fn=by_hand)))
    assert torch.equal(images, tensors_of(dataset)[:6])
    assert targets == TARGETS[:6]


def test_a_subclass_may_read_data_itself(subject: Subject) -> None:
    class Indexed(subject.type):  # type: ignore[name-defined,misc]
        def __getitem__(self, index: int) -> tuple[Any, Any, int]:
            return torch.from_numpy(self.data[index]), self.targets[index], index

    dataset = Subject(Indexed, subject.root, subject.options)()
    images, targets, indices = next(iter(DataLoader(dataset, batch_size=SIZE)))
    assert np.array_equal(images.numpy(), dataset.data)
    assert (targets.tolist(), indices.tolist()) == (TARGETS, list(range(SIZE)))


def test_a_subclass_may_add_to_an_item(subject: Subject) -> None:
    class TwoViews(subject.type):  # type: ignore[name-defined,misc]
        def __getitem__(self, index: int) -> tuple[tuple[Any, Any], Any]:
            image, target = super().__getitem__(index)
            return (image, image.flip(-1)), target

    dataset = Subject(TwoViews, subject.root, subject.options)(transform=ToTensor())
    (view, mirrored), targets = next(iter(DataLoader(Subset(dataset, range(5)), batch_size=5)))
    assert torch.equal(view, tensors_of(dataset)[:5])
    assert torch.equal(mirrored, view.flip(-1))
    assert targets.tolist() == TARGETS[:5]


class Wrapper(Dataset[Any]):
    """Works on items and hands on every other attribute."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any]) -> None:
        self.dataset = dataset
        self.apply = transform

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["dataset"], name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.dataset[index]
        return self.apply(image), target


@pytest.mark.parametrize(
    ("inner", "outer"),
    [(ToTensor(), Normalize(0.0, 2.0)), (None, Compose([ToTensor(), Normalize(0.0, 2.0)]))],
    ids=["tensors", "PIL images"],
)
def test_a_wrapper_that_delegates_attributes_is_not_bypassed(subject: Subject, inner: Any, outer: Any) -> None:
    dataset = subject(transform=inner)
    wrapper = Wrapper(dataset, outer)
    images, targets = next(iter(DataLoader(wrapper, batch_size=SIZE)))
    assert torch.equal(images, tensors_of(dataset) / 2)
    assert targets.tolist() == wrapper.targets == TARGETS
    assert (wrapper.classes, wrapper.transform) == (dataset.classes, inner)


def test_the_test_split_is_the_real_one(subjects: dict[str, Subject]) -> None:
    theirs, ours = (subjects[name](False, transform=ToTensor()) for name in ("torchvision", "ours"))
    assert (len(ours), ours.train, ours.targets) == (4, False, theirs.targets)
    assert np.array_equal(ours.data, theirs.data)
    assert all(torch.equal(ours[index][0], theirs[index][0]) for index in range(4))


class TestOursAlone:
    """Where torchvision raises, or has nothing of the kind."""

    def test_batches_without_a_transform_are_what_to_tensor_gives(self, subjects: dict[str, Subject]) -> None:
        with pytest.raises(TypeError, match="must contain tensors"):
            next(iter(DataLoader(subjects["torchvision"]())))
        dataset = subjects["ours"]()
        images, targets = next(iter(DataLoader(dataset, batch_size=SIZE)))
        assert torch.equal(images, tensors_of(dataset))
        assert (targets.dtype, targets.tolist()) == (torch.int64, TARGETS)

    def test_images_do_not_follow_edited_targets(self, subjects: dict[str, Subject]) -> None:
        dataset, untouched = subjects["ours"](), subjects["ours"]()
        dataset.targets[:] = [0] * SIZE  # before any image was made
        assert np.array_equal(dataset.data, untouched.data)
        assert dataset[19][1] == 0

    def test_assigned_data_detach_from_the_generator(self, subjects: dict[str, Subject]) -> None:
        dataset = subjects["ours"]()
        dataset.data = np.zeros((SIZE, 32, 32, 3), np.uint8)
        assert dataset.generator is None
        assert dataset.latents is None
        assert not next(iter(DataLoader(dataset, batch_size=SIZE)))[0].any()

    def test_the_test_split_is_never_made_up(self, subjects: dict[str, Subject], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="pass root="):
            ITGANCIFAR10(train=False, **subjects["ours"].options)
        with pytest.raises(RuntimeError, match="not found or corrupted"):
            ITGANCIFAR10(tmp_path, train=False, **subjects["ours"].options)
