"""Stored latents with their labels. `fresh` has sources that draw other latents in every epoch."""

import math
import os
from collections.abc import Sequence
from typing import ClassVar, Protocol, TypeVar

import torch

from .. import draws
from ..draws import Stream
from ..generators.contract import ImageGenerator
from ..storage.files import TensorFile, all_finite, open_tensors
from .coded import CODES, CodedRows, coded_tensors, read_coded
from .files import StoredRows, encode, save_files, stored_files

_SHARD_BYTES = 2**28  # a million float16 latents of width 128: a modest amount to hold in memory, or to send again
_SUM_ERROR = 0.01  # of probabilities that were rounded: bfloat16 keeps 8 bits

Matrix = torch.Tensor | StoredRows | CodedRows
Column = TypeVar("Column")


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
        latents: floats `[N, latent_dim]`, in memory or left in their files (see `load`), or integers as codes.
        labels: int64 `[N]`; the class that conditions the generator.
        soft_labels: class probabilities `[N, num_classes]` that a classifier is to learn in place of the labels; each
            row sums to one. In memory or left in their files, as latents are.
        source_index: int64 `[N]`; the real image (its place in the training set) each latent stands for.

    Raises:
        ValueError: an empty set, another shape or type, NaN or infinite values, negative labels, or a row of soft
            labels that are no probabilities.
    """

    fresh: ClassVar[bool] = False

    def __init__(
        self,
        latents: Matrix,
        labels: torch.Tensor,
        *,
        soft_labels: Matrix | None = None,
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
            if isinstance(soft_labels, torch.Tensor):  # else as they are read
                _check_probabilities(soft_labels, torch.arange(len(soft_labels)))
        self._latents = latents.detach() if isinstance(latents, torch.Tensor) else latents
        self.labels = labels
        self._soft_labels = soft_labels.detach() if isinstance(soft_labels, torch.Tensor) else soft_labels
        self.source_index = source_index

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"LatentSet({len(self)} latents of width {self.latent_dim}, {self.num_classes} classes)"

    @property
    def latents(self) -> torch.Tensor:
        """All latents `[N, latent_dim]`; where they are left in their files, every access reads them again."""
        return self._latents[:]

    @property
    def soft_labels(self) -> torch.Tensor | None:
        """All soft labels `[N, num_classes]`, if any; read at every access as `latents` are."""
        return None if self._soft_labels is None else self._soft_labels[:]

    @property
    def coded(self) -> bool:
        """Whether latents are integers that `save` writes as codes."""
        return isinstance(self._latents, CodedRows)

    @property
    def storage(self) -> str:
        """How `save` stores latents by default: `codes` or `float16`."""
        return CODES if self.coded else "float16"

    @property
    def latent_dim(self) -> int:
        return self._latents.shape[1]

    @property
    def num_classes(self) -> int:
        """Width of the soft labels, or the largest label plus one where there are none."""
        return int(self.labels.max()) + 1 if self._soft_labels is None else self._soft_labels.shape[1]

    @property
    def images_per_class(self) -> list[int]:
        """How many latents each class has."""
        counts: list[int] = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return counts

    @property
    def in_class_order(self) -> bool:
        """Whether neighbours differ in class at most half as often as they would in a random order."""
        changes, counts = int((self.labels.diff() != 0).sum()), self.labels.bincount()
        return 2 * changes * len(self) <= len(self) ** 2 - int(counts.square().sum())

    def shuffled(self) -> "LatentSet":
        """The same latents in a fixed random order, in memory.

        Scripts take the first 1,000 images, or the last tenth, for a sample of all classes, as in real CIFAR they are.
        """
        return self.select(draws.permutation(0, 0, len(self), stream=Stream.LATENT_ORDER))

    def batch(self, indices: torch.Tensor, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents float32 `[B, latent_dim]` and labels `[B]`; `epoch` has no effect on stored latents."""
        indices = indices.to(self.labels.device)
        return self._latents[indices].to(torch.float32), self.labels[indices]

    def soft_batch(self, indices: torch.Tensor) -> torch.Tensor:
        """Soft labels, float32 `[B, num_classes]`.

        Raises:
            ValueError: the set has none, or rows that are no probabilities.
        """
        if self._soft_labels is None:
            raise ValueError("these latents have no soft labels; give LatentSet soft_labels=")
        rows = self._soft_labels[indices].to(torch.float32)
        if not isinstance(self._soft_labels, torch.Tensor):
            _check_probabilities(rows, indices)
        return rows

    def select(self, indices: torch.Tensor) -> "LatentSet":
        """The latents at `indices` (int64 places or a boolean mask), in memory."""
        return LatentSet(
            _rows(self._latents, indices),
            self.labels[indices],
            soft_labels=None if self._soft_labels is None else self._soft_labels[indices],
            source_index=None if self.source_index is None else self.source_index[indices],
        )

    @staticmethod
    def concatenate(parts: Sequence["LatentSet"]) -> "LatentSet":
        """Several sets one after the other, such as classes or subsets learnt apart.

        What is left in its files in every part stays there.

        Raises:
            ValueError: no parts, different widths, or an optional column that only some parts have.
        """
        if not parts:
            raise ValueError("nothing to concatenate; expected at least one LatentSet")
        soft_labels: list[Matrix] = _all_or_none("soft_labels", [part._soft_labels for part in parts])
        source_index = _all_or_none("source_index", [part.source_index for part in parts])
        return LatentSet(
            _join("latents", [part._latents for part in parts]),
            torch.cat([part.labels for part in parts]),
            soft_labels=_join("soft_labels", soft_labels) if soft_labels else None,
            source_index=torch.cat(source_index) if source_index else None,
        )

    @staticmethod
    def drawn_from(source: LatentSource, epoch: int = 0) -> "LatentSet":
        """What a source gives in one epoch, stored: a fixed set in place of fresh draws.

        Its images can be made once and kept; those of a fresh source are made anew every epoch.
        """
        return LatentSet(*source.batch(torch.arange(len(source)), epoch))

    def save(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        *,
        max_shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        """Write a safetensors file, atomically, or several and their index, of which a killed save leaves no mixture.

        A set that does not fit into `max_shard_bytes` goes to shards beside `path`: for `latents.safetensors` they are
        `latents-00001-of-000NN.safetensors`, each of them a LatentSet file of its own, and
        `latents.safetensors.index.json` names them with their sizes.

        Args:
            path: where to; an older set of that name is replaced.
            dtype: how latents are stored; by default codes as codes, in one file, and floats as float16. float32 is
                exact, float16 keeps 11 bits, int8 stores `round(latents / scale)` with one symmetric scale a dimension
                and file, so errs by `scale / 2` at most.
            max_shard_bytes: the largest file to write, header apart; also what is held in memory at a time.

        Raises:
            ValueError: another dtype, a latent beyond float16's range, or a shard size below one byte.
        """
        if max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
        if dtype is None and isinstance(self._latents, CodedRows):
            save_files(path, [{**coded_tensors(self._latents, self.labels), **self._columns(slice(None))}], 1)
            return
        dtype = dtype or torch.float16
        first_row = self._stored(slice(0, 1), dtype)
        row_bytes = sum(tensor.nbytes for name, tensor in first_row.items() if name != "latent_scale")
        num_files = math.ceil(len(self) / max(1, max_shard_bytes // row_bytes))
        rows = math.ceil(len(self) / num_files)
        parts = (self._stored(slice(first, first + rows), dtype) for first in range(0, len(self), rows))
        save_files(path, parts, num_files)

    def _stored(self, rows: slice, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The tensors of a file that holds `rows`."""
        return {"labels": self.labels[rows], **encode(self._latents[rows], dtype), **self._columns(rows)}

    def _columns(self, rows: slice) -> dict[str, torch.Tensor]:
        """What is optional in a file that holds `rows`."""
        tensors = {}
        if self._soft_labels is not None:
            tensors["soft_labels"] = self._soft_labels[rows]
        if self.source_index is not None:
            tensors["source_index"] = self.source_index[rows]
        return tensors

    @staticmethod
    def load(path: str | os.PathLike[str], mmap: bool = False) -> "LatentSet":
        """Read what `save` wrote, from one file or from shards.

        Args:
            path: what `save` was given.
            mmap: leave latents and soft labels in their files as they are stored, rather than in memory as float32.
                Opening reads labels and `source_index` (16 bytes a latent); a batch reads, dequantises and checks its
                own rows. Copies and pickles of the set hold paths in place of them. Files that change while they are
                in use are found out (RuntimeError).

        Raises:
            FileNotFoundError: there is neither such a file nor an index of its shards.
            ValueError: a file is missing, truncated, lacks latents or labels, or holds invalid ones. With `mmap`, NaN
                and infinity are found by the batch that reads them.
        """
        return read_set([open_tensors(file) for file in stored_files(path)], mmap=mmap)


def read_set(files: Sequence[TensorFile], *, mmap: bool = False) -> LatentSet:
    """The set in these files, one after the other; `mmap` and errors as for `LatentSet.load`."""
    shards = [_open_set(file) for file in files]
    try:
        stored = LatentSet.concatenate(shards)
    except ValueError as error:
        raise ValueError(f"{files[0].path} and the shards after it do not belong together: {error}") from error
    if mmap or stored.coded:
        return stored
    assert isinstance(stored._latents, StoredRows)
    return LatentSet(
        stored._latents.read(slice(None), torch.float32),  # converted file by file, and held once
        stored.labels,
        soft_labels=stored.soft_labels,
        source_index=stored.source_index,
    )


def check_fit(latents: LatentSource, generator: ImageGenerator) -> None:
    """Refuse latents that the generator cannot take.

    Raises:
        ValueError: latents of another width than the generator's, or a label beyond its classes.
    """
    if latents.latent_dim != generator.latent_dim:
        raise ValueError(
            f"the generator takes latents of width {generator.latent_dim}, got {latents.latent_dim}; "
            "use the generator they were made for"
        )
    if (largest := int(latents.labels.max())) >= generator.num_classes:
        raise ValueError(f"labels must lie in 0..{generator.num_classes - 1} for this generator, got {largest}")


def _check_floats(name: str, values: Matrix) -> None:
    if isinstance(values, CodedRows):
        return
    if isinstance(values, StoredRows):
        return  # its type was checked when it was opened, its values are as they are read
    if values.ndim != 2 or not values.is_floating_point() or values.numel() == 0:
        raise ValueError(f"{name} must be a non-empty float tensor [N, width], got {values.dtype} {list(values.shape)}")
    if not all_finite(values):
        broken = (~values.isfinite().all(dim=1)).nonzero()
        raise ValueError(f"{name} must be finite, got NaN or infinity in {len(broken)} rows (first: {int(broken[0])})")


def _check_probabilities(rows: torch.Tensor, places: torch.Tensor) -> None:
    sums = rows.float().sum(dim=1)
    wrong = ((sums - 1).abs() > _SUM_ERROR) | (rows < 0).any(dim=1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"soft_labels must be probabilities, which are not negative and sum to 1 in each row; row {places[first]} "
            f"sums to {sums[first]:.4g} with {rows[first].min():.4g} its lowest; take the softmax of logits"
        )


def _check_integers(name: str, values: torch.Tensor, count: int) -> None:
    if values.dtype != torch.int64 or values.shape != (count,):
        raise ValueError(f"{name} must be int64 [{count}], got {values.dtype} {list(values.shape)}")
    if values.min() < 0:
        raise ValueError(f"{name} must not be negative, got {int(values.min())}")


def _all_or_none(name: str, columns: Sequence[Column | None]) -> list[Column]:
    present = [column for column in columns if column is not None]
    if present and len(present) < len(columns):
        raise ValueError(f"{len(present)} of {len(columns)} parts have {name}; expected all of them or none")
    return present


def _join(name: str, matrices: Sequence[Matrix]) -> Matrix:
    if len(widths := {matrix.shape[1] for matrix in matrices}) > 1:
        raise ValueError(f"all parts must have {name} of one width, got {sorted(widths)}")
    coded = [matrix for matrix in matrices if isinstance(matrix, CodedRows)]
    if len(coded) == len(matrices) and len({id(matrix.context) for matrix in coded}) == 1:
        return CodedRows(torch.cat([matrix.codes for matrix in coded]), coded[0].context)
    stored = [matrix for matrix in matrices if isinstance(matrix, StoredRows)]
    if len(stored) == len(matrices):
        return StoredRows.concatenate(stored)
    return torch.cat([matrix[:] for matrix in matrices])


def _rows(matrix: Matrix, indices: torch.Tensor) -> Matrix:
    """Some rows, in memory; codes stay codes."""
    return matrix.select(indices) if isinstance(matrix, CodedRows) else matrix[indices]


def _open_coded(file: TensorFile) -> LatentSet:
    """The set in one file of codes, all of it in memory."""
    tensors = file.read()
    columns = {name: tensors.pop(name).clone() for name in ("soft_labels", "source_index") if name in tensors}
    try:
        rows, labels = read_coded(tensors)
        return LatentSet(rows, labels, **columns)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _open_set(file: TensorFile) -> LatentSet:
    """The set in one file, its latents and soft labels left there, unless they are coded."""
    if CODES in file.infos:
        return _open_coded(file)
    if missing := {"latents", "labels"} - set(file.infos):
        raise ValueError(f"{file.path} has no {' and no '.join(sorted(missing))}; it is not a LatentSet file")
    latents = StoredRows.open(file, "latents")
    soft_labels = StoredRows.open(file, "soft_labels") if "soft_labels" in file.infos else None
    columns = file.read(*({"labels", "source_index"} & set(file.infos)))
    try:
        return LatentSet(latents, **columns, soft_labels=soft_labels)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
