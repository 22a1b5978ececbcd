"""The known data sets, and reading a data set into memory."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision import datasets, transforms

from .image_folder import ImageFolder
from .images import LabeledImages, Normalization, image_to_uint8, label_to_int, to_class_names, unit_to_uint8

_SIDE = 32  # px, of the one architecture; images are shown to it with three channels


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before it is read: a row of `DATASETS`, and all that a new data set needs."""

    name: str
    place: str = "[:ROOT]"
    """What follows the name in a spec: `[:ROOT]` (torchvision's folder, `data` by default), `:DIR` or nothing."""
    open: Callable[[str, str], Dataset[tuple[Image.Image, int]]]
    """Called with the place and `train` or `test`."""
    class_names: tuple[str, ...]
    """Empty where the data say them."""
    normalization: Normalization
    """Of the training images as they are opened."""
    flips: bool
    """Whether a mirrored image still belongs to its class."""
    image_shape: tuple[int, int, int] = (3, _SIDE, _SIDE)


def _torchvision(
    kind: Callable[..., Any], *steps: Callable[[Any], Any], **splits: Any
) -> Callable[[str, str], Dataset[tuple[Image.Image, int]]]:
    """Opens one of torchvision's data sets; `train` and `test` are the values of its argument that names the split."""
    ((argument, (train, test)),) = splits.items()

    def open_split(root: str, split: str) -> Dataset[tuple[Image.Image, int]]:
        name, root = kind.__name__, root or "data"
        transform = transforms.Compose(steps) if steps else None
        try:
            opened = kind(root, transform=transform, **{argument: train if split == "train" else test})
        except ImportError as error:
            raise ValueError(f"torchvision reads {name} with {error.name}, which is missing; install it") from error
        except Exception as error:  # for a damaged file torchvision's readers raise all kinds
            raise ValueError(
                f"{name} is not in {root!r}, or is damaged there; expected the files that torchvision.datasets.{name} "
                "downloads"
            ) from error
        return cast(Dataset[tuple[Image.Image, int]], opened)

    return open_split


def _open_digits(place: str, split: str) -> LabeledImages:
    """Scikit-learn's 1,797 digits, 8 px, scaled to 32 px and three channels; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the digits come with scikit-learn, which is missing; pip install 'itgan_data[digits]'"
        ) from error
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    unit = torch.nn.functional.interpolate(small, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    images = unit_to_uint8(unit).expand(-1, 3, -1, -1).contiguous()
    held_out = torch.arange(len(images)) % 5 == 4
    chosen = held_out if split == "test" else ~held_out
    return LabeledImages(images, torch.from_numpy(digits.target).long(), DIGITS.class_names).select(chosen)


# Two rows and columns of black on each side leave the pixels of 28 px images as they are.
_PADDED_TO_RGB = (transforms.Pad(2), transforms.Grayscale(3))

CIFAR10 = DatasetInfo(
    name="cifar10",
    open=_torchvision(datasets.CIFAR10, train=(True, False)),
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    normalization=Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    flips=True,
)
DIGITS = DatasetInfo(
    name="digits",
    place="",
    open=_open_digits,
    class_names=tuple("0123456789"),
    normalization=Normalization((0.3,) * 3, (0.34,) * 3),
    flips=False,
)
DATASETS = {
    row.name: row
    for row in (
        CIFAR10,
        DatasetInfo(
            name="cifar100",
            open=_torchvision(datasets.CIFAR100, train=(True, False)),
            class_names=(),
            normalization=Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
            flips=True,
        ),
        DatasetInfo(
            name="svhn",
            open=_torchvision(datasets.SVHN, split=("train", "test")),
            class_names=DIGITS.class_names,
            normalization=Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
            flips=False,
        ),
        DatasetInfo(
            name="mnist",
            open=_torchvision(datasets.MNIST, *_PADDED_TO_RGB, train=(True, False)),
            class_names=tuple(datasets.MNIST.classes),
            normalization=Normalization((0.1000,) * 3, (0.2752,) * 3),
            flips=False,
        ),
        DatasetInfo(
            name="fashion_mnist",
            open=_torchvision(datasets.FashionMNIST, *_PADDED_TO_RGB, train=(True, False)),
            class_names=tuple(datasets.FashionMNIST.classes),
            normalization=Normalization((0.2190,) * 3, (0.3318,) * 3),
            flips=True,
        ),
        DatasetInfo(
            name="stl10",
            open=_torchvision(datasets.STL10, transforms.Resize(_SIDE), split=("train", "test")),
            class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
            normalization=Normalization((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
            flips=True,
        ),
        DIGITS,
        DatasetInfo(
            name="imagefolder",
            place=":DIR",
            open=lambda folder, split: cast(Any, ImageFolder(Path(folder).expanduser(), split)),
            class_names=(),
            normalization=Normalization((0.5,) * 3, (0.25,) * 3),  # about what photos have
            flips=True,
        ),
    )
}
SPECS = ", ".join(row.name + row.place for row in DATASETS.values())
"""The specs of all known data sets, for messages and help."""


def parse_spec(spec: str) -> tuple[DatasetInfo, str]:
    """The row of the table that a spec such as `cifar10:data` names, and the place in it.

    Raises:
        ValueError: an unknown name, or a folder that is not there.
    """
    name, _, place = spec.partition(":")
    row = DATASETS.get(name)
    if row is None or bool(place) > bool(row.place) or (row.place == ":DIR" and not place):
        raise ValueError(f"unknown data set {spec!r}; expected one of {SPECS}")
    if place and not Path(place).expanduser().is_dir():
        raise ValueError(f"{spec!r}: the folder {place!r} does not exist")
    return row, place


def open_dataset(spec: str, split: str) -> Dataset[tuple[Image.Image, int]]:
    """Open a real data set by its command-line name.

    Args:
        spec: one of `SPECS`: a known data set in torchvision's folder ROOT (`data` by default); `imagefolder:DIR`,
            with DIR/train and DIR/test (or `val`, `valid`, `validation`; in any case), or DIR itself for both;
            `digits` (scikit-learn's).
        split: `train` or `test`.

    Returns:
        A data set of `(PIL image, label)` with the names in `.classes`.

    Raises:
        ValueError: an unknown name or split, or a folder that is not there or holds no images.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    row, place = parse_spec(spec)
    dataset = row.open(place, split)
    if not hasattr(dataset, "classes"):
        dataset.classes = list(row.class_names)  # type: ignore[attr-defined]
    return dataset


def load_images(dataset: Dataset[Any], *, image_shape: tuple[int, int, int] | None = None) -> LabeledImages:
    """Read a whole data set into memory, once.

    Args:
        dataset: anything torchvision-like: `len` and items `(image, label)`, the image as `image_to_uint8` takes it.
            Or Hugging Face's `datasets.Dataset` with the columns `image` and `label`. A `LabeledImages` is returned as
            it is.
        image_shape: the `(C, H, W)` that is needed; by default the shape of the first image.

    Raises:
        ValueError: no images, an image of another shape than the rest or than `image_shape`, or an image, label or
            class names whose meaning is not certain.
    """
    count = _count(dataset)
    if isinstance(dataset, LabeledImages):
        _check_shape(dataset.image_shape, image_shape, "image 0")
        return dataset
    names = class_names_of(dataset)
    images, labels = torch.empty(0), torch.empty(count, dtype=torch.int64)
    for index in range(count):
        pixels, labels[index] = _item(dataset, index, None if names is None else len(names))
        if index == 0:
            image_shape = image_shape or (pixels.shape[0], pixels.shape[1], pixels.shape[2])
            images = torch.empty((count, *image_shape), dtype=torch.uint8)
        _check_shape(tuple(pixels.shape), image_shape, _named(dataset, index))
        images[index] = pixels
    return LabeledImages(images, labels, names or [str(label) for label in range(int(labels.max()) + 1)])


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """The names of a data set's classes, by label; None where it has none.

    Raises:
        ValueError: names that cannot be read, or parts of a `ConcatDataset` that disagree.
    """
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        names, *others = {class_names_of(part) for part in dataset.datasets}
        if others:
            raise ValueError(f"the parts have different classes, {reprlib.repr(names)} and {reprlib.repr(others[0])}")
        return names
    found = getattr(dataset, "classes", None)
    if found is None and isinstance(features := getattr(dataset, "features", None), Mapping):  # of Hugging Face
        found = getattr(features.get("label"), "names", None)
    return None if found is None else to_class_names(found) or None


def _count(dataset: Any) -> int:
    if isinstance(dataset, Mapping):  # Hugging Face's DatasetDict
        raise ValueError(f"expected one data set, got a mapping of {reprlib.repr(list(dataset))}; give one of them")
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"expected a data set with a length and items by index, got {type(dataset).__name__}; an iterable one must "
            "be read into a list first (Hugging Face: load it without streaming), of a DataLoader give its `dataset`"
        )
    if (count := len(dataset)) == 0:
        raise ValueError("the data set has no images; expected at least one")
    return count


def _item(dataset: Any, index: int, num_classes: int | None) -> tuple[torch.Tensor, int]:
    """Image `index` as uint8 `[C, H, W]`, and its label."""
    try:
        item = dataset[index]
    except OSError as error:
        raise ValueError(f"{_named(dataset, index)} cannot be read ({error})") from error
    if isinstance(item, Mapping) and {"image", "label"} <= item.keys():
        item = item["image"], item["label"]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        got = f"columns {reprlib.repr(list(item))}" if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(f"item {index} must be (image, label), or have the columns image and label; got {got}")
    try:
        return image_to_uint8(item[0]), label_to_int(item[1], num_classes)
    except ValueError as error:
        raise ValueError(f"{_named(dataset, index)}: {error}") from error


def _named(dataset: Any, index: int) -> str:
    """An image by its number, and by its file where the data set has files."""
    samples = getattr(dataset, "samples", None)
    return f"image {index} ({samples[index][0]})" if samples else f"image {index}"


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...] | None, named: str) -> None:
    if expected is not None and shape != expected:
        raise ValueError(
            f"{named} has shape {shape} (channels, height, width), expected {expected}; "
            "resize the images first or choose a generator of their size"
        )
