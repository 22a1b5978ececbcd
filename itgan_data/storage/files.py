"""Files that are either whole or absent: atomic writes, checksums, JSON and safetensors.

What is read may come from anyone: it is checked against limits before it takes memory, and refused with a ValueError.
"""

import codecs
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

MAX_JSON_BYTES = 4 << 20  # parsed, it takes some 100 MB at worst
_MAX_INTEGER_DIGITS = 20  # of 64 bits
_MAX_DIMENSIONS = 8
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
        folder: which of both.

    Raises:
        ValueError: something else is there, or nothing can be written.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            raise ValueError(f"{path} is a {'file; expected a folder' if folder else 'folder; expected a file'}")
        places = (path, *path.absolute().parents) if folder else path.absolute().parents
        nearest = next(place for place in places if place.exists())
        # A name like those of temporary files beside it, as a longer one may be too long.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}." if nearest != path else None, dir=nearest):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp gives 0600, which would hide a published bundle from other users
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        raise ValueError(f"{path} does not match its sha256 in the configuration; remove it and get it again")


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


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """What a safetensors file holds: dtypes and shapes, in agreement with its size. No tensor is read.

    Source: the format's description at https://github.com/huggingface/safetensors#format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return _read_header(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); get it again") from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged or of another format.
    """
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); get it again") from error


def _read_header(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_JSON_BYTES, size - 8):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = _parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError(f"the header is a {type(header).__name__}")
    header.pop("__metadata__", None)
    tensors = {name: _tensor_info(name, entry) for name, entry in header.items()}
    end = 0
    for begin, following in sorted(entry["data_offsets"] for entry in header.values()):
        if begin != end:
            raise ValueError(f"the data have a gap or overlap at byte {end}")
        end = following
    if end != size - 8 - length:
        raise ValueError(f"the header describes {end} bytes of data, the file has {size - 8 - length}")
    return tensors


def _tensor_info(name: str, entry: object) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            counts = all(type(value) is int and value >= 0 for value in (*shape, begin, end))
            if dtype in _DTYPES and counts and len(shape) <= _MAX_DIMENSIONS:
                if math.prod(shape) * _DTYPES[dtype].itemsize != end - begin:
                    raise ValueError(f"{name[:80]!r} is {dtype} {shape} but has {end - begin} bytes")
                return TensorInfo(_DTYPES[dtype], tuple(shape))
    raise ValueError(f"the header's entry {name[:80]!r} is not that of a tensor")


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
