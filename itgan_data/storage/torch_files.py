"""Files of `torch.save` that come from anyone: read as data, never as code, and within limits."""

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

MAX_BYTES = 4 << 30  # training checkpoints of a BigGAN for 256 px, with its optimizers, are half of this


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dictionary that `torch.save` wrote, to the CPU, with `weights_only`.

    The tensors in it, and in dictionaries in it, take no more memory than the file has bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load, is damaged, too large, or holds something else.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
    content = _load(path, size)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must hold a dictionary with names for keys, got {type(content).__name__}")
    inner = [value for value in content.values() if isinstance(value, Mapping)]
    values = [value for part in (content, *inner) for value in part.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if any(tensor.layout != torch.strided or tensor.device.type != "cpu" for tensor in tensors):
        raise ValueError(f"{path} holds a tensor that is sparse or without values; expected plain ones")
    if (total := sum(tensor.nbytes for tensor in tensors)) > size:  # views can repeat what is stored once
        raise ValueError(f"{path} describes {total} bytes of tensors, but has {size}")
    return dict(content)


def _load(path: Path, size: int) -> object:
    try:
        if (unpacked := _unpacked_bytes(path)) <= size:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about formats of the past
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damage shows itself as almost any
        raise ValueError(f"{path} is damaged or needs code to load, which is refused") from error
    raise ValueError(f"{path} has {size} bytes and unpacks to {unpacked}, which torch.save never writes")


def _unpacked_bytes(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # the format before PyTorch 1.6, which has no packing, or damaged
