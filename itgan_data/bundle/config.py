"""What `config.json` of a bundle must say, checked before any other file is read."""

import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..generators.store import CONFIG_FILE, WEIGHTS_DTYPES, WEIGHTS_FILE
from ..images import Normalization
from ..latents.files import STORAGE_DTYPES, stored_files
from ..storage.files import TensorInfo, check_sha256, read_header, read_json

FORMAT = "itgan-data-bundle"
FORMAT_VERSION = 1
LATENTS_FILE = "latents.safetensors"
LATENTS_INDEX = "latents.safetensors.index.json"
REQUIRED_KEYS = ("dataset", "class_names", "normalization", "method", "training", "metrics")
LATENTS_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES}

_OBJECT_KEYS = ("generator", "image", "latents", "sha256")
_MAX_NAME = 200  # characters of a class, data set or method
_MAX_SHARDS = 4096
_RELEASE = re.compile(r"\d+(\.\d+){1,3}")


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the configuration in a bundle's folder.

    Raises:
        ValueError: it is missing, damaged, of another format or version, or says something impossible.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"bundle {folder} has no {CONFIG_FILE}; it is incomplete, get it again")
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {reprlib.repr(config.get('format'))}, expected {FORMAT!r}: a generator alone, or "
            "another's file; give the folder of a bundle, as `save_bundle` or `itgan-data condense` makes it"
        )
    _check_version(config, path)
    for key in _OBJECT_KEYS:
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{path} has no object {key!r}; it is damaged, get it again")
    check_values(config)
    _check_description(config, path)
    return config


def check_values(config: Mapping[str, Any]) -> None:
    """The part of a configuration that the maker of a bundle supplies is complete and of the right types.

    Raises:
        ValueError: a key is missing, or has a value that cannot be used.
    """
    if missing := [key for key in REQUIRED_KEYS if key not in config]:
        raise ValueError(f"the configuration of a bundle lacks {', '.join(missing)}")
    for key in ("dataset", "method"):
        if not _is_name(config[key]):
            raise ValueError(f"{key} must be a string of 1 to {_MAX_NAME} characters, got {reprlib.repr(config[key])}")
    names = config["class_names"]
    if not isinstance(names, (list, tuple)) or not all(_is_name(name) for name in names):
        raise ValueError(f"class_names must be strings of 1 to {_MAX_NAME} characters, got {reprlib.repr(names)}")
    for key in ("training", "metrics"):
        if not isinstance(config[key], Mapping):
            raise ValueError(f"{key} must be an object, got {type(config[key]).__name__}")
    normalization = config["normalization"]
    if not isinstance(normalization, Mapping) or set(normalization) != {"mean", "std"}:
        raise ValueError(f"normalization must be {{'mean': [...], 'std': [...]}}, got {reprlib.repr(normalization)}")
    for key, values in normalization.items():
        if not isinstance(values, (list, tuple)) or not 0 < len(values) < 5 or not all(map(_is_number, values)):
            raise ValueError(f"{key} must hold one finite number a channel, got {reprlib.repr(values)}")
    Normalization(tuple(normalization["mean"]), tuple(normalization["std"]))


def check_latents(folder: Path, config: Mapping[str, Any], *, num_classes: int) -> None:
    """The files of the latents are those of the configuration and hold tensors of its shapes and types.

    No tensor is read.

    Raises:
        ValueError: a checksum, a file or a header that does not fit.
    """
    described, rows = config["latents"], 0
    for name in config["sha256"].keys() - {WEIGHTS_FILE}:
        check_sha256(folder / name, config["sha256"])
    files = stored_files(folder / LATENTS_FILE)
    if {file.name for file in files} != config["sha256"].keys() - {WEIGHTS_FILE, LATENTS_INDEX}:
        raise ValueError(f"{folder} holds other latents than those of its {CONFIG_FILE}; get it again")
    for file in files:
        header = read_header(file)
        count = header["labels"].shape[0] if "labels" in header and header["labels"].shape else 0
        expected = {
            "latents": [TensorInfo(LATENTS_DTYPES[described["dtype"]], (count, described["dim"]))],
            "labels": [TensorInfo(torch.int64, (count,))],
        }
        if described["dtype"] == "int8":
            expected["latent_scale"] = [TensorInfo(torch.float32, (described["dim"],))]
        allowed = {
            **expected,
            "source_index": [TensorInfo(torch.int64, (count,))],
            "soft_labels": [TensorInfo(dtype, (count, num_classes)) for dtype in WEIGHTS_DTYPES],
        }
        for tensor in sorted(expected.keys() | header.keys()):
            if (got := header.get(tensor)) not in allowed.get(tensor, ()):
                wanted = allowed[tensor][0] if tensor in allowed else None
                raise ValueError(f"{file}: {tensor[:80]} must be {wanted} by the configuration, got {got}")
        rows += count
    if rows != described["count"]:
        raise ValueError(f"{folder} holds {rows} latents, expected {described['count']} by its {CONFIG_FILE}")


def _check_version(config: Mapping[str, Any], path: Path) -> None:
    version = config.get("format_version")
    if type(version) is int and version == FORMAT_VERSION:
        return
    writer = config.get("package_version")
    advice = "it is damaged, get it again"
    if type(version) is int and version > FORMAT_VERSION:
        newer = isinstance(writer, str) and len(writer) < _MAX_NAME and _RELEASE.fullmatch(writer)
        advice = f"install itgan_data>={writer}, which wrote it" if newer else "install a newer release of itgan_data"
    raise ValueError(
        f"{path} has format version {reprlib.repr(version)}, this release reads {FORMAT_VERSION}; {advice}"
    )


def _check_description(config: Mapping[str, Any], path: Path) -> None:
    """What `save_bundle` adds: shapes, dtypes and names of files."""
    image, latents = config["image"], config["latents"]
    if image.get("range") != "signed" or not isinstance(image.get("shape"), list):
        raise ValueError(f"{path}: image must be {{'shape': [...], 'range': 'signed'}}, got {reprlib.repr(image)}")
    sizes = (latents.get("count"), latents.get("dim"))
    if not all(type(size) is int and size > 0 for size in sizes) or latents.get("dtype") not in (*LATENTS_DTYPES,):
        raise ValueError(
            f"{path}: latents must have a count, a dim and one of the dtypes {', '.join(LATENTS_DTYPES)}, "
            f"got {reprlib.repr(latents)}"
        )
    count = min(len(config["sha256"]) - 2, _MAX_SHARDS)
    shards = {f"latents-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    if config["sha256"].keys() not in ({WEIGHTS_FILE, LATENTS_FILE}, {WEIGHTS_FILE, LATENTS_INDEX} | shards):
        raise ValueError(f"{path}: sha256 must name {WEIGHTS_FILE}, and {LATENTS_FILE} or its index and all its shards")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
