"""The known data sets, and reading a data set into memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset

from .images import LabeledImages, Normalization, unit_to_uint8


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before it is read."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalization: Normalization
    flips: bool
    """Whether a mirrored image still belongs to its class."""


CIFAR10 = DatasetInfo(
    name="cifar10",
    class_names=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    image_shape=(3, 32, 32),
    normalization=Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    flips=True,
)


DIGITS = DatasetInfo(
    name="digits",
    class_names=tuple("0123456789"),
    image_shape=(3, 32, 32),
    normalization=Normalization((0.3,) * 3, (0.34,) * 3),
    flips=False,
)


def load_images(dataset: Dataset[Any], *, image_shape: tuple[int, int, int] | None = None) -> LabeledImages:
    """Read a whole data set into memory, once.

    Args:
        dataset: anything torchvision-like: `len` and items `(image, label)`, the image PIL or a unit float or
            uint8 tensor `[C, H, W]`. A `LabeledImages` is returned as it is.
        image_shape: the `(C, H, W)` that is needed; by default the shape of the first image.

    Raises:
        ValueError: no images, an image of another shape than the rest or than `image_shape`.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("the data set has no images; expected at least one")
    if isinstance(dataset, LabeledImages):
        _check_shape(dataset.image_shape, image_shape, 0)
        return dataset
    first = _as_uint8(dataset[0][0])
    expected = image_shape or tuple(first.shape)
    _check_shape(tuple(first.shape), expected, 0)
    images = torch.empty((count, *expected), dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for index in range(count):
        image, label = dataset[index]
        pixels = _as_uint8(image)
        _check_shape(tuple(pixels.shape), expected, index)
        images[index], labels[index] = pixels, int(label)
    names = getattr(dataset, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    return LabeledImages(images, labels, names)


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...] | None, index: int) -> None:
    if expected is not None and shape != expected:
        raise ValueError(
            f"image {index} has shape {shape} (channels, height, width), expected {expected}; "
            "resize the images first or choose a generator of their size"
        )


def _as_uint8(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        array = np.array(image.convert("RGB") if image.mode not in ("L", "RGB") else image)
        return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
    if isinstance(image, torch.Tensor):
        return image if image.dtype == torch.uint8 else unit_to_uint8(image.float())
    raise ValueError(f"an image must be a PIL image or a tensor [C, H, W], got {type(image).__name__}")


def open_dataset(spec: str, split: str) -> Dataset[tuple[Image.Image, int]]:
    """Open a real data set by its command-line name.

    Args:
        spec: `cifar10[:ROOT]`, `cifar100[:ROOT]` (torchvision's folders, ROOT `data` by default),
            `imagefolder:DIR` (DIR/train and DIR/test, or DIR itself for both) or `digits` (scikit-learn's).
        split: `train` or `test`.

    Returns:
        A data set of `(PIL image, label)` with the names in `.classes`.

    Raises:
        ValueError: an unknown name or split, or a folder that is not there or holds no images.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    kind, _, place = spec.partition(":")
    if kind == "digits" and not place:
        return _open_digits(split)
    if kind == "imagefolder" and place:
        return _open_image_folder(Path(place), split)
    if kind in ("cifar10", "cifar100"):
        cifar = torchvision.datasets.CIFAR10 if kind == "cifar10" else torchvision.datasets.CIFAR100
        try:
            return cast(Dataset[tuple[Image.Image, int]], cifar(place or "data", train=split == "train"))
        except RuntimeError as error:
            raise ValueError(f"{kind} is not in {place or 'data'!r} ({error})") from error
    raise ValueError(f"unknown data set {spec!r}; expected cifar10[:ROOT], cifar100[:ROOT], imagefolder:DIR or digits")


def _open_image_folder(folder: Path, split: str) -> Dataset[tuple[Image.Image, int]]:
    chosen = folder / split if (folder / split).is_dir() else folder
    if not chosen.is_dir():
        raise ValueError(f"image folder {folder} does not exist; expected DIR/{split}/<class>/<image>")
    try:
        return cast(Dataset[tuple[Image.Image, int]], torchvision.datasets.ImageFolder(str(chosen)))
    except FileNotFoundError as error:
        raise ValueError(f"image folder {chosen} has no images; expected {chosen}/<class>/<image>") from error


def _open_digits(split: str) -> LabeledImages:
    """Scikit-learn's 1,797 digits, 8 px, scaled to 32 px and three channels; every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the digits come with scikit-learn, which is missing; pip install 'itgan_data[digits]'"
        ) from error
    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0
    unit = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = unit_to_uint8(unit).expand(-1, 3, -1, -1).contiguous()
    held_out = torch.arange(len(images)) % 5 == 4
    chosen = held_out if split == "test" else ~held_out
    return LabeledImages(images, torch.from_numpy(digits.target).long(), DIGITS.class_names).select(chosen)
