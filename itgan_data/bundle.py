"""A bundle: everything that stands in for a data set (configuration, generator, latents), in one folder."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from .files import load_tensors, read_json, save_tensors, sha256_of, write_json
from .generators.biggan import BigGAN
from .generators.inference import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    FrozenBigGAN,
    build_generator,
    describe_generator,
    fold,
)
from .images import Normalization, image_grid, signed_to_unit
from .latents import LatentSet, check_fit

FORMAT = "itgan-data-bundle"
FORMAT_VERSION = 1
LATENTS_FILE = "latents.safetensors"
CARD_FILE = "README.md"
PREVIEW_FILE = "preview.png"
TENSOR_FILES = (WEIGHTS_FILE, LATENTS_FILE)
BUNDLE_FILES = (CONFIG_FILE, *TENSOR_FILES, CARD_FILE, PREVIEW_FILE)

REQUIRED_KEYS = ("dataset", "class_names", "normalization", "method", "training", "metrics")
_OBJECT_KEYS = ("generator", "image", "latents", "sha256")
_PREVIEW_SIDE = 10  # at most ten classes, ten images each


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """A loaded bundle. `config` is the content of `config.json`."""

    config: dict[str, Any]
    generator: FrozenBigGAN
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
        return sum((self.path / name).stat().st_size for name in (CONFIG_FILE, *TENSOR_FILES))


def save_bundle(
    folder: str | os.PathLike[str],
    generator: BigGAN | FrozenBigGAN,
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
            (`{"mean": [...], "std": [...]}`), `method`, `training` and `metrics`. What describes the files
            (format, shapes, checksums) is added, and replaces keys of the same names.
        preview: draw `preview.png`, a row of images for each of the first ten classes.
        dtype: how the generator's weights are stored.
        latents_dtype: how latents are stored, see `LatentSet.save`.

    Raises:
        ValueError: keys missing from `config`, latents that do not fit the generator, or a folder that holds
            other files.
    """
    folder = Path(folder).resolve()
    _check_config(config, generator, latents)
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
        (temporary / CARD_FILE).write_text(_card(bundle.config, preview=preview), encoding="utf-8")
        _replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Bundle(config=bundle.config, generator=bundle.generator, latents=bundle.latents, path=folder)


def load_bundle(source: str | os.PathLike[str] | None = None) -> Bundle:
    """Read a bundle and check it: files, checksums, shapes, labels, finite values.

    Args:
        source: a folder; by default the CIFAR-10 bundle that is part of the package.

    Raises:
        ValueError: a missing, damaged or foreign file, or latents that do not fit the generator.
    """
    folder = packaged_bundle("cifar10") if source is None else Path(source)
    if not folder.is_dir():
        raise ValueError(f"there is no bundle at {folder}; expected a folder with {CONFIG_FILE} and tensors")
    for name in (CONFIG_FILE, *TENSOR_FILES):
        if not (folder / name).is_file():
            raise ValueError(f"bundle {folder} has no {name}; it is incomplete, get it again")
    config = read_json(folder / CONFIG_FILE)
    _check_format(config, folder)
    for name in TENSOR_FILES:
        if sha256_of(folder / name) != config["sha256"].get(name):
            raise ValueError(f"{folder / name} does not match its sha256 in {CONFIG_FILE}; get it again")
    generator = build_generator(config["generator"], load_tensors(folder / WEIGHTS_FILE))
    latents = LatentSet.load(folder / LATENTS_FILE)
    _check_config(config, generator, latents)
    return Bundle(config=config, generator=generator, latents=latents, path=folder)


def packaged_bundle(name: str) -> Path:
    """Where the package keeps the bundle `name`."""
    return Path(str(resources.files(__package__).joinpath("bundles", name)))


def _check_format(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG_FILE} has format {config.get('format')!r}, expected {FORMAT!r}")
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"bundle {folder} has format version {config.get('format_version')}, this release reads "
            f"{FORMAT_VERSION}; get a matching release of itgan-data"
        )
    for key in _OBJECT_KEYS:
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{folder / CONFIG_FILE} has no object {key!r}; it is damaged, get it again")


def _check_config(config: Mapping[str, Any], generator: BigGAN | FrozenBigGAN, latents: LatentSet) -> None:
    """The configuration is complete, and generator, latents and class names agree."""
    if missing := [key for key in REQUIRED_KEYS if key not in config]:
        raise ValueError(f"the configuration of a bundle lacks {', '.join(missing)}")
    normalization = config["normalization"]
    if not isinstance(normalization, Mapping) or set(normalization) != {"mean", "std"}:
        raise ValueError(f"normalization must be {{'mean': [...], 'std': [...]}}, got {normalization!r}")
    Normalization(tuple(normalization["mean"]), tuple(normalization["std"]))
    check_fit(latents, latent_dim=generator.latent_dim, num_classes=generator.num_classes)
    if len(config["class_names"]) != generator.num_classes:
        raise ValueError(
            f"class_names must name the generator's {generator.num_classes} classes, got {len(config['class_names'])}"
        )


def _check_replaceable(folder: Path) -> None:
    """Replacing removes what is there, so it must be a bundle or nothing."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder")
    if foreign := sorted({entry.name for entry in folder.iterdir()} - set(BUNDLE_FILES)):
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


def _describe(generator: FrozenBigGAN, latents: LatentSet, folder: Path, latents_dtype: torch.dtype) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generator": describe_generator(generator),
        "image": {"shape": list(generator.image_shape), "range": "signed"},
        "latents": {
            "count": len(latents),
            "dim": latents.latent_dim,
            "dtype": str(latents_dtype).removeprefix("torch."),
        },
        "sha256": {name: sha256_of(folder / name) for name in TENSOR_FILES},
    }


@torch.no_grad()
def _draw_preview(bundle: Bundle, path: Path) -> None:
    """One row a class, as many columns as the smallest of these classes has latents."""
    counts = bundle.latents.images_per_class
    classes = [label for label, count in enumerate(counts) if count > 0][:_PREVIEW_SIDE]
    columns = min(_PREVIEW_SIDE, *(counts[label] for label in classes))
    indices = torch.cat([(bundle.latents.labels == label).nonzero()[:columns, 0] for label in classes])
    image_grid(signed_to_unit(bundle.generator(*bundle.latents.batch(indices))), columns).save(path)


def _card(config: Mapping[str, Any], *, preview: bool) -> str:
    """The model card: metadata, what it is, how to use it, its numbers."""
    latents, shape = config["latents"], config["image"]["shape"]
    metrics = "\n".join(f"| {name} | {value} |" for name, value in config["metrics"].items())
    parts = [
        f"---\nlibrary_name: itgan-data\ntags:\n- dataset-condensation\ndatasets:\n- {config['dataset']}\n---",
        f"# {config['dataset']}, condensed by {config['method']}",
        f"A generator and {latents['count']} latents of width {latents['dim']} that stand in for the "
        f"training set: {len(config['class_names'])} classes, images {shape[0]} x {shape[1]} x {shape[2]}.",
        f"![a row of images for each class]({PREVIEW_FILE})" if preview else "",
        "```python\nfrom itgan_data import SyntheticDataset, load_bundle\n\n"
        'bundle = load_bundle("path/to/this/folder")\n'
        "dataset = SyntheticDataset(bundle.generator, bundle.latents, classes=bundle.class_names)\n```",
        f"| metric | value |\n|---|---|\n{metrics}" if metrics else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
