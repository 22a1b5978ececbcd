"""What code written for torchvision's CIFAR10 relies on, asked of torchvision's own and of ours alike."""

import copy
import multiprocessing
import operator
import pickle
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
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
TARGETS = [index % 10 for index in range(SIZE)]

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
        assert (image.mode, image.size, target, type(target)) == ("RGB", (32, 32), 3, int)
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
    assert [dataset[index][1] for index in range(4)] == [9, 1, 8, 8]
    assert np.array_equal(np.asarray(dataset[0][0]), before)  # label noise leaves images alone
    dataset.targets = [0] * SIZE
    assert dataset[5][1] == 0


def test_transforms_may_be_set_later(subject: Subject) -> None:
    dataset = subject()
    dataset.transform, dataset.target_transform = ToTensor(), operator.neg
    image, target = dataset[7]
    assert torch.equal(image, tensors_of(dataset)[7])
    assert target == -7
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
    assert sorted(seen) == sorted(TARGETS)


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


def as_a_list(samples: Any) -> tuple[list[Any], list[int]]:
    """What collate functions do with the list that they are promised."""
    assert isinstance(samples, list)
    assert len(samples) == len(samples[1:]) + 1 == len([*samples]) == 6
    first, *_ = samples
    assert first in samples
    samples.sort(key=lambda sample: -sample[1])
    samples.append(first)
    doubled = [first] + samples + samples[:2]  # noqa: RUF005  # `+` is what is tried
    samples.extend(reversed(samples[:2]))
    assert len(doubled) == 10
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


@pytest.mark.parametrize("transform", [None, ToTensor()], ids=["PIL images", "tensors"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_fn_gets_a_list_of_pairs(subject: Subject, transform: Any, workers: int) -> None:
    dataset = subject(transform=transform)
    images, targets = next(iter(DataLoader(dataset, batch_size=6, collate_fn=as_a_list, num_workers=workers)))
    assert targets == [5, 4, 3, 2, 1, 0, 0, 4, 5]
    assert {type(image) for image in images} == {torch.Tensor if transform else Image.Image}
    seen = images if transform else [ToTensor()(image) for image in images]
    assert torch.equal(torch.stack(seen), tensors_of(dataset)[targets])


def test_a_batch_may_be_kept_as_it_is(subject: Subject) -> None:
    for workers in (0, 1):
        samples, *_ = DataLoader(subject(), batch_size=6, collate_fn=lambda samples: samples, num_workers=workers)
        assert [type(image) for image, _ in samples] == [Image.Image] * 6
        assert type(samples)(pair for pair in samples)[5] == samples[5]  # as frameworks rebuild it, moved to a device


@pytest.mark.parametrize("per_class", [1, 2])
def test_images_are_held_out_by_class(subject: Subject, per_class: int) -> None:
    dataset = subject(transform=ToTensor())
    targets = np.array(dataset.targets)
    held_out = np.concatenate([np.flatnonzero(targets == label)[:per_class] for label in range(10)])
    rest = np.setdiff1d(np.arange(len(dataset)), held_out)
    dataset.data, dataset.targets = dataset.data[held_out], targets[held_out].tolist()
    assert [target for _, target in dataset] == [label for label in range(10) for _ in range(per_class)]
    assert len(rest) == SIZE - 10 * per_class


def test_every_prefix_has_all_classes(subject: Subject) -> None:
    assert {len(set(subject().targets[first : first + 10])) for first in range(SIZE - 9)} == {10}


def test_a_shorter_length_leaves_the_indices_alone(subject: Subject) -> None:
    class Shorter(subject.type):  # type: ignore[name-defined,misc]
        def __len__(self) -> int:
            return 5

    dataset = Subject(Shorter, subject.root, subject.options)()
    assert [dataset[index][1] for index in (7, -1, -SIZE)] == [7, 9, 0]
    assert [target for _, target in dataset] == TARGETS
    for loader in (
        DataLoader(dataset, batch_size=3, collate_fn=list),
        DataLoader(Subset(dataset, [7, -1]), 1, collate_fn=list),
    ):
        assert len(list(loader)) == 2


def test_files_are_there_and_data_are_in_vars(subject: Subject) -> None:
    dataset = subject()
    assert dataset._check_integrity()
    assert "data" in vars(dataset)
    assert dataset.data is dataset.data is vars(dataset)["data"]


def test_the_test_split_follows_a_download(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        archive.add(Path(subject.root, CIFAR10.base_folder), CIFAR10.base_folder)
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", None)
    root = tmp_path / "elsewhere"
    Subject(subject.type, str(root), subject.options)(train=True, download=True)
    assert len(subject.type(root, train=False)) == 4
    server.shutdown()
    server.server_close()
    assert ("the real test split is fetched" in caplog.text) == (subject.type is ITGANCIFAR10)


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
