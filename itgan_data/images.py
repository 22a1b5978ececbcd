"""Value ranges of images, normalisation, and a data set held in memory.

Four ranges are used, and every function says which it takes: *signed* [-1, 1] (generators), *unit* [0, 1]
(files and displays), *standardized* `(unit - mean) / std` (classifiers) and *uint8* (storage).
"""

import importlib
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import VisionDataset
from torchvision.utils import make_grid

from .config import Above, check
from .storage.files import fingerprint

_ROUNDING = 0.5 / 255  # of unit images: what lies outside by less gives the same bytes
_MAX_CLASSES = 1 << 24


def signed_to_unit(images: torch.Tensor) -> torch.Tensor:
    """Take [-1, 1] to [0, 1]."""
    return images * 0.5 + 0.5


def unit_to_signed(images: torch.Tensor) -> torch.Tensor:
    """Take [0, 1] to [-1, 1]."""
    return images * 2.0 - 1.0


def unit_to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Take [0, 1] to the nearest of 0..255; values outside are clamped."""
    return (images * 255.0).round_().clamp_(0, 255).to(torch.uint8)


def uint8_to_unit(images: torch.Tensor) -> torch.Tensor:
    """Take 0..255 to float32 [0, 1]."""
    return images.to(torch.float32, copy=True).div_(255.0)


def signed_to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Take [-1, 1] to the nearest of 0..255; values outside are clamped."""
    return unit_to_uint8(signed_to_unit(images))


def image_to_uint8(image: Any) -> torch.Tensor:
    """Convert an image of any usual kind to uint8 `[C, H, W]`, of one or three channels.

    Args:
        image: PIL of any mode (16-bit grey is scaled, `F` must be unit, what is not grey becomes RGB); or a tensor
            `[C, H, W]`, or a numpy array `[H, W, C]` as torchvision takes it, or either as grey `[H, W]`. Floats must
            be unit, integers 0..255; `uint16` is 0..65535, and `bool` black and white.

    Raises:
        ValueError: another shape or range, or values that could mean two things.
    """
    white = None
    if isinstance(image, Image.Image):
        white = 65535 if image.mode.startswith("I;16") else None
        image = np.array(image if white or image.mode in ("L", "I", "F", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype.kind not in "buif":
            raise ValueError(f"an image must hold numbers, got {image.dtype}")
        pixels = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))  # may be read-only
        image = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"an image must be a PIL image, a tensor or an array, got {type(image).__name__}")
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(
            f"an image must have one or three channels, [C, H, W] as a tensor and [H, W, C] as an array; as a tensor "
            f"this one has shape {tuple(image.shape)}"
        )
    return _to_levels(image.detach().cpu(), white)


def _to_levels(image: torch.Tensor, white: int | None) -> torch.Tensor:
    """Numbers as uint8; `white` is the number of white where the mode of the image gives it."""
    if image.dtype in (torch.uint8, torch.bool):
        return image if image.dtype == torch.uint8 else image.to(torch.uint8) * 255
    if image.is_complex():
        raise ValueError(f"an image must hold real numbers, got {image.dtype}")
    values = image.double() if image.is_floating_point() else image.long()
    low, high = values.min().item(), values.max().item()
    given = f"an image of {str(image.dtype).removeprefix('torch.')} with values in [{low:.4g}, {high:.4g}]"
    if image.is_floating_point():
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:  # false for NaN, too
            raise ValueError(f"{given}; floats must lie in [0, 1]: leave `Normalize` out, or scale them first")
        return unit_to_uint8(values)
    if image.dtype == torch.uint16 and (white or not 0 < high <= 255):  # few values may also be bytes in a wider type
        return ((values + 128) // 257).to(torch.uint8)
    if image.dtype == torch.uint16 or not 0 <= low <= high <= 255:
        raise ValueError(f"{given}; expected 0..255, or a uint16 image that uses its range: convert it to uint8 first")
    return values.to(torch.uint8)


def label_to_int(label: Any, num_classes: int | None = None) -> int:
    """A label of any integer type as an int.

    Raises:
        ValueError: something else, or not one of the classes.
    """
    value = label.item() if getattr(label, "shape", None) == () else label
    if isinstance(value, int) and 0 <= value < (num_classes or _MAX_CLASSES):
        return int(value)
    shown = " ".join(repr(label).split())
    if isinstance(value, int):
        raise ValueError(f"label {shown} is out of range; expected 0..{(num_classes or _MAX_CLASSES) - 1}")
    is_row = isinstance(value, (Sequence, np.ndarray, torch.Tensor)) and not isinstance(value, (str, bytes))
    raise ValueError(
        f"a label must be an integer, got {shown:.80}"
        + ("; of one-hot labels give the argmax, of an array its one element" if is_row else "")
    )


def check_labels(labels: torch.Tensor, count: int, num_classes: int = _MAX_CLASSES) -> None:
    """Refuse labels that are not `count` places among `num_classes`.

    Raises:
        ValueError: another type or shape, or a label out of range.
    """
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"labels must be int64 [{count}], got {labels.dtype} {tuple(labels.shape)}")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")


def to_class_names(names: Any) -> tuple[str, ...]:
    """Names of classes as text: synonyms (tuples, as torchvision's ImageNet has them) are joined, integers written out.

    Raises:
        ValueError: no sequence of such names.
    """
    values = names.tolist() if isinstance(names, (np.ndarray, torch.Tensor)) else names
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        texts = [", ".join(value) if _is_synonyms(value) else value for value in values]
        if all(isinstance(text, (str, int, np.integer)) and text != "" for text in texts):
            return tuple(map(str, texts))
    raise ValueError(f"class names must be a sequence of text, tuples of text or integers, got {reprlib.repr(names)}")


def _is_synonyms(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value)


def to_pil(image: torch.Tensor) -> Image.Image:
    """A uint8 image `[C, H, W]` as PIL: mode RGB for three channels, L for one."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


def image_grid(images: torch.Tensor, columns: int, *, padding: int = 2) -> Image.Image:
    """Unit images `[N, C, H, W]` on white, `columns` in a row; a single image is shown without a border."""
    pixels = unit_to_uint8(images.detach().float().cpu())
    return to_pil(make_grid(pixels, columns, padding, pad_value=255))


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of unit images."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Above(0)], ...]

    def __post_init__(self) -> None:
        check(self)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one value per channel, got {len(self.mean)} and {len(self.std)}")

    def standardize(self, images: torch.Tensor) -> torch.Tensor:
        """Take unit images `[..., C, H, W]` to `(images - mean) / std`."""
        return (images - self._channels(self.mean, images)) / self._channels(self.std, images)

    def to_unit(self, images: torch.Tensor) -> torch.Tensor:
        """Take standardized images `[..., C, H, W]` back to unit ones."""
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    @staticmethod
    def _channels(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


class ImageSource(Protocol):
    """Images by index, as training and evaluation read them: `LabeledImages`, `SyntheticDataset` and others."""

    def __len__(self) -> int: ...

    def unit_batch(self, indices: torch.Tensor, epoch: int, /) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit images `[B, C, H, W]` at `indices` `[B]`; a new epoch may make other images.

        Labels are int64 `[B]`, or class probabilities `[B, num_classes]`, and cross entropy takes both.
        """
        ...


def check_source(source: ImageSource, caller: str) -> None:
    """Refuse a source without images, and transforms, which `caller` would not call, as it asks for unit batches.

    Raises:
        ValueError: no images; or a data set, or one of an ensemble, has a transform or overrides `__getitem__`.
    """
    if len(source) == 0:
        raise ValueError(f"the data set has no images; {caller} needs at least one")
    for part in getattr(source, "datasets", [source]):
        if not isinstance(part, VisionDataset):
            continue
        for name in ("transform", "target_transform", "batch_transform"):
            if getattr(part, name, None) is not None:
                raise ValueError(
                    f"{caller} does not call {name}; set it to None and augment with `augment` (of a loader) or "
                    "`augmentation` (of a recipe), or use a DataLoader"
                )
        if hasattr(type(part), "__getitems__") and part.__getitems__ is None:
            raise ValueError(
                f"{type(part).__name__} overrides __getitem__, which {caller} does not call; use a DataLoader"
            )


class LabeledImages(Dataset[tuple[Image.Image, int]]):
    """A data set held in memory: uint8 images `[N, C, H, W]` and int64 labels `[N]`."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]) -> None:
        class_names = to_class_names(class_names)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {images.dtype} {tuple(images.shape)}")
        check_labels(labels, len(images), len(class_names))
        self.images = images
        self.labels = labels
        self.class_names = class_names

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def classes(self) -> list[str]:
        """Class names, under torchvision's attribute name."""
        return list(self.class_names)

    @property
    def targets(self) -> list[int]:
        """Labels, under torchvision's attribute name."""
        return cast(list[int], self.labels.tolist())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return to_pil(self.images[index]), int(self.labels[index])

    def unit_batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit float32 images `[B, C, H, W]` and int64 labels `[B]`; `epoch` has no effect on stored images."""
        indices = indices.to(self.images.device)
        return uint8_to_unit(self.images[indices]), self.labels[indices]

    def select(self, indices: torch.Tensor) -> "LabeledImages":
        """The images at `indices`, with all class names kept."""
        return LabeledImages(self.images[indices], self.labels[indices], self.class_names)

    def in_order_of(self, names: Sequence[str]) -> "LabeledImages":
        """The same images, with labels renumbered to the order of `names`.

        Raises:
            ValueError: other classes, or an order that names which occur twice leave open.
        """
        wanted = to_class_names(names)
        if wanted == self.class_names:
            return self
        if sorted(wanted) != sorted(self.class_names) or len(set(wanted)) < len(wanted):
            others = sorted(set(wanted) ^ set(self.class_names))
            why = f"they differ in {reprlib.repr(others)}" if others else "names that occur twice leave the order open"
            raise ValueError(
                f"the data have {self.num_classes} classes, {reprlib.repr(self.classes)}, expected {len(wanted)}, "
                f"{reprlib.repr(list(wanted))}: {why}; give data of the same classes"
            )
        places = torch.tensor([wanted.index(name) for name in self.class_names], device=self.labels.device)
        return LabeledImages(self.images, places[self.labels], wanted)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels and class names: tells one data set from another."""
        names = torch.tensor(list("\n".join(self.class_names).encode()), dtype=torch.uint8)
        return fingerprint({"images": self.images, "labels": self.labels, "class_names": names})

    def to(self, device: str | torch.device) -> "LabeledImages":
        """The same images on another device."""
        return LabeledImages(self.images.to(device), self.labels.to(device), self.class_names)


def __getattr__(name: str) -> Any:
    """`load_images` and `open_dataset` of `datasets` can be imported from here too."""
    if name in ("load_images", "open_dataset"):
        return getattr(importlib.import_module(".datasets", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
