"""Files of `torch.save` that come from anyone: read as data, never as code, and within limits."""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import disguise

# A generator and its moving average may share what is stored, and so may layers. A view can repeat one number without
# end, and whoever copies it, as a change of dtype does, needs memory for all of them.
_MAX_REPEATS = 4
MAX_BYTES = 4 << 30  # training checkpoints of a BigGAN for 256 px, with its optimizers, are half of this


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dictionary that `torch.save` wrote, to the CPU, with `weights_only`.

    The tensors in it, and in dictionaries in it, take at most four times as much memory as the file has bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load, is damaged, too large, or is something else; says what it is.
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
    if (total := sum(tensor.nbytes for tensor in tensors)) > _MAX_REPEATS * size:
        raise ValueError(f"{path} describes {total} bytes of tensors, but has {size}")
    return dict(content)


def _load(path: Path, size: int) -> object:
    try:
        if (unpacked := _unpacked_bytes(path)) <= size:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about formats of the past
                return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # damage shows itself as almost any
        raise ValueError(f"{path} {disguise(path) or _reason(path, error)}") from error
    raise ValueError(f"{path} has {size} bytes and unpacks to {unpacked}, which torch.save never writes")


def _reason(path: Path, error: Exception) -> str:
    if found := re.search(r"GLOBAL (\S+)", str(error)):  # torch's word for a class or function that would be called
        return (
            f"holds whole objects ({found[1]:.80}), not tensors alone, and needs code to load, which is refused; save "
            "`module.state_dict()` where the module can be loaded"
        )
    with open(path, "rb") as file:
        if file.read(2) == b"PK" and not zipfile.is_zipfile(path):
            return "is truncated: it begins as a file of torch.save and its end is missing; download it again"
    return "is damaged, or no file of torch.save"


def _unpacked_bytes(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return 0  # the format before PyTorch 1.6, which has no packing, or damaged
