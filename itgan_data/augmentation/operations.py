"""The operations of DSA and what is put together from them: maps of standardized images, steered by uniform draws.

Scaling and rotation are kornia's functions. The others are written here: kornia's classes draw for a whole batch and
clamp colours to [0, 1], which standardized images exceed. On one CPU thread ours are 2.1 (colour), 2.6 (crop), 1.3
(cutout) and 1.0 times (flip) as fast, drawing included (`benchmarks/augmentations.py`).

Source: Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation" (DSA), 2021; Zhao et al.,
"Differentiable augmentation for data-efficient GAN training" (DiffAugment), 2020. Both use the operations below:
`DSA` picks one of them, `diff_augment` applies all.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

FLIP_PROBABILITY = 0.5
MAX_SCALE = 1.2
MAX_ROTATION = 15  # degrees
CROP_RATIO = 0.125
CUTOUT_RATIO = 0.5


class Augmentation(Protocol):
    """A deterministic map of images, steered by uniform draws."""

    @property
    def num_draws(self) -> int:
        """How many uniform numbers an image needs."""
        ...

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Augment `images` `[B, C, H, W]` with `draws` `[B, num_draws]`; differentiable in `images`."""
        ...


def brightness(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Add `r - 0.5`."""
    return images + (_per_image(draws[:, 0], images) - 0.5)


def saturation(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Scale the distance to the grey image (mean over channels) by `2 r`."""
    grey = images.mean(dim=1, keepdim=True)
    return (images - grey) * (2.0 * _per_image(draws[:, 0], images)) + grey


def contrast(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Scale the distance to the image's mean value by `r + 0.5`."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_per_image(draws[:, 0], images) + 0.5) + mean


def color(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Brightness, then saturation, then contrast."""
    return contrast(saturation(brightness(images, draws[:, :1]), draws[:, 1:2]), draws[:, 2:3])


def crop(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Shift by up to an eighth of the side, rows then columns, with zeros shifted in."""
    height, width = images.shape[2:]
    rows = _shifted(height, draws[:, 0], int(height * CROP_RATIO + 0.5))
    columns = _shifted(width, draws[:, 1], int(width * CROP_RATIO + 0.5))
    return _resample(images, rows, columns)


def flip(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Mirror left to right with probability one half."""
    mirrored = _per_image(draws[:, 0], images) < FLIP_PROBABILITY
    return torch.where(mirrored, images.flip(3), images)


def cutout(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Set to zero a square of half the side, centred anywhere in the image."""
    height, width = images.shape[2:]
    rows = _inside(draws[:, 0], height, int(height * CUTOUT_RATIO + 0.5), images.device)
    columns = _inside(draws[:, 1], width, int(width * CUTOUT_RATIO + 0.5), images.device)
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


def scale(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Scale width and height independently by 1/1.2 .. 1.2, bilinear."""
    factors = draws[:, :2] * (MAX_SCALE - 1 / MAX_SCALE) + 1 / MAX_SCALE
    scaled: torch.Tensor = _transform().scale(images, 1.0 / factors.to(images), align_corners=False)
    return scaled


def rotate(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Rotate by up to 15 degrees either way, bilinear.

    In pixels, so that a circle stays one in images that are not square; the code that came with DSA rotates in
    coordinates that run from -1 to 1 along both sides, and shears such images.
    """
    degrees = (draws[:, 0].to(images) - 0.5) * (2 * MAX_ROTATION)
    rotated: torch.Tensor = _transform().rotate(images, degrees, align_corners=False)
    return rotated


@functools.cache
def _transform() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases of kornia warn of torch.jit while they are imported
        from kornia.geometry import transform
    return transform


def _per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return values.to(device=images.device, dtype=images.dtype).view(-1, 1, 1, 1)


def _shifted(size: int, draws: torch.Tensor, reach: int) -> torch.Tensor:
    """`0..size - 1` for each draw `[B]`, moved by a whole number in -reach..reach `[B, size]`."""
    shift = (draws * (2 * reach + 1)).long() - reach
    return torch.arange(size, device=draws.device) + shift.unsqueeze(1)


def _resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Output pixel (i, j) of an image is input pixel (rows[i], columns[j]), or zero outside.

    One gather from the image with a border of zeros: every pass over a batch costs as much as reading it.
    """
    batch, channels, height, width = images.shape
    rows = (rows.to(images.device) + 1).clamp(0, height + 1)
    columns = (columns.to(images.device) + 1).clamp(0, width + 1)
    places = rows.unsqueeze(2) * (width + 2) + columns.unsqueeze(1)
    places = places.view(batch, 1, height * width).expand(batch, channels, height * width)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, places).view_as(images)


def _inside(draws: torch.Tensor, side: int, length: int, device: torch.device) -> torch.Tensor:
    """Which of `side` positions a segment of `length` covers, `[B, side]`; its middle is drawn over the whole side."""
    first = (draws * (side + 1 - length % 2)).long() - length // 2
    distance = torch.arange(side, device=device) - first.to(device).unsqueeze(1)
    return (distance >= 0) & (distance < length)


@dataclass(frozen=True)
class Operation:
    """One differentiable operation and how many draws it takes."""

    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    num_draws: int

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        return self.function(images, draws)

    def __repr__(self) -> str:
        return self.function.__name__


OPERATIONS = {
    "color": Operation(color, 3),
    "crop": Operation(crop, 2),
    "cutout": Operation(cutout, 2),
    "flip": Operation(flip, 1),
    "scale": Operation(scale, 2),
    "rotate": Operation(rotate, 1),
}


def without_flip(strategy: str) -> str:
    """The operations of `strategy` for images whose mirror images belong to another class, or to none."""
    return "_".join(name for name in strategy.split("_") if name != "flip")


def _operations(names: str) -> list[Operation]:
    chosen = names.split("_") if names else []
    if unknown := [name for name in chosen if name not in OPERATIONS]:
        raise ValueError(f"unknown operation {unknown[0]!r} in {names!r}; expected {'_'.join(OPERATIONS)}")
    return [OPERATIONS[name] for name in chosen]


@dataclass(frozen=True)
class DSA:
    """One operation of `strategy` per image, chosen by the first draw of its row.

    Give draws on the CPU: draws on a GPU make every step wait for it. Leave `flip` out for digits.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"

    def __post_init__(self) -> None:
        if not _operations(self.strategy):
            raise ValueError("strategy is empty; expected operations joined by '_', such as 'crop_flip'")

    @property
    def num_draws(self) -> int:
        return 1 + max(operation.num_draws for operation in _operations(self.strategy))

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        operations = _operations(self.strategy)
        picks = (draws[:, 0] * len(operations)).long().cpu()
        parts, places = [], []
        chosen_operations: list[int] = torch.unique(picks).tolist()
        for pick in chosen_operations:
            place = (picks == pick).nonzero().squeeze(1)
            if len(place) == len(images):
                return operations[pick](images, draws[:, 1:])
            chosen = images[place.to(images.device)]
            parts.append(operations[pick](chosen, draws[place.to(draws.device), 1:]))
            places.append(place)
        order = torch.cat(places).argsort().to(images.device)
        return torch.cat(parts)[order]


@dataclass(frozen=True)
class CropFlip:
    """The usual training augmentation: pad, crop at random, mirror with probability one half."""

    padding: int = 4
    """Pixels of zero padding on each side."""
    flip: bool = True
    """Off for digits, whose mirror images are no digits."""

    @property
    def num_draws(self) -> int:
        return 3

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        rows = _shifted(images.shape[2], draws[:, 0], self.padding)
        columns = _shifted(images.shape[3], draws[:, 1], self.padding)
        if self.flip:
            columns = torch.where(draws[:, 2:3] < FLIP_PROBABILITY, columns.flip(1), columns)
        return _resample(images, rows, columns)


def count_draws(augmentation: Augmentation) -> int:
    """How many uniform numbers an image needs.

    Raises:
        ValueError: the augmentation takes none, as kornia's.
    """
    if not hasattr(augmentation, "num_draws"):
        raise ValueError(
            f"{type(augmentation).__name__} takes no draws, got it where one of ours is expected; give kornia's to "
            "Kornia(...), and what comes after them to its then="
        )
    return augmentation.num_draws


class Compose:
    """Several augmentations in a row, each with draws of its own."""

    def __init__(self, *augmentations: Augmentation) -> None:
        self.augmentations = augmentations
        self.num_draws = sum(map(count_draws, augmentations))

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.augmentations))})"

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        start = 0
        for augmentation in self.augmentations:
            images = augmentation(images, draws[:, start : start + augmentation.num_draws])
            start += augmentation.num_draws
        return images


def diff_augment(policy: str = "color_crop_cutout") -> Compose:
    """Every operation of `policy`, one after the other; an empty policy changes nothing."""
    return Compose(*_operations(policy))
