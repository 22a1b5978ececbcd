"""What is decided before condensation starts: checks of the data, the real images, and the units of work."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import MayDiffer, marked
from ..images import LabeledImages
from ..running.checkpoint import Checkpointer
from ..storage.files import fingerprint
from .config import CondenserConfig
from .selection import indices_by_class, select_random

MAY_DIFFER = marked(CondenserConfig, MayDiffer)

_UNIT = "group-"


@dataclass(frozen=True)
class WorkUnit:
    """Latents that are learned independently of all others: one group of some classes."""

    name: str
    """Of its folder in the workdir."""
    group: int
    classes: range
    columns: range
    """Indices of the latents within each class."""


def frozen(generator: nn.Module, device: torch.device) -> nn.Module:
    """The generator in evaluation mode on `device`, without gradients: itself if nothing has to change, else a copy."""
    tensors = [*generator.parameters(), *generator.buffers()]
    if not generator.training and all(t.device == device and not t.requires_grad for t in tensors):
        return generator
    return copy.deepcopy(generator).to(device).eval().requires_grad_(False)


def identity(generator: nn.Module) -> dict[str, str]:
    """Identifies a generator by a hash of its weights or, if it has none (`Pixels`), by its `repr`."""
    weights = generator.state_dict()
    return {"generator": fingerprint(weights) if weights else repr(generator)}


def check_real_images(real_images: LabeledImages, generator: nn.Module, config: CondenserConfig) -> None:
    """Raise ValueError if the number of classes or channels does not fit."""
    if real_images.num_classes != generator.num_classes:
        raise ValueError(
            f"the data set has {real_images.num_classes} classes and the generator {generator.num_classes}; "
            "use a generator that was trained on these classes"
        )
    if len(config.normalization.mean) != real_images.image_shape[0]:
        raise ValueError(
            f"normalization has {len(config.normalization.mean)} channels and the images have "
            f"{real_images.image_shape[0]}; give one mean and std per channel"
        )


def check_folders(workdir: Path, work: Mapping[str, Any]) -> None:
    """Raise ValueError if the workdir holds units of other work, which says what differs."""
    for folder in sorted(workdir.glob(f"{_UNIT}*")):
        Checkpointer(folder, work, may_differ=MAY_DIFFER).read_manifest()


def choose(real_images: LabeledImages, images_per_class: int | None, seed: int) -> torch.Tensor:
    """Indices of random real images, `[num_classes, images_per_class]`; for None see `CondenserConfig`."""
    count = images_per_class or min(map(len, indices_by_class(real_images)))
    return select_random(real_images, count, seed=seed).view(real_images.num_classes, count)


def units_of(config: CondenserConfig, num_classes: int, count: int) -> list[WorkUnit]:
    """The units of `count` latents per class: all blocks of the first group, then of the second."""
    size = count if config.group_size is None or config.regroup else config.group_size
    block = config.class_block or num_classes
    groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
    blocks = [range(first, min(first + block, num_classes)) for first in range(0, num_classes, block)]
    suffixes = [f"-classes-{classes[0]:04d}" if config.class_block else "" for classes in blocks]
    return [
        WorkUnit(f"{_UNIT}{group:04d}{suffix}", group, classes, columns)
        for group, columns in enumerate(groups)
        for classes, suffix in zip(blocks, suffixes, strict=True)
    ]


def more_units(config: CondenserConfig) -> str:
    """How to get more units, for messages."""
    networks = config.networks  # some cannot be used on a part of the classes
    if networks is not None and (networks.batch_norm or networks.outer_steps > 1):
        return "its networks need all classes together, so only fixed groups of a smaller group_size give more"
    return "set a smaller class_block, or fixed groups of a smaller group_size, to have more"
