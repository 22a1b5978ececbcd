import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_bundle
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2 import ToImage

from itgan_data.bundle.writing import load_bundle, packaged_bundle
from itgan_data.data.cifar import ITGANCIFAR10, ITGANCIFAR100
from itgan_data.datasets import CIFAR10 as CIFAR10_INFO
from itgan_data.latents.fresh import JitteredLatents

CIFAR100_NAMES = [f"fine {label}" for label in range(100)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cifar") / "bundle", list(CIFAR10_INFO.class_names))


@pytest.fixture(scope="module")
def source100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("cifar100") / "bundle", CIFAR100_NAMES)


@pytest.fixture
def real_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both CIFAR data sets in torchvision's layout, six images in each file."""
    for dataset, label_key, names in (
        (CIFAR10, "labels", list(CIFAR10_INFO.class_names)),
        (CIFAR100, "fine_labels", CIFAR100_NAMES),
    ):
        folder = tmp_path / dataset.base_folder
        folder.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
        batch = {"data": pixels, label_key: [4, 3, 2, 1, 0, 9]}
        for lists in ("train_list", "test_list"):
            files = [name for name, _ in getattr(dataset, lists)]
            monkeypatch.setattr(dataset, lists, [[name, write_pickle(folder / name, batch)] for name in files])
        meta = dict(dataset.meta)
        meta["md5"] = write_pickle(folder / meta["filename"], {meta["key"]: names})
        monkeypatch.setattr(dataset, "meta", meta)
    return tmp_path


def write_pickle(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_the_training_split_is_a_torchvision_data_set(source: Path) -> None:
    dataset = ITGANCIFAR10("data", True, source=source)
    image, target = dataset[-1]
    assert isinstance(dataset, CIFAR10)
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, target, len(dataset)) == ("RGB", (32, 32), 9, 20)
    assert dataset.classes == list(CIFAR10_INFO.class_names)
    assert dataset.class_to_idx["truck"] == 9
    assert dataset.targets == [label // 2 for label in range(20)]
    assert (dataset.data.shape, dataset.data.dtype) == ((20, 32, 32, 3), np.uint8)
    assert repr(dataset).splitlines() == [
        "Dataset ITGANCIFAR10",
        "    Number of datapoints: 20",
        "    Root location: data",
        "    Split: Train",
    ]


def test_the_training_split_needs_no_root_and_no_download(source: Path) -> None:
    dataset = ITGANCIFAR10(download=True, source=source)
    assert dataset.root is None
    assert len(dataset) == 20


def test_images_are_those_of_the_bundle(source: Path) -> None:
    bundle = load_bundle(source)
    images, targets = next(iter(DataLoader(ITGANCIFAR10(source=source, cache="float"), batch_size=20)))
    expected = bundle.generator(*bundle.latents.batch(torch.arange(20))) / 2 + 0.5
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert torch.equal(targets, bundle.latents.labels)


def test_latents_may_be_drawn_anew_around_those_of_the_bundle(source: Path) -> None:
    plain = ITGANCIFAR10(source=source)
    jittered = ITGANCIFAR10(source=source, latents=lambda learned: JitteredLatents(learned, 0.5, seed=3))
    assert jittered.targets == plain.targets
    assert isinstance(jittered, CIFAR10)
    first, _ = jittered.unit_batch(torch.arange(4))
    jittered.set_epoch(1)
    second, _ = jittered.unit_batch(torch.arange(4))
    assert len({images.numpy().tobytes() for images in (first, second, plain.unit_batch(torch.arange(4))[0])}) == 3


def test_transforms_are_called_as_by_torchvision(source: Path) -> None:
    dataset = ITGANCIFAR10("data", True, ToImage(), lambda target: -target, source=source)
    image, target = dataset[3]
    assert (image.shape, image.dtype, target) == ((3, 32, 32), torch.uint8, -1)
    assert "Transform: ToImage()" in repr(dataset)
    images, targets = next(iter(DataLoader(dataset, batch_size=4)))
    assert images.dtype == torch.uint8
    assert targets.tolist() == [0, 0, -1, -1]


class ReadsData(ITGANCIFAR10):
    """How people write subclasses of CIFAR10."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return torch.from_numpy(self.data[index]), self.targets[index], index


def test_subclasses_and_edits_work_as_on_torchvision(source: Path) -> None:
    dataset = ReadsData(source=source)
    dataset.data, dataset.targets = dataset.data[::2], dataset.targets[::2]
    images, targets, indices = next(iter(DataLoader(dataset, batch_size=10)))
    assert np.array_equal(images.numpy(), dataset.data)
    assert targets.tolist() == indices.tolist() == list(range(10))


def test_a_pickled_copy_is_equal(source: Path) -> None:
    dataset = ITGANCIFAR10(source=source)
    twin = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(twin.data, dataset.data)
    assert (twin.targets, twin.classes, repr(twin)) == (dataset.targets, dataset.classes, repr(dataset))


@pytest.mark.parametrize(("ours", "theirs"), [(ITGANCIFAR10, CIFAR10), (ITGANCIFAR100, CIFAR100)])
def test_the_test_split_is_the_real_one(real_root: Path, ours: Any, theirs: Any) -> None:
    dataset, real = ours(real_root, train=False), theirs(real_root, train=False)
    assert np.array_equal(dataset.data, real.data)
    assert [np.asarray(image).tobytes() for image, _ in dataset] == [image.tobytes() for image, _ in real]
    assert (dataset.targets, dataset.classes, len(dataset)) == (real.targets, real.classes, 6)
    assert repr(dataset) == repr(real).replace(theirs.__name__, ours.__name__)
    images, targets = next(iter(DataLoader(dataset, batch_size=6)))
    assert np.array_equal((images * 255).round().permute(0, 2, 3, 1).numpy(), real.data)
    assert targets.tolist() == real.targets


def test_transforms_of_the_test_split_are_called(real_root: Path) -> None:
    dataset = ITGANCIFAR10(str(real_root), False, ToImage(), str)
    image, target = dataset[0]
    assert (image.shape, target) == ((3, 32, 32), "4")
    batched = ITGANCIFAR10(real_root, False, batch_transform=lambda images: 1 - images)
    images, _ = next(iter(DataLoader(batched, batch_size=6)))
    torch.testing.assert_close(1 - images, batched.unit_batch(torch.arange(6))[0])


def test_the_test_split_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass root="):
        ITGANCIFAR10(train=False)
    with pytest.raises(RuntimeError, match="download=True"):
        ITGANCIFAR10(tmp_path, train=False)


def test_cifar100_reads_a_bundle_of_its_own(source: Path, source100: Path) -> None:
    dataset = ITGANCIFAR100(source=source100)
    assert isinstance(dataset, CIFAR100)
    assert dataset[199][1] == 99
    assert dataset.classes == CIFAR100_NAMES
    with pytest.raises(ValueError, match="pass source="):
        ITGANCIFAR100()
    with pytest.raises(ValueError, match="ITGANCIFAR100 needs a bundle of 100 classes"):
        ITGANCIFAR100(source=source)


def test_a_bundle_of_other_images_is_refused(tmp_path: Path) -> None:
    small = write_bundle(tmp_path / "small", list(CIFAR10_INFO.class_names), channels=(8, 8))
    with pytest.raises(ValueError, match=r"images \(3, 32, 32\).* has 10 and \(3, 8, 8\)"):
        ITGANCIFAR10(source=small)
    with pytest.raises(ValueError, match="there is no bundle"):
        ITGANCIFAR10(source=tmp_path / "nowhere")


@pytest.mark.skipif(not packaged_bundle("cifar10").is_dir(), reason="this checkout has no bundle in the package")
def test_the_packaged_bundle_is_the_default() -> None:
    dataset = ITGANCIFAR10()
    assert dataset[0][0].size == (32, 32)
    assert sorted(set(dataset.targets)) == list(range(10))
