"""Latents on disk: how they are encoded, rows read when asked for, and sets spread over several files."""

import functools
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from ..storage.files import TensorFile, all_finite, read_json, save_tensors, write_atomically, write_json

STORAGE_DTYPES = (torch.float32, torch.float16, torch.int8)
_MAX_INT8 = 127


@dataclass(frozen=True, eq=False, kw_only=True)
class _FileRows:
    """The rows of a matrix that are in one file."""

    name: str
    path: Path
    offset: int  # bytes before the first row
    count: int
    width: int
    stored_dtype: torch.dtype
    scale: torch.Tensor | None  # float32 [width], what int8 is multiplied by
    stamp: tuple[int, int]  # of the file when it was opened

    @property
    def dtype(self) -> torch.dtype:
        return self.stored_dtype if self.scale is None else self.scale.dtype

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        row_bytes = self.width * self.stored_dtype.itemsize
        values = torch.empty(len(rows), self.width, dtype=self.stored_dtype)
        content = values.view(-1).view(torch.uint8).numpy().data
        starts = [0, *((rows.diff() != 1).nonzero().flatten() + 1).tolist()]  # of runs of consecutive rows
        num_read = 0
        with io.BufferedReader(open(self.path, "rb", buffering=0), row_bytes) as file:
            for row, (start, stop) in zip(rows[starts].tolist(), pairwise([*starts, len(rows)]), strict=True):
                file.seek(self.offset + row * row_bytes)
                num_read += file.readinto(content[start * row_bytes : stop * row_bytes])
            # The offset was found in the header of the file that was opened first; another file of that name may have
            # other values there, and nothing in the bytes would tell.
            if num_read < len(content) or _stamp(os.fstat(file.fileno())) != self.stamp:
                raise RuntimeError(f"{self.path} has changed since it was opened; load the latents again")
        if self.scale is not None:
            values = values * self.scale
        if not all_finite(values):
            broken = rows[~values.isfinite().all(dim=1)]
            raise ValueError(
                f"{self.path}: {self.name} must be finite, got NaN or infinity in {len(broken)} of {len(rows)} rows "
                f"read (first: {int(broken[0])}); the file is damaged, fetch or make it again"
            )
        return values


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A float matrix `[N, width]` left in its files; indexing it reads the rows asked for and checks them.

    Rows are read by their position. `safe_open(...).get_slice(name)` gives rows too, but through a memory map: a map
    takes in what lies around each row (megabytes, where the kernel reads ahead or keeps files in large pages) and
    counts it as resident, and a file cut short under it ends the process; nor can the open file be sent to a worker.
    This holds paths, so it is cheap to copy and to pickle.
    """

    parts: tuple[_FileRows, ...]

    @staticmethod
    def open(file: TensorFile, name: str) -> "StoredRows":
        """The matrix `name` of a safetensors file; its values are not read.

        Raises:
            ValueError: no float matrix, an empty one, or int8 without a finite float32 `latent_scale` `[width]`.
        """
        dtype, shape = file.infos[name]
        scale = None
        if dtype == torch.int8:
            if file.infos.get("latent_scale") == (torch.float32, shape[1:]):
                scale = file.read("latent_scale")["latent_scale"].clone()
            if scale is None or not all_finite(scale):
                raise ValueError(f"{file.path} holds int8 {name} without a finite float32 latent_scale; it is damaged")
        if len(shape) != 2 or 0 in shape or not (scale is not None or dtype.is_floating_point):
            raise ValueError(f"{file.path}: {name} must be a non-empty float tensor [N, width], got {file.infos[name]}")
        rows = _FileRows(
            name=name,
            path=file.path.absolute(),
            offset=file.offsets[name],
            count=shape[0],
            width=shape[1],
            stored_dtype=dtype,
            scale=scale,
            stamp=_stamp(file.path.stat()),
        )
        return StoredRows((rows,))

    @staticmethod
    def concatenate(matrices: Sequence["StoredRows"]) -> "StoredRows":
        """Matrices of one width, one after the other; nothing is read."""
        return StoredRows(tuple(part for matrix in matrices for part in matrix.parts))

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.count for part in self.parts), self.parts[0].width

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that are read: as stored, float32 for int8."""
        return functools.reduce(torch.promote_types, (part.dtype for part in self.parts))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """Rows in their `dtype`, as `read` gives them."""
        return self.read(indices, self.dtype)

    def read(self, indices: torch.Tensor | slice, dtype: torch.dtype) -> torch.Tensor:
        """Rows at int64 places `[B]`, a boolean mask `[N]` or a slice, as a tensor in memory.

        Raises:
            IndexError: a place out of range.
            ValueError: a row that is not finite.
            RuntimeError: a file that has changed since it was opened.
        """
        if isinstance(indices, slice):
            indices = torch.arange(len(self))[indices]
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        indices = indices.cpu()
        places = torch.where(indices < 0, indices + len(self), indices)
        outside = (places < 0) | (places >= len(self))
        if outside.any():
            raise IndexError(f"index {int(indices[outside][0])} is out of range for {len(self)} rows")
        rows = torch.empty(len(places), self.shape[1], dtype=dtype)
        ends = torch.tensor([part.count for part in self.parts]).cumsum(0)
        part_of = torch.bucketize(places, ends, right=True)
        for number in sorted(set(part_of.tolist())):
            part, here = self.parts[number], (part_of == number).nonzero().flatten()
            values = part.read(places[here] - (ends[number] - part.count))
            if int(here[-1] - here[0]) + 1 == len(here):  # as in a slice: converted as they are copied, all at once
                rows[int(here[0]) : int(here[-1]) + 1] = values
            else:
                rows[here] = values.to(dtype)
        return rows


def encode(latents: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file that `StoredRows.open` takes, for latents `[N, latent_dim]` stored as `dtype`.

    Raises:
        ValueError: a dtype not in `STORAGE_DTYPES`, or a latent beyond float16's range.
    """
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"dtype must be one of {STORAGE_DTYPES}, got {dtype}")
    if dtype == torch.int8:
        latents = latents.float()
        scale = (latents.abs().amax(dim=0) / _MAX_INT8).clamp(min=torch.finfo(torch.float32).tiny)
        return {"latents": (latents / scale).round().to(torch.int8), "latent_scale": scale}
    stored = latents.to(dtype)
    if not all_finite(stored):
        raise ValueError(f"a latent of {latents.abs().max():.3g} overflows {dtype}; use float32")
    return {"latents": stored}


def stored_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a set that was saved as `path`: that file or, where there is none, the shards its index names.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the index is damaged, or a shard is missing or of another size than the index says.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not (index := _index_path(path)).is_file():
        raise FileNotFoundError(f"{path} does not exist, nor does {index.name}")
    sizes = read_json(index).get("shards")
    if isinstance(sizes, dict) and any(type(size) is not int for size in sizes.values()):
        raise ValueError(f"{index} must give the size of every shard in bytes; it is damaged")
    shards = _shard_paths(path, len(sizes)) if isinstance(sizes, dict) else []
    # Names follow from the number of shards, so an index cannot lead out of its folder or to a file twice.
    if not isinstance(sizes, dict) or not sizes or list(sizes) != [shard.name for shard in shards]:
        raise ValueError(
            f"{index} must name {path.stem}-00001-of-000NN{path.suffix} and so on, in order; it is damaged"
        )
    for shard in shards:
        size = shard.stat().st_size if shard.is_file() else None
        if size is None or size != sizes[shard.name]:
            raise ValueError(
                f"{shard} is {'missing' if size is None else f'of {size} bytes'}, expected {sizes[shard.name]} bytes "
                f"by {index.name}; the set is incomplete, fetch or make it again"
            )
    return shards


def save_files(path: str | os.PathLike[str], parts: Iterable[Mapping[str, torch.Tensor]], num_parts: int) -> None:
    """Write a set as the file `path` or, in more than one part, as shards and, when all are there, their index.

    At every moment `stored_files` finds the old set whole, the new one whole or, while shards take the place of
    older shards, none. What belonged to the old set alone is removed.

    Args:
        path: where to; shards and index get their names from it.
        parts: the tensors of each file; each is written before the next is asked for.
        num_parts: how many there are.
    """
    path = Path(path)
    index = _index_path(path)
    if num_parts == 1:
        (tensors,) = parts
        save_tensors(path, tensors)
        shards = []
        index.unlink(missing_ok=True)
    else:
        shards = _shard_paths(path, num_parts)
        with ExitStack() as renames:
            for shard, tensors in zip(shards, parts, strict=True):
                save_tensors(renames.enter_context(write_atomically(shard)), tensors)
            index.unlink(missing_ok=True)  # it would vouch for a mixture of old and new shards
        write_json(index, {"shards": {shard.name: shard.stat().st_size for shard in shards}})
        path.unlink(missing_ok=True)
    pattern = re.compile(re.escape(path.stem) + r"-\d{5,}-of-\d{5,}" + re.escape(path.suffix))
    for file in path.parent.iterdir():
        if pattern.fullmatch(file.name) and file not in shards:
            file.unlink()


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _shard_paths(path: Path, count: int) -> list[Path]:
    return [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(1, count + 1)]


def _stamp(status: os.stat_result) -> tuple[int, int]:
    """Size and time of change: another file of the same name rarely has the same."""
    return status.st_size, status.st_mtime_ns
