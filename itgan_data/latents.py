"""What a generator is asked for: latents and labels, stored (`LatentSet`) or drawn anew (`RandomLatents`)."""

import math
import os
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch

from . import draws
from .files import load_tensors, save_tensors

STORAGE_DTYPES = (torch.float32, torch.float16, torch.int8)
_MAX_INT8 = 127
_STREAM = 1  # keeps latents independent of other draws from the same (seed, epoch, index)


class LatentSource(Protocol):
    """What a data set needs of its latents."""

    fresh: ClassVar[bool]
    """Whether the latents of an index change with the epoch."""

    @property
    def latent_dim(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]: ...


class LatentSet:
    """Stored latents with their labels: the condensed data set.

    Args:
        latents: floats `[N, latent_dim]`.
        labels: int64 `[N]`; the class that conditions the generator.
        soft_labels: class probabilities or logits `[N, num_classes]`, where a method learnt them.
        source_index: int64 `[N]`; the real image (its place in the training set) each latent stands for.

    Raises:
        ValueError: an empty set, another shape or type, NaN or infinite values, negative labels.
    """

    fresh: ClassVar[bool] = False

    def __init__(
        self,
        latents: torch.Tensor,
        labels: torch.Tensor,
        *,
        soft_labels: torch.Tensor | None = None,
        source_index: torch.Tensor | None = None,
    ) -> None:
        _check_floats("latents", latents)
        _check_integers("labels", labels, len(latents))
        if source_index is not None:
            _check_integers("source_index", source_index, len(latents))
        if soft_labels is not None:
            _check_floats("soft_labels", soft_labels)
            if len(soft_labels) != len(labels) or soft_labels.shape[1] <= int(labels.max()):
                raise ValueError(
                    f"soft_labels must be [{len(labels)}, num_classes > {int(labels.max())}], "
                    f"got {list(soft_labels.shape)}"
                )
        self.latents = latents.detach()
        self.labels = labels
        self.soft_labels = None if soft_labels is None else soft_labels.detach()
        self.source_index = source_index

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"LatentSet({len(self)} latents of width {self.latent_dim}, {self.num_classes} classes)"

    @property
    def latent_dim(self) -> int:
        return self.latents.shape[1]

    @property
    def num_classes(self) -> int:
        """Width of the soft labels, or the largest label plus one where there are none."""
        return int(self.labels.max()) + 1 if self.soft_labels is None else self.soft_labels.shape[1]

    @property
    def images_per_class(self) -> list[int]:
        """How many latents each class has."""
        counts: list[int] = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return counts

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]`; `epoch` has no effect on stored latents."""
        indices = indices.to(self.labels.device)
        return self.latents[indices].to(torch.float32), self.labels[indices]

    def select(self, indices: torch.Tensor) -> "LatentSet":
        """The latents at `indices` (int64 places or a boolean mask)."""
        return LatentSet(
            self.latents[indices],
            self.labels[indices],
            soft_labels=None if self.soft_labels is None else self.soft_labels[indices],
            source_index=None if self.source_index is None else self.source_index[indices],
        )

    @staticmethod
    def concatenate(parts: Sequence["LatentSet"]) -> "LatentSet":
        """Several sets one after the other, such as classes or subsets learnt apart.

        Raises:
            ValueError: no parts, different latent widths, or an optional column that only some parts have.
        """
        if not parts:
            raise ValueError("nothing to concatenate; expected at least one LatentSet")
        if len(widths := {part.latent_dim for part in parts}) > 1:
            raise ValueError(f"all parts must have one latent width, got {sorted(widths)}")
        return LatentSet(
            torch.cat([part.latents for part in parts]),
            torch.cat([part.labels for part in parts]),
            soft_labels=_concatenate_column("soft_labels", [part.soft_labels for part in parts]),
            source_index=_concatenate_column("source_index", [part.source_index for part in parts]),
        )

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float16) -> None:
        """Write a safetensors file, atomically.

        Args:
            path: where to.
            dtype: how latents are stored. float32 is exact, float16 keeps 11 bits, int8 stores
                `round(latents / scale)` with one symmetric scale a dimension, so errs by `scale / 2` at most.

        Raises:
            ValueError: another dtype, or a latent beyond float16's range.
        """
        tensors = {"labels": self.labels}
        if dtype == torch.int8:
            latents = self.latents.float()
            scale = (latents.abs().amax(dim=0) / _MAX_INT8).clamp(min=torch.finfo(torch.float32).tiny)
            tensors |= {"latents": (latents / scale).round().to(torch.int8), "latent_scale": scale}
        elif dtype in STORAGE_DTYPES:
            tensors["latents"] = self.latents.to(dtype)
            if not tensors["latents"].isfinite().all():
                raise ValueError(f"a latent of {self.latents.abs().max():.3g} overflows {dtype}; use float32")
        else:
            raise ValueError(f"dtype must be one of {STORAGE_DTYPES}, got {dtype}")
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        if self.source_index is not None:
            tensors["source_index"] = self.source_index
        save_tensors(path, tensors)

    @staticmethod
    def load(path: str | os.PathLike[str], mmap: bool = False) -> "LatentSet":
        """Read what `save` wrote.

        Args:
            path: the file.
            mmap: leave float16 latents as they are, backed by the file, rather than in memory as float32;
                a batch is float32 either way. Latents stored as int8 are always read into memory.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, lacks latents or labels, or holds invalid ones.
        """
        tensors = load_tensors(path)
        if missing := {"latents", "labels"} - set(tensors):
            raise ValueError(f"{path} has no {' and no '.join(sorted(missing))}; it is not a LatentSet file")
        latents = tensors["latents"]
        if latents.dtype == torch.int8:
            if "latent_scale" not in tensors or tensors["latent_scale"].shape != latents.shape[1:]:
                raise ValueError(
                    f"{path} holds int8 latents without a latent_scale [{latents.shape[-1]}]; it is damaged"
                )
            latents = latents.float() * tensors["latent_scale"]
        elif not mmap:
            latents = latents.to(torch.float32, copy=True)
        try:
            return LatentSet(
                latents,
                tensors["labels"],
                soft_labels=tensors.get("soft_labels"),
                source_index=tensors.get("source_index"),
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class RandomLatents:
    """Normal latents drawn anew every epoch, for training on a stream of GAN samples.

    Index i has label `i % num_classes` in every epoch, so classes are balanced. Its latent is a function of
    (seed, epoch, i) alone.

    Args:
        size: how many images count as an epoch.
        latent_dim: width of the generator's latents.
        num_classes: number of classes of the generator.
        truncation: draw from the normal distribution restricted to [-truncation, truncation] (BigGAN's
            truncation trick); less is cleaner and less varied.
        seed: any integer.
    """

    fresh: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        latent_dim: int,
        num_classes: int,
        *,
        truncation: float | None = None,
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
        self.labels = torch.arange(size) % num_classes

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"RandomLatents({len(self)}, {self.latent_dim}, {self.num_classes}, "
            f"truncation={self.truncation}, seed={self.seed})"
        )

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]` of one epoch."""
        labels = self.labels[indices.to(self.labels.device)]
        if self.truncation is None:
            return draws.normal(self.seed, epoch, indices, self.latent_dim, stream=_STREAM), labels
        unit = draws.uniform(self.seed, epoch, indices, self.latent_dim, stream=_STREAM)
        mass = math.erf(self.truncation / math.sqrt(2.0))
        latents = torch.erfinv((2.0 * unit - 1.0) * mass) * math.sqrt(2.0)  # inverse of the distribution
        return latents.clamp(-self.truncation, self.truncation), labels


def check_fit(latents: LatentSource, *, latent_dim: int, num_classes: int) -> None:
    """Refuse latents that a generator of `latent_dim` and `num_classes` cannot take.

    Raises:
        ValueError: latents of another width than the generator's, or a label beyond its classes.
    """
    if latents.latent_dim != latent_dim:
        raise ValueError(
            f"the generator takes latents of width {latent_dim}, got {latents.latent_dim}; "
            "use the generator they were made for"
        )
    if (largest := int(latents.labels.max())) >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1} for this generator, got {largest}")


def _check_floats(name: str, values: torch.Tensor) -> None:
    if values.ndim != 2 or not values.is_floating_point() or values.numel() == 0:
        raise ValueError(f"{name} must be a non-empty float tensor [N, width], got {values.dtype} {list(values.shape)}")
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} must be finite, got NaN or infinity in {int((~finite).sum())} rows (first: {row})")


def _check_integers(name: str, values: torch.Tensor, count: int) -> None:
    if values.dtype != torch.int64 or values.shape != (count,):
        raise ValueError(f"{name} must be int64 [{count}], got {values.dtype} {list(values.shape)}")
    if values.min() < 0:
        raise ValueError(f"{name} must not be negative, got {int(values.min())}")


def _concatenate_column(name: str, columns: list[torch.Tensor | None]) -> torch.Tensor | None:
    present = [column for column in columns if column is not None]
    if present and len(present) < len(columns):
        raise ValueError(f"{len(present)} of {len(columns)} parts have {name}; expected all of them or none")
    return torch.cat(present) if present else None
