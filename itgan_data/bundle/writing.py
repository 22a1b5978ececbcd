"""A bundle: everything that stands in for a data set (configuration, generator, latents), in one folder.

Written and published here; `bundle_reading` reads it.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import package_version
from ..generators.biggan import BigGAN
from ..generators.codec import Codec
from ..generators.contract import as_generator, probe_images
from ..generators.frozen import FrozenBigGAN, fold
from ..generators.store import CONFIG_FILE, WEIGHTS_FILE, describe_generator, save_weights
from ..generators.trusted import Trust
from ..images import image_grid, signed_to_unit
from ..latents.coded import CODES
from ..latents.stored import LatentSet
from ..storage.files import check_writable, full_disk_named, sha256_of, write_json
from . import hub
from .card import card
from .config import FORMAT, FORMAT_VERSIONS, LATENTS_FILE, BundleConfig
from .reading import (
    CARD_FILE,
    PREVIEW_FILE,
    REPOSITORY,
    Bundle,
    check_agreement,
    describe_bundle,
    load_bundle,
    packaged_bundle,
    read_bundle,
)

__all__ = ["Bundle", "describe_bundle", "load_bundle", "packaged_bundle", "push_bundle", "save_bundle"]

_TENSOR_FILE = re.compile(r"generator\.safetensors|latents(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_PREVIEW_SIDE = 10  # at most ten classes, ten images each


def save_bundle(
    folder: str | os.PathLike[str],
    generator: nn.Module,
    latents: LatentSet,
    *,
    config: BundleConfig | Mapping[str, Any],
    preview: bool = True,
    dtype: torch.dtype = torch.float16,
    latents_dtype: torch.dtype | None = None,
) -> Bundle:
    """Write a bundle and load it back.

    It is written to a temporary folder and checked there, then renamed to `folder`. If anything fails, an older bundle
    in `folder` stays as it was.

    Args:
        folder: where to; absent, empty, or an older bundle.
        generator: a trained BigGAN, which is folded first, a frozen one, `Pixels`, or any module with `latent_dim`,
            `num_classes`, `image_shape` and `arguments`: the JSON values with which its class, called as
            `Class(**arguments)`, builds it again. To load the bundle, import that class and pass it as `trust`.
        latents: the condensed data set. If its classes come one after the other they are shuffled, always alike:
            scripts take the first images of a data set for a sample of all classes.
        config: what to say of it, a `BundleConfig` or a mapping of its fields, with `normalization` as
            `{"mean": [...], "std": [...]}`. The `config` of a loaded bundle can be passed too: its description of
            the files (format, shapes, checksums) is written again, all other keys are kept.
        preview: draw `preview.png`, a row of images for each of the first ten classes.
        dtype: how the generator's weights are stored.
        latents_dtype: how latents are stored, by default codes as codes and others as float16; see `LatentSet.save`.

    Raises:
        OSError: the disk is full; what was there is still there.
        ValueError: keys missing from `config`, latents that do not fit the generator, one that makes the same image of
            all latents, a class that others cannot import or that does not build the generator again, or a folder that
            holds other files.
    """
    folder = Path(folder).resolve()
    about = BundleConfig.of(config)
    check_agreement(about, generator, latents)
    latents = latents.shuffled() if latents.in_class_order else latents
    check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    temporary.mkdir(parents=True)
    try:
        with full_disk_named(folder):
            frozen = fold(generator) if isinstance(generator, BigGAN) else generator
            if isinstance(frozen, FrozenBigGAN):  # describing a generator of another class tries it
                probe_images(frozen)
            save_weights(temporary / WEIGHTS_FILE, frozen, dtype=dtype)
            latents.save(temporary / LATENTS_FILE, dtype=latents_dtype)
            description = _describe(frozen, latents, temporary, latents_dtype)
            others = {} if isinstance(config, BundleConfig) else config
            write_json(temporary / CONFIG_FILE, {**description, **others, **about.to_json(), **description})
            bundle = read_bundle(temporary, trust=type(frozen))
            if preview:
                _draw_preview(bundle, temporary / PREVIEW_FILE)
            (temporary / CARD_FILE).write_text(_own_card(temporary, bundle.config), encoding="utf-8")
            _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Bundle(config=bundle.config, generator=bundle.generator, latents=bundle.latents, path=folder)


def push_bundle(
    bundle: Bundle | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    overwrite_card: bool = False,
    trust: Trust = (),
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
        trust: as in `load_bundle`, to read a folder; the class of a loaded bundle's generator is trusted already.
        endpoint: another Hub; by default that of HF_ENDPOINT.

    Raises:
        ValueError: not a whole bundle, or not a repository's name.
        HubError: no right to write, somebody else's commit in the meantime, no connection.
    """
    if not (named := REPOSITORY.fullmatch(repo_id)) or named["revision"]:
        raise ValueError(f"{repo_id!r} is not a repository's name; expected org/name")
    folder, trust = (bundle.path, type(bundle.generator)) if isinstance(bundle, Bundle) else (Path(bundle), trust)
    config = read_bundle(folder, trust=trust).config
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


def check_replaceable(folder: Path) -> None:
    """Know before long work that a bundle can be written to `folder`.

    Raises:
        ValueError: it cannot be written, or holds something else than a bundle, which would be removed.
    """
    check_writable(folder, folder=True)
    check_writable(folder.resolve().with_name(f".{folder.resolve().name}.new"), folder=True)
    if not folder.exists():
        return
    ours = {CONFIG_FILE, CARD_FILE, PREVIEW_FILE}
    names = sorted(entry.name for entry in folder.iterdir())
    if foreign := [name for name in names if name not in ours and not _TENSOR_FILE.fullmatch(name)]:
        raise ValueError(f"{folder} holds other files ({foreign[0]}, ...); give the bundle a folder of its own")


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; an old `folder` is put aside before and removed after.

    A process that is killed between the two renames leaves no `folder`, but both bundles, complete, under their other
    names; the next save fills the place.
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
    generator: nn.Module, latents: LatentSet, folder: Path, latents_dtype: torch.dtype | None
) -> dict[str, Any]:
    stored = latents.storage if latents_dtype is None else str(latents_dtype).removeprefix("torch.")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSIONS[stored == CODES or isinstance(generator, Codec)],
        "package_version": package_version(),
        "generator": describe_generator(generator),
        "image": {"shape": list(as_generator(generator).image_shape), "range": "signed"},
        "latents": {
            "count": len(latents),
            "dim": latents.latent_dim,
            "dtype": stored,
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
