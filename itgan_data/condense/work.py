"""What is checked and settled before any work: fitting data, chosen images, its units, the name of the work."""

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
    """Latents that are learned independently of all others: a group of some classes."""

    name: str
    """Of its folder in the workdir."""
    group: int
    classes: range
    columns: range
    """Which of each class's latents."""


def frozen(generator: nn.Module, device: torch.device) -> nn.Module:
    """The generator in evaluation mode on `device`, without gradients: itself if it is so, else a copy."""
    tensors = [*generator.parameters(), *generator.buffers()]
    if not generator.training and all(t.device == device and not t.requires_grad for t in tensors):
        return generator
    return copy.deepcopy(generator).to(device).eval().requires_grad_(False)


def identity(generator: nn.Module) -> dict[str, str]:
    """Tells one generator from another: by its weights, or without any by what it says of itself."""
    weights = generator.state_dict()
    return {"generator": fingerprint(weights) if weights else repr(generator)}


def check_real_images(real_images: LabeledImages, generator: nn.Module, config: CondenserConfig) -> None:
    """Refuse classes that are not the generator's, or a normalisation of other channels.

    Raises:
        ValueError: either.
    """
    if real_images.num_classes != generator.num_classes:
        raise ValueError(
            f"the data set has {real_images.num_classes} classes and the generator {generator.num_classes}; "
            "use a generator that was trained on these classes"
        )
    if len(config.normalization.mean) != real_images.image_shape[0]:
        raise ValueError(
            f"normalization has {len(config.normalization.mean)} channels and the images have "
            f"{real_images.image_shape[0]}; give one mean and std a channel"
        )


def check_folders(workdir: Path, work: Mapping[str, Any]) -> None:
    """Refuse a workdir with units of other work, also those that this configuration does not have.

    Raises:
        ValueError: it holds such; says what differs.
    """
    for folder in sorted(workdir.glob(f"{_UNIT}*")):
        Checkpointer(folder, work, may_differ=MAY_DIFFER).read_manifest()


def choose(real_images: LabeledImages, images_per_class: int | None, seed: int) -> torch.Tensor:
    """`[num_classes, images_per_class]` random real images; None takes as many as the smallest class has.

    Raises:
        ValueError: a class has fewer, or none.
    """
    count = images_per_class or min(map(len, indices_by_class(real_images)))
    return select_random(real_images, count, seed=seed).view(real_images.num_classes, count)


def units_of(config: CondenserConfig, num_classes: int, count: int) -> list[WorkUnit]:
    """The units of `count` latents a class, the blocks of a group one after the other."""
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
    """What to do to have more units, in words: not all networks can look at some of the classes only."""
    networks = config.networks
    if networks is not None and (networks.batch_norm or networks.outer_steps > 1):
        return "its networks need all classes together, so only fixed groups of a smaller group_size give more"
    return "set a smaller class_block, or fixed groups of a smaller group_size, to have more"
