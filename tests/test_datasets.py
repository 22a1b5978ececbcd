import pickle
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images, write_cifar10
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision import datasets, transforms

from itgan_data.cli.options import flips_of
from itgan_data.datasets import CIFAR10, DATASETS, DIGITS, class_names_of, load_images, open_dataset, parse_spec
from itgan_data.images import LabeledImages, to_pil, uint8_to_unit

LABELS = [3, 0, 9, 3, 1]  # of the tiny data sets


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_cifar100(root: Path) -> None:
    folder = root / datasets.CIFAR100.base_folder
    folder.mkdir()
    for name, images in (("train", noise(5, 3072)), ("test", noise(5, 3072))):
        (folder / name).write_bytes(pickle.dumps({"data": images, "fine_labels": LABELS}))
    names = [f"class {label}" for label in range(10)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))


def write_svhn(root: Path) -> None:
    from scipy.io import savemat

    labels = np.array([label or 10 for label in LABELS], dtype=np.uint8).reshape(-1, 1)  # 0 is written as 10
    for split in ("train", "test"):
        savemat(root / f"{split}_32x32.mat", {"X": noise(32, 32, 3, 5), "y": labels})


def write_mnist(root: Path, kind: type) -> None:
    folder = root / kind.__name__ / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">4i", 0x803, 5, 28, 28) + noise(5, 28, 28).tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 5) + bytes(LABELS))


def write_stl10(root: Path) -> None:
    folder = root / datasets.STL10.base_folder
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(noise(5, 3, 96, 96).swapaxes(2, 3).tobytes())  # column by column
        (folder / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in LABELS))
    (folder / "unlabeled_X.bin").write_bytes(b"")


def resized(pixels: Sequence[np.ndarray[Any, Any]]) -> torch.Tensor:
    shown = [transforms.functional.pil_to_tensor(Image.fromarray(image).resize((32, 32), 2)) for image in pixels]
    return torch.stack(shown)


TORCHVISIONS: dict[str, tuple[Callable[[Path], None], Callable[[], torch.Tensor]]] = {
    "cifar100": (write_cifar100, lambda: torch.from_numpy(noise(5, 3072)).view(5, 3, 32, 32)),
    "svhn": (write_svhn, lambda: torch.from_numpy(noise(32, 32, 3, 5)).permute(3, 2, 0, 1)),
    **{
        name: (
            lambda root, kind=kind: write_mnist(root, kind),
            lambda: torch.nn.functional.pad(torch.from_numpy(noise(5, 1, 28, 28)), (2, 2, 2, 2)).expand(5, 3, 32, 32),
        )
        for name, kind in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST))
    },
    "stl10": (write_stl10, lambda: resized(noise(5, 3, 96, 96).transpose(0, 2, 3, 1))),
}


@pytest.fixture(scope="module")
def unchecked() -> Any:
    """Lets torchvision read files of its layouts whatever their check sums."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (datasets.CIFAR100, datasets.STL10):
            for lists in ("train_list", "test_list"):
                patch.setattr(kind, lists, [[name, None] for name, _ in getattr(kind, lists)])
        patch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": None})
        splits = {split: [url, name, None] for split, (url, name, _) in datasets.SVHN.split_list.items()}
        patch.setattr(datasets.SVHN, "split_list", splits)
        yield


class TestTable:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("name", list(TORCHVISIONS))
    def test_torchvisions_files_are_shown_as_32_px_in_three_channels(self, name: str, tmp_path: Path) -> None:
        write, expected = TORCHVISIONS[name]
        write(tmp_path)
        for split in ("train", "test"):
            opened = open_dataset(f"{name}:{tmp_path}", split)
            loaded = load_images(opened, image_shape=DATASETS[name].image_shape)
            assert torch.equal(loaded.images, expected())
            assert loaded.labels.tolist() == LABELS
            assert loaded.class_names == (DATASETS[name].class_names or tuple(f"class {label}" for label in range(10)))
            assert isinstance(opened[0][0], Image.Image)

    def test_mirror_images_belong_to_the_class_by_the_row(self) -> None:
        mirrored = {name: flips_of(None, f"{name}:." if row.place else name) for name, row in DATASETS.items()}
        assert {name for name, flips in mirrored.items() if not flips} == {"digits", "mnist", "svhn"}
        assert flips_of(True, "digits")
        assert not flips_of(False, "cifar10")

    @pytest.mark.parametrize("name", list(DATASETS))
    def test_what_is_not_there_is_one_line_that_fits_the_command_line(self, name: str, tmp_path: Path) -> None:
        if name == "digits":
            return
        with pytest.raises(ValueError, match=r"is not in .*, or is damaged|has no images") as caught:
            open_dataset(f"{name}:{tmp_path}", "test")
        assert not re.search(r"\n|download=|=True", str(caught.value))

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("minst", "unknown data set 'minst'; expected one of cifar10\\[:ROOT\\]"),
            ("digits:data", "unknown data set"),
            ("imagefolder", "unknown data set 'imagefolder'"),
            ("imagefolder:nowhere", "the folder 'nowhere' does not exist"),
            ("cifar10:nowhere", "folder 'nowhere' does not exist"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, spec: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_spec(spec)

    def test_a_split_is_train_or_test(self) -> None:
        with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'validation'"):
            open_dataset("digits", "validation")

    @pytest.mark.usefixtures("unchecked_cifar10")
    def test_names_that_come_with_the_files_stay(self, tmp_path: Path) -> None:
        images = LabeledImages(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.arange(5), list("abcde"))
        write_cifar10(tmp_path, images, images)
        assert load_images(open_dataset(f"cifar10:{tmp_path}", "train")).classes == list("abcde")
        assert len(CIFAR10.class_names) == 10

    def test_digits_are_split_without_overlap_and_fit_their_row(self) -> None:
        train, test = (load_images(open_dataset("digits", split)) for split in ("train", "test"))
        assert len(train) + len(test) == 1797
        assert train.image_shape == test.image_shape == DIGITS.image_shape
        assert train.class_names == DIGITS.class_names
        assert set(test.labels.tolist()) == set(range(10))
        seen = {image.numpy().tobytes() for image in train.images}
        assert not [image for image in test.images if image.numpy().tobytes() in seen]
        standardized = DIGITS.normalization.standardize(train.unit_batch(torch.arange(len(train)))[0])
        assert abs(standardized.mean()) < 0.05
        assert standardized.std() == pytest.approx(1, abs=0.05)


class TestLoadImages:
    def test_labeled_images_are_returned_as_they_are(self) -> None:
        images = make_images()
        assert load_images(images, image_shape=(3, 4, 4)) is images

    @pytest.mark.parametrize("channels", [1, 3])
    def test_pil_uint8_and_unit_images_give_the_same_pixels(self, channels: int) -> None:
        images = make_images(channels=channels)
        pairs = list(zip(images.images, images.labels.tolist(), strict=True))
        for dataset in (
            [(to_pil(image), label) for image, label in pairs],
            pairs,
            [(uint8_to_unit(image), label) for image, label in pairs],
        ):
            loaded = load_images(dataset)
            assert torch.equal(loaded.images, images.images)
            assert torch.equal(loaded.labels, images.labels)
            assert loaded.class_names == ("0", "1")

    def test_other_modes_are_read_as_rgb(self) -> None:
        palette = Image.new("RGB", (4, 4), (255, 0, 0)).convert("P")
        assert load_images([(palette, 0)]).images[0, :, 0, 0].tolist() == [255, 0, 0]

    def test_one_wrong_size_among_many_is_named(self) -> None:
        dataset = [(image, 0) for image in make_images().images]
        dataset[4] = (torch.zeros(3, 5, 4, dtype=torch.uint8), 0)
        with pytest.raises(ValueError, match=r"image 4 has shape \(3, 5, 4\) .*, expected \(3, 4, 4\)"):
            load_images(dataset)

    @pytest.mark.parametrize("as_list", [True, False])
    def test_the_size_that_is_needed_is_checked(self, as_list: bool) -> None:
        images = make_images()
        dataset = [images[index] for index in range(len(images))] if as_list else images
        with pytest.raises(ValueError, match=r"shape \(3, 4, 4\) .*, expected \(3, 32, 32\); resize"):
            load_images(dataset, image_shape=(3, 32, 32))

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [([], "has no images"), ([("cat.png", 0)], "must be a PIL image, a tensor or an array, got str")],
    )
    def test_what_holds_no_images_is_refused(self, dataset: list[Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_images(dataset)


class TestHuggingFace:
    """Data sets of Hugging Face's package, where it is installed."""

    @pytest.fixture
    def rows(self) -> Any:
        hugging_face = pytest.importorskip("datasets", reason="Hugging Face's datasets is no dependency")
        features = hugging_face.Features(
            {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["cat", "dog"])}
        )
        images = make_images()
        columns = {"image": [to_pil(image) for image in images.images], "label": images.targets}
        return hugging_face.Dataset.from_dict(columns, features=features)

    @pytest.mark.parametrize("form", [None, "torch", "numpy"])
    def test_the_columns_image_and_label_are_read_with_the_names(self, rows: Any, form: str | None) -> None:
        loaded, expected = load_images(rows.with_format(form)), make_images()
        assert torch.equal(loaded.images, expected.images)
        assert torch.equal(loaded.labels, expected.labels)
        assert loaded.class_names == ("cat", "dog")

    def test_what_has_no_length_or_other_columns_is_refused(self, rows: Any) -> None:
        hugging_face = pytest.importorskip("datasets")
        for given, message in (
            (rows.to_iterable_dataset(), "IterableDataset; .* load it without streaming"),
            (hugging_face.DatasetDict({"train": rows, "test": rows}), r"a mapping of \['train', 'test'\]; give one"),
            (rows.rename_column("image", "img"), r"columns \['img', 'label'\]"),
        ):
            with pytest.raises(ValueError, match=message):
                load_images(given)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ((image for image in []), "got generator"),
        (DataLoader([(torch.zeros(3, 4, 4), 0)]), "got DataLoader; .* its `dataset`"),
        ({"train": []}, r"a mapping of \['train'\]"),
        ([torch.zeros(3, 4, 4)], "item 0 must be .image, label."),
        ([(torch.zeros(3, 4, 4), 0, 0)], "got tuple"),
    ],
)
def test_what_is_no_data_set_of_pairs_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_images(dataset)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (["cat", "dog"], 2, r"image 1: label 2 is out of range; expected 0\.\.1"),
        (None, 0.5, "image 1: a label must be an integer, got 0.5"),
        (None, -1, "image 1: label -1 is out of range"),
    ],
)
def test_a_label_is_refused_by_index_and_value(classes: list[str] | None, label: Any, message: str) -> None:
    class Pairs(list[Any]):
        pass

    pairs = Pairs([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 4, 4), label)])
    if classes is not None:
        pairs.classes = classes
    with pytest.raises(ValueError, match=message):
        load_images(pairs)


def test_class_names_are_found_through_what_wraps_a_data_set() -> None:
    cats, plain = make_images(), [(image, 0) for image in make_images().images]
    assert class_names_of(Subset(Subset(cats, range(3)), [0])) == ("cat", "dog")
    assert class_names_of(ConcatDataset([cats, Subset(cats, [0])])) == ("cat", "dog")
    assert class_names_of(plain) is class_names_of(Subset(plain, [0])) is None
    with pytest.raises(ValueError, match="different classes"):
        class_names_of(ConcatDataset([cats, cats.in_order_of(["dog", "cat"])]))
