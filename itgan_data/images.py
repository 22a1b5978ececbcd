"""Value ranges of images, normalisation, and a data set held in memory.

Four ranges are used, and every function says which it takes: *signed* [-1, 1] (generators), *unit* [0, 1]
(files and displays), *standardized* `(unit - mean) / std` (classifiers) and *uint8* (storage).
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Protocol, cast

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.utils import make_grid

from .config import Above, check
from .storage.files import fingerprint


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
            raise ValueError(f"mean and std must have one value a channel, got {len(self.mean)} and {len(self.std)}")

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
        """Unit images `[B, C, H, W]` and int64 labels `[B]` at `indices` `[B]`; a new epoch may make other images."""
        ...


class LabeledImages(Dataset[tuple[Image.Image, int]]):
    """A data set held in memory: uint8 images `[N, C, H, W]` and int64 labels `[N]`."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(images)}], got {labels.dtype} {tuple(labels.shape)}")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise ValueError(
                f"labels must lie in 0..{len(class_names) - 1}, one of {len(class_names)} classes, "
                f"got {int(labels.min())}..{int(labels.max())}"
            )
        self.images = images
        self.labels = labels
        self.class_names = tuple(class_names)

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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels and class names: tells one data set from another."""
        names = torch.tensor(list("\n".join(self.class_names).encode()), dtype=torch.uint8)
        return fingerprint({"images": self.images, "labels": self.labels, "class_names": names})

    def to(self, device: str | torch.device) -> "LabeledImages":
        """The same images on another device."""
        return LabeledImages(self.images.to(device), self.labels.to(device), self.class_names)


def __getattr__(name: str) -> Any:
    """`load_images` and `open_dataset`, which are in `datasets`: they can be imported from here too."""
    if name in ("load_images", "open_dataset"):
        return getattr(importlib.import_module(".datasets", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
