import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_bundle
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


@pytest.mark.parametrize("names", [("base_folder", "train_list", "test_list", "meta"), ("train_list",), ("meta",)])
def test_a_subclass_with_the_files_of_cifar100_is_refused(
    real_root: Path, source: Path, names: tuple[str, ...]
) -> None:
    """How long-tail scripts get from CIFAR-10 to CIFAR-100 with torchvision's class."""
    files = {name: getattr(CIFAR100, name) for name in names}
    if len(files) == 4:
        assert type("LongTail", (CIFAR10,), files)(real_root).classes == CIFAR100_NAMES
    for options in ({"source": source}, {"root": real_root, "train": False}):
        with pytest.raises(ValueError, match=r"LongTail has the .* of CIFAR100.*derive it from ITGANCIFAR100"):
            type("LongTail", (ITGANCIFAR10,), files)(**options)


def test_the_training_split_needs_no_root_and_no_download(source: Path) -> None:
    dataset = ITGANCIFAR10(download=True, source=source)
    assert dataset.root is None
    assert dataset._check_integrity()
    assert len(dataset) == 20


def test_a_length_repeats_the_latents(source: Path) -> None:
    dataset, plain = ITGANCIFAR10(source=source, length=50), ITGANCIFAR10(source=source)
    assert len(dataset) == len(dataset.targets) == 50
    for index in (3, 23, 43, -7):
        assert dataset[index] == plain[index % 50 % 20]
    images, targets = next(iter(DataLoader(dataset, batch_size=50)))
    assert torch.equal(images, plain.unit_batch(torch.arange(50) % 20)[0])
    assert targets.tolist() == dataset.targets == [index % 10 for index in range(50)]
    dataset.data[45] = 7
    assert [int(np.asarray(dataset[index][0]).max()) == 7 for index in (5, 25, 45)] == [False, False, True]
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).data, dataset.data)
    with pytest.raises(ValueError, match=r"at least 20, got 19; for fewer images take a Subset"):
        ITGANCIFAR10(source=source, length=19)


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
    with pytest.raises(ValueError, match="ITGANCIFAR100 needs a bundle of 100 classes"):
        ITGANCIFAR100(source=source)


def test_cifar100_is_told_its_source_by_name_alone(source100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packaged_bundle("cifar100").is_dir():
        with pytest.raises(
            ValueError, match=r"pass source=, assign ITGANCIFAR100\.default_source, .*ITGAN_DATA_CIFAR100"
        ):
            ITGANCIFAR100()
    monkeypatch.setenv("ITGAN_DATA_CIFAR100", str(source100))
    assert len(ITGANCIFAR100().classes) == 100
    monkeypatch.setenv("ITGAN_DATA_CIFAR100", "nowhere")
    monkeypatch.setattr(ITGANCIFAR100, "default_source", source100)
    assert len(ITGANCIFAR100().classes) == 100


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
