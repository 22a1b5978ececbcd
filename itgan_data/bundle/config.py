"""What `config.json` of a bundle must say, checked before any other file is read."""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from ..config import Rule, check
from ..generators.store import CONFIG_FILE, WEIGHTS_FILE
from ..images import Normalization
from ..latents.coded import CODES
from ..latents.files import STORAGE_DTYPES
from ..storage.files import read_json

FORMAT = "itgan-data-bundle"
FORMAT_VERSIONS = (1, 2)
"""Latents as codes, and codecs, came with 2; whatever 1 holds is written as 1."""
LATENTS_FILE = "latents.safetensors"
LATENTS_INDEX = "latents.safetensors.index.json"
LATENTS_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES}

Name = Annotated[str, Rule("have 1 to 200 characters", lambda text: 0 < len(text) <= 200)]

_OBJECT_KEYS = ("generator", "image", "latents", "sha256")
_MAX_SHARDS = 4096
_RELEASE = re.compile(r"\d{1,9}(\.\d{1,9}){1,3}")


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What the maker of a bundle says of it; the rest of `config.json` follows from the files.

    Raises:
        ValueError: a value that cannot be used.
    """

    dataset: Name
    """Such as "cifar10"."""
    class_names: tuple[Name, ...]
    """In the order of the labels."""
    normalization: Normalization
    """Mean and standard deviation of the real images, for the input of a classifier."""
    method: Name
    training: Mapping[str, Any]
    """How it was made, as JSON values."""
    metrics: Mapping[str, Any]
    """JSON values; numbers whose names begin with "test accuracy" are results in the card's model index."""
    license: Any = None
    """For the card, such as "mit"."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("training", "metrics"):
            if not isinstance(value := getattr(self, name), Mapping):
                raise ValueError(f"{name} must be an object, got {type(value).__name__}")

    @staticmethod
    def of(config: "BundleConfig | Mapping[str, Any]") -> "BundleConfig":
        """The configuration itself, or that of a mapping of its fields, such as `config.json`; other keys are ignored.

        Raises:
            ValueError: a key is missing, or has a value that cannot be used.
        """
        if isinstance(config, BundleConfig):
            return config
        names = [field.name for field in fields(BundleConfig)]
        if missing := [name for name in names if name not in {*config, "license"}]:
            raise ValueError(f"the configuration of a bundle lacks {', '.join(missing)}")
        return BundleConfig(**{name: config[name] for name in names if name in config})

    def to_json(self) -> dict[str, Any]:
        """The mapping of JSON values that `of` takes."""
        values = {**vars(self), "class_names": list(self.class_names), "normalization": asdict(self.normalization)}
        return {name: value for name, value in values.items() if value is not None}


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the configuration in a bundle's folder.

    Raises:
        ValueError: it is missing, damaged, of another format or version, or says something impossible.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"bundle {folder} has no {CONFIG_FILE}; it is incomplete, fetch or make it again")
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {reprlib.repr(config.get('format'))}, expected {FORMAT!r}: a generator alone, or "
            "another's file; give the folder of a bundle, as `save_bundle` or `itgan-data condense` makes it"
        )
    _check_version(config, path)
    for key in _OBJECT_KEYS:
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{path} has no object {key!r}; it is damaged, fetch or make it again")
    BundleConfig.of(config)
    _check_description(config, path)
    return config


def _check_version(config: Mapping[str, Any], path: Path) -> None:
    version = config.get("format_version")
    if type(version) is int and version in FORMAT_VERSIONS:
        return
    writer = config.get("package_version")
    advice = "it is damaged, fetch or make it again"
    if type(version) is int and version > max(FORMAT_VERSIONS):
        newer = isinstance(writer, str) and _RELEASE.fullmatch(writer)
        advice = f"install itgan_data>={writer}, which wrote it" if newer else "install a newer release of itgan_data"
    first, last = FORMAT_VERSIONS[0], FORMAT_VERSIONS[-1]
    raise ValueError(
        f"{path} has format version {reprlib.repr(version)}, this release reads {first} to {last}; {advice}"
    )


def _check_description(config: Mapping[str, Any], path: Path) -> None:
    """What `save_bundle` adds: shapes, dtypes and names of files."""
    image, latents = config["image"], config["latents"]
    if image.get("range") != "signed" or not isinstance(image.get("shape"), list):
        raise ValueError(f"{path}: image must be {{'shape': [...], 'range': 'signed'}}, got {reprlib.repr(image)}")
    sizes = (latents.get("count"), latents.get("dim"))
    if not all(type(size) is int and size > 0 for size in sizes) or latents.get("dtype") not in (
        *LATENTS_DTYPES,
        CODES,
    ):
        raise ValueError(
            f"{path}: latents must have a count, a dim and one of the dtypes {', '.join(LATENTS_DTYPES)} and {CODES}, "
            f"got {reprlib.repr(latents)}"
        )
    count = min(len(config["sha256"]) - 2, _MAX_SHARDS)
    shards = {f"latents-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    if config["sha256"].keys() not in ({WEIGHTS_FILE, LATENTS_FILE}, {WEIGHTS_FILE, LATENTS_INDEX} | shards):
        raise ValueError(f"{path}: sha256 must name {WEIGHTS_FILE}, and {LATENTS_FILE} or its index and all its shards")
