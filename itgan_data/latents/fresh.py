"""Latents that change with the epoch: random ones, learned ones with noise, or a mixture of both.

Each is a `LatentSource` like any other and may be made of others. What an index gets is a function of
(seed, epoch, index) alone; its label is the same in every epoch. `LatentSet.drawn_from` stores one epoch.
"""

import math
from typing import ClassVar

import torch

from .. import draws
from ..draws import Stream
from ..images import check_labels
from .stored import LatentSource


class FreshSource:
    """What all fresh sources share: latents change with the epoch, and labels do not."""

    fresh: ClassVar[bool] = True
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


class RandomLatents(FreshSource):
    """Normal latents, drawn again every epoch, for training on a stream of GAN samples.

    Classes are balanced: index i has label `i % num_classes`, unless labels are given.

    Args:
        size: how many images count as an epoch.
        latent_dim: width of the generator's latents.
        num_classes: number of classes of the generator.
        truncation: draw from the normal distribution restricted to [-truncation, truncation] (BigGAN's
            truncation trick); less is cleaner and less varied.
        labels: int64 `[size]`, such as the labels of learned latents to mix with in `MixedLatents`.
        seed: any integer.

    Raises:
        ValueError: a size below one, truncation that is not positive, or labels that do not fit.
    """

    def __init__(
        self,
        size: int,
        latent_dim: int,
        num_classes: int,
        *,
        truncation: float | None = None,
        labels: torch.Tensor | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("size", size), ("latent_dim", latent_dim), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if truncation is not None and not truncation > 0:
            raise ValueError(f"truncation must be positive or None, got {truncation}")
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.truncation = truncation
        self.seed = seed
        self.labels = torch.arange(size) % num_classes if labels is None else labels
        check_labels(self.labels, size, num_classes)

    def __repr__(self) -> str:
        return (
            f"RandomLatents({len(self)}, {self.latent_dim}, {self.num_classes}, "
            f"truncation={self.truncation}, seed={self.seed})"
        )

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]` of one epoch."""
        labels = self.labels[indices.to(self.labels.device)]
        if self.truncation is None:
            return draws.normal(self.seed, epoch, indices, self.latent_dim, stream=Stream.LATENTS), labels
        unit = draws.uniform(self.seed, epoch, indices, self.latent_dim, stream=Stream.LATENTS)
        mass = math.erf(self.truncation / math.sqrt(2.0))
        latents = torch.erfinv((2.0 * unit - 1.0) * mass) * math.sqrt(2.0)  # inverse of the distribution
        return latents.clamp(-self.truncation, self.truncation), labels


class JitteredLatents(FreshSource):
    """Latents of another source with normal noise added, new in every epoch: many images around each learned one.

    Args:
        source: learned latents, or any others.
        std: of the noise, in the latents' unit (fresh draws have standard deviation 1).
        seed: any integer.

    Raises:
        ValueError: `std` is not positive.
    """

    def __init__(self, source: LatentSource, std: float, *, seed: int = 0) -> None:
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive, got {std}; without noise, use the latents themselves")
        self.source = source
        self.std = std
        self.seed = seed
        self.latent_dim = source.latent_dim
        self.num_classes = source.num_classes
        self.labels = source.labels

    def __repr__(self) -> str:
        return f"JitteredLatents({self.source!r}, {self.std}, seed={self.seed})"

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]` of one epoch."""
        latents, labels = self.source.batch(indices, epoch)
        noise = draws.normal(self.seed, epoch, indices.to(latents.device), self.latent_dim, stream=Stream.JITTER)
        return latents + self.std * noise, labels


class MixedLatents(FreshSource):
    """Learned latents, some of which are replaced by latents of a second source, others in every epoch.

    Args:
        source: learned latents, or any others.
        other: what replaces them, of the same labels: for fresh draws
            `RandomLatents(len(learned), latent_dim, num_classes, labels=learned.labels)`.
        share: probability, in [0, 1], that an index is replaced in an epoch.
        seed: any integer.

    Raises:
        ValueError: sources of other labels or widths, or a share out of range.
    """

    def __init__(self, source: LatentSource, other: LatentSource, *, share: float = 0.5, seed: int = 0) -> None:
        if source.latent_dim != other.latent_dim:
            raise ValueError(f"both must have latents of one width, got {source.latent_dim} and {other.latent_dim}")
        if not torch.equal(source.labels.cpu(), other.labels.cpu()):
            raise ValueError(
                f"both must have the same labels in the same order, got other ones ({len(source)} and {len(other)}); "
                "give RandomLatents labels="
            )
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share}")
        self.source = source
        self.other = other
        self.share = share
        self.seed = seed
        self.latent_dim = source.latent_dim
        self.num_classes = max(source.num_classes, other.num_classes)
        self.labels = source.labels

    def __repr__(self) -> str:
        return f"MixedLatents({self.source!r}, {self.other!r}, share={self.share}, seed={self.seed})"

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]` of one epoch; each source is asked for its part alone."""
        replaced = draws.uniform(self.seed, epoch, indices, 1, stream=Stream.MIXTURE)[:, 0] < self.share
        labels = self.labels[indices.to(self.labels.device)]
        latents = torch.empty(len(indices), self.latent_dim, dtype=torch.float32, device=labels.device)
        for source, chosen in ((self.source, ~replaced), (self.other, replaced)):
            if chosen.any():
                latents[chosen.to(latents.device)] = source.batch(indices[chosen], epoch)[0].to(latents.device)
        return latents, labels
