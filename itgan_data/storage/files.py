"""Files that are either whole or absent: atomic writes, checksums, JSON and safetensors.

What is read may come from anyone: it is checked against limits before it takes memory, and refused with a ValueError.
"""

import codecs
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

MAX_JSON_BYTES = 4 << 20  # parsed, it takes some 100 MB at worst
_MAX_INTEGER_DIGITS = 20  # of 64 bits
_MAX_DIMENSIONS = 8
_ERROR_NUMBER = re.compile(r"(?:Errno|os error|Os { code:) (\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorInfo(NamedTuple):
    """What is known of a tensor before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def check_writable(path: str | os.PathLike[str], *, folder: bool) -> None:
    """Know before long work that its results can be written: try it at the nearest folder that exists.

    Args:
        path: where a file will be, or a folder.
        folder: which of the two.

    Raises:
        ValueError: something else is there, or nothing can be written.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise ValueError(f"{path} is a {'file; expected a folder' if folder else 'folder; expected a file'}")
        places = (path, *path.absolute().parents) if folder else path.absolute().parents
        nearest = next(place for place in places if place.exists())
        # Named as `write_atomically` names its temporary files, as a longer name may be too long.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}." if nearest != path else None, dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_named(path):
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600, which would hide a published bundle from other users
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def full_disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around code that writes `path`: whatever reports a full disk, it becomes an OSError of one line.

    Errors of safetensors are no OSErrors, and errors of `shutil.copytree` have no number; both have it in their text.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        found = _ERROR_NUMBER.search(str(error))
        number = int(found[1]) if found else None
        if number not in _FULL:
            raise
        raise OSError(number, f"{os.strerror(number)}; free some space, nothing was replaced", str(path)) from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it.

    NaN goes through minimum and maximum, which are found in one pass; `isfinite` makes a mask as long as the tensor,
    and takes some 25 times as long.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 of names, types, shapes and values: equal tensors have equal fingerprints."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(path: str | os.PathLike[str], checksums: object) -> None:
    """Compare a file with the checksum that `checksums`, read from a configuration, holds under its name.

    Raises:
        ValueError: there is none, or the file has another.
    """
    path = Path(path)
    expected = checksums.get(path.name) if isinstance(checksums, dict) else None
    if sha256_of(path) != expected:
        reason = (
            disguise(path) or "does not match its sha256 in the configuration; remove it and fetch or make it again"
        )
        raise ValueError(f"{path} {reason}")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object: at most `MAX_JSON_BYTES`, no key twice, no NaN, no number beyond 64 bits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such an object.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes of JSON, expected at most {MAX_JSON_BYTES}")
    try:
        content = _parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, with a byte-order mark or without, or in UTF-16 with one, as Windows writes them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text.
    """
    content = Path(path).read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object, atomically, with the keys in the order given."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """`(dotted field, stored value, wanted value)` wherever two JSON objects differ."""
    for name in sorted(stored.keys() | wanted.keys()):
        left, right = stored.get(name), wanted.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differences(left, right, f"{prefix}{name}.")
        elif left != right:
            yield prefix + name, left, right


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, atomically. Equal tensors give equal bytes (no metadata is stored)."""
    with write_atomically(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A safetensors file that was found to be sound. What it holds is known; tensors are read when asked for."""

    path: Path
    infos: dict[str, TensorInfo]
    offsets: dict[str, int]
    """Bytes in the file before each tensor's values."""
    _file: Any

    def read(self, *names: str) -> dict[str, torch.Tensor]:
        """These tensors, by default all, on the CPU. Pages of the file are read when a value is looked at."""
        return {name: self._file.get_tensor(name) for name in names or self.infos}


def open_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Open a safetensors file; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():  # opening a pipe would wait for its other end
        raise FileNotFoundError(f"{path} does not exist")
    try:
        start, header = _read_header(path)
        file: Any = safe_open(path, framework="pt")  # compares shapes, types and offsets with each other and the file
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        infos = {name: _tensor_info(name, part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except (ValueError, RecursionError, SafetensorError) as error:
        reason = disguise(path) or f"is truncated or not a safetensors file ({error}); fetch or make it again"
        raise ValueError(f"{path} {reason}") from error
    offsets = {name: start + header[name]["data_offsets"][0] for name in infos}
    return TensorFile(path=path, infos=infos, offsets=offsets, _file=file)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises: see `open_tensors`."""
    return open_tensors(path).read()


def disguise(path: Path) -> str | None:
    """What a failed download has left in place of a file of tensors, and what to do; None for any other file."""
    with open(path, "rb") as file:
        start = file.read(256).lstrip().lower()
    if not start:
        return "is empty; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file that it stands for; run `git lfs pull` where it was cloned"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not the file itself; download it from the link to the raw file, logged in if need be"
    return None


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and the header, for two checks that safetensors does not make.

    It accepts headers of 100 MB, and takes the last of equal keys, where another reader may take the first.

    Source: the format's description at https://github.com/huggingface/safetensors#format.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_JSON_BYTES, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        return 8 + length, _parse_json(file.read(length).decode("utf-8"))


def _tensor_info(name: str, dtype: str, shape: list[int]) -> TensorInfo:
    if dtype not in _DTYPES or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name[:80]!r} is {dtype} of {len(shape)} dimensions")
    return TensorInfo(_DTYPES[dtype], tuple(shape))


def _parse_json(text: str) -> Any:
    """JSON of which every reader has the same understanding."""
    return json.loads(
        text,
        object_pairs_hook=_distinct_keys,
        parse_int=_parse_integer,
        parse_float=_parse_float,
        parse_constant=_parse_float,
    )


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return content


def _parse_integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} where a finite number is expected")
    return value
