"""Reading bundles, from a folder or from the Hub, as what they are: data from anyone."""

import logging
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..generators.contract import ImageGenerator, as_generator
from ..generators.store import CONFIG_FILE, WEIGHTS_DTYPES, WEIGHTS_FILE, read_generator
from ..generators.trusted import Trust
from ..images import Normalization
from ..latents.coded import CODES, check_coded_header
from ..latents.files import stored_files
from ..latents.stored import LatentSet, check_fit, read_set
from ..storage.files import MAX_JSON_BYTES, TensorFile, TensorInfo, check_sha256, open_tensors
from . import hub
from .config import LATENTS_DTYPES, LATENTS_FILE, LATENTS_INDEX, BundleConfig, read_config

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"
REPOSITORY = re.compile(r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>.+))?")
"""How a bundle on the Hub is named."""

_MAX_TENSOR_BYTES = 4 << 30  # of a file; larger sets of latents are sharded
_MAX_CARD_BYTES = 32 << 20  # of card and preview


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """A loaded bundle."""

    config: dict[str, Any]
    """The content of `config.json`, such as `bundle.config["metrics"]`; `BundleConfig.of(bundle.config)` has types."""
    generator: ImageGenerator
    latents: LatentSet
    path: Path

    @property
    def class_names(self) -> list[str]:
        return list(BundleConfig.of(self.config).class_names)

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the real images, for the classifier's input."""
        return BundleConfig.of(self.config).normalization

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
    folder = packaged_bundle("cifar10") if source is None else _local_folder(source)
    if isinstance(source, str) and REPOSITORY.fullmatch(source):
        if not folder.is_dir():
            try:
                return pull_bundle(source, revision, local_files_only=local_files_only, token=token, endpoint=endpoint)
            except hub.HubError as error:
                if revision is not None or "@" in source:
                    raise
                raise hub.HubError(f"there is no folder {source}, and as a name on the Hub: {error}") from error
        logger.warning("%s is the folder here, not a bundle on the Hub; write ./%s to mean the folder", source, source)
    if revision is not None:
        raise ValueError(f"{folder} is a folder, which has no revision {revision!r}; revisions are for org/name")
    return folder


def pull_bundle(
    repository: str,
    revision: str | None = None,
    *,
    local_files_only: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder, in the client's cache, of a bundle "org/name" or "org/name@revision" on the Hub, fetched first.

    Its configuration is checked before the rest is fetched; nothing else is checked. The tensors come last, so a folder
    that has them has all.

    Raises:
        ValueError: not such a name, two revisions, or a configuration that is not a bundle's.
        HubError: the Hub does not have it, does not give it, or does not answer.
    """
    if not (named := REPOSITORY.fullmatch(repository)):
        raise ValueError(f"{repository!r} is not a repository's name; expected org/name or org/name@revision")
    if revision is not None and named["revision"] is not None:
        raise ValueError(f"{repository} and revision={revision!r} both name a revision; give one of them")
    commit = named["revision"] if revision is None else revision
    snapshot = hub.resolve(named["repo_id"], commit, token=token, endpoint=endpoint, local_files_only=local_files_only)
    folder = snapshot.fetch(CONFIG_FILE, max_bytes=MAX_JSON_BYTES).parent
    config = read_config(folder)
    for name in (CARD_FILE, PREVIEW_FILE):
        snapshot.fetch_if_any(name, max_bytes=_MAX_CARD_BYTES)
    for name in config["sha256"]:
        snapshot.fetch(name, max_bytes=_MAX_TENSOR_BYTES)
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
    """The bundle in a folder. Raises: see `load_bundle`."""
    config = _read_listing(folder)
    generator = read_generator(folder, config, trust=trust)
    latents = _read_latents(folder, config, generator.num_classes)
    check_agreement(BundleConfig.of(config), generator, latents)
    if (stated := config["image"]["shape"]) != (shape := list(generator.image_shape)):
        raise ValueError(f"image must have the shape {shape} of the generator's, got {reprlib.repr(stated)}")
    return Bundle(config=config, generator=generator, latents=latents, path=folder)


def _read_listing(folder: Path) -> dict[str, Any]:
    """The configuration of a folder that has all files it names, none of them too large."""
    if not folder.is_dir():
        raise ValueError(f"there is no bundle at {folder}; expected a folder, or org/name[@revision] on the Hub")
    config = read_config(folder)
    for name in config["sha256"]:
        if not (folder / name).is_file():
            raise ValueError(f"bundle {folder} has no {name}; it is incomplete, fetch or make it again")
        if (size := (folder / name).stat().st_size) > _MAX_TENSOR_BYTES:
            raise ValueError(f"{folder / name} has {size} bytes, expected at most {_MAX_TENSOR_BYTES}")
    return config


def _read_latents(folder: Path, config: Mapping[str, Any], num_classes: int) -> LatentSet:
    """The latents of a folder: each file is hashed, opened once, and compared with the configuration before it is read.

    Raises:
        ValueError: a checksum, a file or a header that does not fit.
    """
    names, described = config["sha256"].keys() - {WEIGHTS_FILE}, config["latents"]
    for name in names:
        check_sha256(folder / name, config["sha256"])
    paths = stored_files(folder / LATENTS_FILE)
    if {path.name for path in paths} != names - {LATENTS_INDEX}:
        raise ValueError(f"{folder} holds other latents than those of its {CONFIG_FILE}; fetch or make it again")
    files = [open_tensors(path) for path in paths]
    if described["dtype"] == CODES:
        return _read_codes(folder, files, described)
    if (rows := sum(_check_header(file, described, num_classes) for file in files)) != described["count"]:
        raise ValueError(f"{folder} holds {rows} latents, expected {described['count']} by its {CONFIG_FILE}")
    return read_set(files)


def _read_codes(folder: Path, files: Sequence[TensorFile], described: Mapping[str, Any]) -> LatentSet:
    """Latents that are coded; how many there are is known when they are decoded."""
    for file in files:
        try:
            check_coded_header(file.infos)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from error
    latents = read_set(files)
    if (len(latents), latents.latent_dim) != (described["count"], described["dim"]):
        raise ValueError(
            f"{folder} holds {len(latents)} latents of width {latents.latent_dim}, expected {described['count']} of "
            f"{described['dim']} by its {CONFIG_FILE}"
        )
    return latents


def _check_header(file: TensorFile, described: Mapping[str, Any], num_classes: int) -> int:
    """Compare the tensors of a file of latents with the configuration; returns how many latents it holds."""
    count = next(iter(file.infos["labels"].shape), 0) if "labels" in file.infos else 0
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
    for name in sorted(expected.keys() | file.infos.keys()):
        if (got := file.infos.get(name)) not in allowed.get(name, ()):
            wanted = allowed[name][0] if name in allowed else None
            raise ValueError(f"{file.path}: {name[:80]} must be {wanted} by the configuration, got {got}")
    return count


def check_agreement(config: BundleConfig, module: nn.Module, latents: LatentSet) -> None:
    """Generator, latents, class names and normalization belong together.

    Raises:
        ValueError: they do not.
    """
    generator = as_generator(module)
    check_fit(latents, generator)
    if (named := len(config.class_names)) != generator.num_classes:
        raise ValueError(f"class_names must name the generator's {generator.num_classes} classes, got {named}")
    if (channels := len(config.normalization.mean)) != generator.image_shape[0]:
        raise ValueError(
            f"normalization must have the {generator.image_shape[0]} channels of the generator's images, got {channels}"
        )
