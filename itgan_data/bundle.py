"""A bundle: everything that stands in for a data set (configuration, generator, latents), in one folder."""

import os
import re
import reprlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from . import hub
from .bundle_config import (
    FORMAT,
    FORMAT_VERSION,
    LATENTS_FILE,
    check_latents,
    check_values,
    package_version,
    read_config,
)
from .card import card
from .files import MAX_JSON_BYTES, save_tensors, sha256_of, write_json
from .generators.biggan import BigGAN
from .generators.inference import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    FrozenBigGAN,
    describe_generator,
    fold,
    read_generator,
)
from .generators.pixels import Pixels
from .images import Normalization, image_grid, signed_to_unit
from .latents import LatentSet, check_fit

CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"

_TENSOR_FILE = re.compile(r"generator\.safetensors|latents(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_REPOSITORY = re.compile(r"(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>.+))?")
_MAX_TENSOR_BYTES = 4 << 30  # of a file; larger sets of latents are sharded
_MAX_CARD_BYTES = 32 << 20  # of card and preview
_PREVIEW_SIDE = 10  # at most ten classes, ten images each


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """A loaded bundle. `config` is the content of `config.json`."""

    config: dict[str, Any]
    generator: FrozenBigGAN | Pixels
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


def save_bundle(
    folder: str | os.PathLike[str],
    generator: BigGAN | FrozenBigGAN | Pixels,
    latents: LatentSet,
    *,
    config: Mapping[str, Any],
    preview: bool = True,
    dtype: torch.dtype = torch.float16,
    latents_dtype: torch.dtype = torch.float16,
) -> Bundle:
    """Write a bundle and load it back.

    It is written and checked beside `folder`, then takes its place: an older bundle is replaced whole or not
    at all.

    Args:
        folder: where to; absent, empty, or an older bundle.
        generator: a trained BigGAN is folded first.
        latents: the condensed data set.
        config: JSON-able, with the keys `dataset` (such as "cifar10"), `class_names`, `normalization`
            (`{"mean": [...], "std": [...]}`), `method`, `training` and `metrics`; numbers whose names begin with
            "test accuracy" are results of the card's model index. `license`, where given, goes to the card. What
            describes the files (format, shapes, checksums) is added, and replaces keys of the same names.
        preview: draw `preview.png`, a row of images for each of the first ten classes.
        dtype: how the generator's weights are stored.
        latents_dtype: how latents are stored, see `LatentSet.save`.

    Raises:
        ValueError: keys missing from `config`, latents that do not fit the generator, or a folder that holds
            other files.
    """
    folder = Path(folder).resolve()
    check_values(config)
    _check_agreement(config, generator, latents)
    _check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    try:
        frozen = fold(generator) if isinstance(generator, BigGAN) else generator
        save_tensors(temporary / WEIGHTS_FILE, {k: v.to(dtype) for k, v in frozen.state_dict().items()})
        latents.save(temporary / LATENTS_FILE, dtype=latents_dtype)
        description = _describe(frozen, latents, temporary, latents_dtype)
        write_json(temporary / CONFIG_FILE, {**description, **config, **description})
        bundle = load_bundle(temporary)
        if preview:
            _draw_preview(bundle, temporary / PREVIEW_FILE)
        (temporary / CARD_FILE).write_text(_own_card(temporary, bundle.config), encoding="utf-8")
        _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Bundle(config=bundle.config, generator=bundle.generator, latents=bundle.latents, path=folder)


def load_bundle(
    source: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    *,
    endpoint: str | None = None,
) -> Bundle:
    """Read a bundle, fetched first where it lies on the Hub, and check it as what it is: data from anyone.

    Files, checksums, shapes and types are compared with the configuration before memory is taken; then finite
    values and the range of labels are checked.

    Args:
        source: a folder; or "org/name" or "org/name@revision" on the Hub, if there is no folder of that name. By
            default the CIFAR-10 bundle that is part of the package.
        revision: a branch, tag or commit id. All files are of the commit that it stands for now; a full commit id
            that was fetched before makes no request. By default the main branch.
        local_files_only: take what was fetched before and make no request; as HF_HUB_OFFLINE=1 does.
        token: for private and gated repositories; by default the one that the user has logged in with.
        endpoint: another Hub, such as a mirror; by default that of HF_ENDPOINT.

    Raises:
        ValueError: a missing, damaged or foreign file, or latents that do not fit the generator.
        HubError: the Hub does not have it, does not give it, or does not answer.
    """
    return _read_bundle(
        find_bundle(source, revision, local_files_only=local_files_only, token=token, endpoint=endpoint)
    )


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
    repository = _REPOSITORY.fullmatch(source) if isinstance(source, str) and not Path(source).is_dir() else None
    if repository is not None:
        if revision is not None and repository["revision"] is not None:
            raise ValueError(f"{source} and revision={revision!r} both name a revision; give one of them")
        named = repository["revision"] if revision is None else revision
        snapshot = hub.resolve(
            repository["repo_id"], named, token=token, endpoint=endpoint, local_files_only=local_files_only
        )
        return _pull(snapshot)
    folder = packaged_bundle("cifar10") if source is None else Path(source)
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


def push_bundle(
    bundle: Bundle | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    overwrite_card: bool = False,
    endpoint: str | None = None,
) -> str:
    """Publish a bundle on the Hub in one commit; returns the commit's URL.

    It is read and checked first. Repository and branch are made where there are none, files that are there already
    are not sent again.

    Args:
        bundle: a loaded bundle or its folder.
        repo_id: "org/name".
        private: who is not given access does not see a new repository; an existing one must be private already.
        token: one that may write; by default the one that the user has logged in with.
        revision: the branch; by default the main one.
        overwrite_card: replace a card that is there, which somebody may have edited.
        endpoint: another Hub; by default that of HF_ENDPOINT.

    Raises:
        ValueError: not a whole bundle, or not a repository's name.
        HubError: no right to write, somebody else's commit in the meantime, no connection.
    """
    if not (named := _REPOSITORY.fullmatch(repo_id)) or named["revision"]:
        raise ValueError(f"{repo_id!r} is not a repository's name; expected org/name")
    folder = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    config = _read_bundle(folder).config
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG_FILE, *config["sha256"])}
    for name in (CARD_FILE, PREVIEW_FILE):
        if (path := folder / name).is_file():
            if path.is_symlink() and not hub.is_cached(path):
                raise ValueError(f"{path} is a link to another file, which would be published; put a copy there")
            files[name] = path
    if CARD_FILE not in files or (folder / CARD_FILE).read_bytes() == _own_card(folder, config).encode():
        files[CARD_FILE] = _own_card(folder, config, source=repo_id).encode()
    return hub.push_files(
        repo_id,
        files,
        keep=() if overwrite_card else (CARD_FILE,),
        remove=_TENSOR_FILE,
        message=f"{config['dataset']}, condensed by {config['method']}",
        private=private,
        revision=revision,
        token=token,
        endpoint=endpoint,
    )


def packaged_bundle(name: str) -> Path:
    """Where the package keeps the bundle `name`."""
    return Path(str(resources.files(__package__).joinpath("bundles", name)))


def _pull(snapshot: hub.Snapshot) -> Path:
    """Fetch a bundle; returns its folder. The tensors come last, so a folder that has them has all."""
    folder = snapshot.fetch(CONFIG_FILE, max_bytes=MAX_JSON_BYTES).parent
    config = read_config(folder)
    for name in (CARD_FILE, PREVIEW_FILE):
        snapshot.fetch_if_any(name, max_bytes=_MAX_CARD_BYTES)
    for name in config["sha256"]:
        snapshot.fetch(name, max_bytes=_MAX_TENSOR_BYTES)
    return folder


def _read_bundle(folder: Path) -> Bundle:
    config = _read_listing(folder)
    generator = read_generator(folder, config)
    check_latents(folder, config, num_classes=generator.num_classes)
    latents = LatentSet.load(folder / LATENTS_FILE)
    _check_agreement(config, generator, latents)
    return Bundle(config=config, generator=generator, latents=latents, path=folder)


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


def _check_agreement(config: Mapping[str, Any], generator: BigGAN | FrozenBigGAN | Pixels, latents: LatentSet) -> None:
    """Generator, latents, class names, normalization and image shape belong together."""
    check_fit(latents, latent_dim=generator.latent_dim, num_classes=generator.num_classes)
    if len(config["class_names"]) != generator.num_classes:
        raise ValueError(
            f"class_names must name the generator's {generator.num_classes} classes, got {len(config['class_names'])}"
        )
    shape = generator.image_shape
    if (channels := len(config["normalization"]["mean"])) != shape[0]:
        raise ValueError(f"normalization must have the {shape[0]} channels of the generator's images, got {channels}")
    if (stated := config.get("image", {}).get("shape", list(shape))) != list(shape):
        raise ValueError(f"image must have the shape {list(shape)} of the generator's, got {reprlib.repr(stated)}")


def _check_replaceable(folder: Path) -> None:
    """Replacing removes what is there, so it must be a bundle or nothing."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder")
    ours = {CONFIG_FILE, CARD_FILE, PREVIEW_FILE}
    names = sorted(entry.name for entry in folder.iterdir())
    if foreign := [name for name in names if name not in ours and not _TENSOR_FILE.fullmatch(name)]:
        raise ValueError(f"{folder} holds other files ({foreign[0]}, ...); give the bundle a folder of its own")


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an old `folder` is put aside before and removed after.

    A process killed between the two renames leaves both, each complete, beside an empty place; the next save
    fills it.
    """
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _describe(
    generator: FrozenBigGAN | Pixels, latents: LatentSet, folder: Path, latents_dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": package_version(),
        "generator": describe_generator(generator),
        "image": {"shape": list(generator.image_shape), "range": "signed"},
        "latents": {
            "count": len(latents),
            "dim": latents.latent_dim,
            "dtype": str(latents_dtype).removeprefix("torch."),
        },
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }


@torch.no_grad()
def _draw_preview(bundle: Bundle, path: Path) -> None:
    """One row a class, as many columns as the smallest of these classes has latents."""
    counts = bundle.latents.images_per_class
    classes = [label for label, count in enumerate(counts) if count > 0][:_PREVIEW_SIDE]
    columns = min(_PREVIEW_SIDE, *(counts[label] for label in classes))
    indices = torch.cat([(bundle.latents.labels == label).nonzero()[:columns, 0] for label in classes])
    image_grid(signed_to_unit(bundle.generator(*bundle.latents.batch(indices))), columns).save(path)


def _own_card(folder: Path, config: Mapping[str, Any], **options: str) -> str:
    """The card that is written for a bundle unless somebody edits it."""
    sizes = {name: (folder / name).stat().st_size for name in config["sha256"]}
    preview = PREVIEW_FILE if (folder / PREVIEW_FILE).is_file() else None
    return card(config, sizes, preview=preview, **options)
