"""Reading bundles, from a folder or from the Hub, as what they are: data from anyone."""

import logging
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from ..generators.contract import ImageGenerator, as_generator
from ..generators.store import CONFIG_FILE, read_generator
from ..generators.trusted import Trust
from ..images import Normalization
from ..latents.stored import LatentSet, check_fit
from ..storage.files import MAX_JSON_BYTES
from . import hub
from .config import LATENTS_FILE, check_latents, read_config

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"
REPOSITORY = re.compile(r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>.+))?")
"""How a bundle on the Hub is named."""

_MAX_TENSOR_BYTES = 4 << 30  # of a file; larger sets of latents are sharded
_MAX_CARD_BYTES = 32 << 20  # of card and preview


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """A loaded bundle. `config` is the content of `config.json`."""

    config: dict[str, Any]
    generator: ImageGenerator
    latents: LatentSet
    path: Path

    @property
    def class_names(self) -> list[str]:
        return list(self.config["class_names"])

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the real images, for the classifier's input."""
        values = self.config["normalization"]
        return Normalization(tuple(values["mean"]), tuple(values["std"]))

    @property
    def num_bytes(self) -> int:
        """Bytes on disk of what training needs: the configuration and the tensors, not card and preview."""
        return sum((self.path / name).stat().st_size for name in (CONFIG_FILE, *self.config["sha256"]))


def load_bundle(
    source: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    *,
    trust: Trust = (),
    endpoint: str | None = None,
) -> Bundle:
    """Read a bundle, fetched first where it lies on the Hub, and check it as what it is: data from anyone.

    Files, checksums, shapes and types are compared with the configuration before memory is taken; then finite
    values and the range of labels are checked.

    Args:
        source: a folder; the name of a bundle in the package; or "org/name" or "org/name@revision" on the Hub, if there
            is no folder of that name. By default the packaged "cifar10".
        revision: a branch, tag or commit id. All files are of the commit that it stands for now; a full commit id
            that was fetched before makes no request. By default the main branch.
        local_files_only: take what was fetched before and make no request; as HF_HUB_OFFLINE=1 does.
        token: for private and gated repositories; by default the one that the user has logged in with.
        trust: the class of a generator that is not of this package, or several, whose code you have read: it is called
            with arguments from the bundle. Nothing is ever imported because a bundle names it.
        endpoint: another Hub, such as a mirror; by default that of HF_ENDPOINT.

    Raises:
        ValueError: a missing, damaged or foreign file, latents that do not fit the generator, or a generator of a class
            that is not trusted.
        HubError: the Hub does not have it, does not give it, or does not answer.
    """
    folder = find_bundle(source, revision, local_files_only=local_files_only, token=token, endpoint=endpoint)
    return read_bundle(folder, trust=trust)


def find_bundle(
    source: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder of a bundle, fetched first where it lies on the Hub. Arguments and errors as of `load_bundle`.

    Of a bundle on the Hub the configuration is checked before the rest is fetched; nothing else is checked.
    """
    repository = REPOSITORY.fullmatch(source) if isinstance(source, str) and not Path(source).is_dir() else None
    if repository is not None:
        if revision is not None and repository["revision"] is not None:
            raise ValueError(f"{source} and revision={revision!r} both name a revision; give one of them")
        named = repository["revision"] if revision is None else revision
        snapshot = hub.resolve(
            repository["repo_id"], named, token=token, endpoint=endpoint, local_files_only=local_files_only
        )
        return _pull(snapshot)
    folder = packaged_bundle("cifar10") if source is None else _local_folder(source)
    if revision is not None:
        raise ValueError(f"{folder} is a folder, which has no revision {revision!r}; revisions are for org/name")
    return folder


def describe_bundle(
    source: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """The checked configuration of a bundle and the bytes of its files; no tensor is read. Else as `find_bundle`."""
    folder = find_bundle(source, revision, local_files_only=local_files_only, token=token, endpoint=endpoint)
    config = _read_listing(folder)
    names = (CONFIG_FILE, *config["sha256"], CARD_FILE, PREVIEW_FILE)
    return config, {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def packaged_bundle(name: str) -> Path:
    """Where the package keeps the bundle `name`."""
    return Path(str(resources.files("itgan_data").joinpath("bundles", name)))


def _local_folder(source: str | os.PathLike[str]) -> Path:
    """A folder here, or the packaged bundle of that name; where both are there, it says which one it took."""
    here = Path(source)
    if not re.fullmatch(r"[\w-]+", str(source)) or not (packaged := packaged_bundle(str(source))).is_dir():
        return here
    taken = here if (here / CONFIG_FILE).is_file() else packaged
    if here.is_dir():
        logger.warning(
            "%s is a folder here and a bundle in the package: took %s; write ./%s for the folder", here, taken, here
        )
    return taken


def read_bundle(folder: Path, *, trust: Trust = ()) -> Bundle:
    """The bundle in a folder. Errors as of `load_bundle`."""
    config = _read_listing(folder)
    generator = read_generator(folder, config, trust=trust)
    check_latents(folder, config, num_classes=generator.num_classes)
    latents = LatentSet.load(folder / LATENTS_FILE)
    check_agreement(config, generator, latents)
    return Bundle(config=config, generator=generator, latents=latents, path=folder)


def _pull(snapshot: hub.Snapshot) -> Path:
    """Fetch a bundle; returns its folder. The tensors come last, so a folder that has them has all."""
    folder = snapshot.fetch(CONFIG_FILE, max_bytes=MAX_JSON_BYTES).parent
    config = read_config(folder)
    for name in (CARD_FILE, PREVIEW_FILE):
        snapshot.fetch_if_any(name, max_bytes=_MAX_CARD_BYTES)
    for name in config["sha256"]:
        snapshot.fetch(name, max_bytes=_MAX_TENSOR_BYTES)
    return folder


def _read_listing(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that has all files it names, none of them too large."""
    if not folder.is_dir():
        raise ValueError(f"there is no bundle at {folder}; expected a folder, or org/name[@revision] on the Hub")
    config = read_config(folder)
    for name in config["sha256"]:
        if not (folder / name).is_file():
            raise ValueError(f"bundle {folder} has no {name}; it is incomplete, get it again")
        if (size := (folder / name).stat().st_size) > _MAX_TENSOR_BYTES:
            raise ValueError(f"{folder / name} has {size} bytes, expected at most {_MAX_TENSOR_BYTES}")
    return config


def check_agreement(config: Mapping[str, Any], module: nn.Module, latents: LatentSet) -> None:
    """Generator, latents, class names, normalization and image shape belong together.

    Raises:
        ValueError: they do not.
    """
    generator = as_generator(module)
    check_fit(latents, generator)
    if len(config["class_names"]) != generator.num_classes:
        raise ValueError(
            f"class_names must name the generator's {generator.num_classes} classes, got {len(config['class_names'])}"
        )
    shape = generator.image_shape
    if (channels := len(config["normalization"]["mean"])) != shape[0]:
        raise ValueError(f"normalization must have the {shape[0]} channels of the generator's images, got {channels}")
    if (stated := config.get("image", {}).get("shape", list(shape))) != list(shape):
        raise ValueError(f"image must have the shape {list(shape)} of the generator's, got {reprlib.repr(stated)}")
