"""Prepare a batch for training: kornia's augmentations on unit images, standardizing, and ours after it."""

import torch
import torch.nn.functional as F
from torch import nn

from ..draws import Stream, global_rng_seeded, make_seed, uniform
from ..images import Normalization
from .operations import Augmentation, count_draws


class Kornia:
    """Augmentations of kornia, applied to unit images before they are standardized: most of them need values in [0, 1].

    kornia draws for a batch as a whole, so an augmented image depends on its batch: on batch size, order and ranks.
    The same seed, epoch and first index of a batch give the same draws, and the global RNG is left as it was.

    Args:
        augmentations: modules of `kornia.augmentation`, such as `RandAugment`, `ColorJiggle` or `RandomErasing`,
            applied in this order. `RandomMixUpV2` makes labels soft: floats `[B, num_classes]`.
        num_classes: for soft labels.
        then: what is applied after standardizing, such as `CropFlip`.

    Raises:
        ValueError: an augmentation mixes images but cannot mix their labels, or `num_classes` is missing.
    """

    def __init__(
        self, *augmentations: nn.Module, num_classes: int | None = None, then: Augmentation | None = None
    ) -> None:
        from kornia.augmentation import MixAugmentationBaseV2, RandomJigsaw, RandomMixUpV2

        mixing = [part for part in augmentations if isinstance(part, RandomMixUpV2)]
        for module in (module for part in augmentations for module in part.modules()):
            mixes = isinstance(module, MixAugmentationBaseV2) and not isinstance(module, RandomJigsaw)
            if mixes and module not in mixing:
                raise ValueError(
                    f"{type(module).__name__} mixes images, and their labels cannot be mixed alike; expected "
                    "RandomMixUpV2, given to Kornia itself rather than to a container"
                )
        if len(mixing) > 1 or (mixing and num_classes is None):
            raise ValueError(f"MixUp makes labels soft: give num_classes and one RandomMixUpV2, got {len(mixing)}")
        self.augmentations = augmentations
        self.mixing = mixing
        self.num_classes = num_classes
        self.then = then

    def __repr__(self) -> str:
        return f"Kornia({', '.join(map(_one_line, self.augmentations))}, then={self.then!r})"

    def __call__(self, unit: torch.Tensor, labels: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment unit images `[B, C, H, W]`; where images are mixed, their int64 labels become soft."""
        with global_rng_seeded(seed, unit.device):  # kornia accepts no generator
            for part in self.augmentations:
                if part in self.mixing:
                    places = torch.arange(len(unit), device=unit.device)  # for labels that may be soft already
                    unit, mixture = part(unit, places, data_keys=["input", "class"])
                    labels = self._mixed(labels, mixture)
                else:
                    unit = part(unit)
        return unit, labels

    def _mixed(self, labels: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        """Mix labels by `mixture` `[B, 3]`: the place of an image, of the one mixed in, and the share of the latter."""
        soft = labels if labels.is_floating_point() else F.one_hot(labels, self.num_classes or -1)
        own, other = soft.to(mixture.dtype)[mixture[:, :2].long()].unbind(1)
        return torch.lerp(own, other, mixture[:, 2:])


def _one_line(module: nn.Module) -> str:
    """A repr with the settings that kornia's leaves out, such as `n` and `m` of RandAugment: results depend on them."""
    settings = {name: value for name, value in vars(module).items() if isinstance(value, int | float)}
    return f"{' '.join(repr(module).split())} {settings}"


def standardize_and_augment(
    unit: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    augmentation: Augmentation | Kornia | None,
    normalization: Normalization | None,
    *,
    seed: int,
    epoch: int,
    shared_draws: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit images `[B, C, H, W]` and labels as a network is trained on them; `normalization=None` leaves them unit.

    Without `Kornia` an image is a function of (seed, epoch, index). The batch shares its first `shared_draws` draws.
    """
    if isinstance(augmentation, Kornia):
        own_seed = make_seed(seed, epoch, int(indices[0]), stream=Stream.AUGMENTATION)
        unit, labels = augmentation(unit, labels, seed=own_seed)
        augmentation = augmentation.then
    images = unit if normalization is None else normalization.standardize(unit)
    if augmentation is not None:
        numbers = uniform(seed, epoch, indices, count_draws(augmentation), stream=Stream.AUGMENTATION)
        numbers[:, :shared_draws] = numbers[:1, :shared_draws]  # as for the first image
        images = augmentation(images, numbers)
    return images, labels
