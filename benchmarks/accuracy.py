"""Which training set gives the better classifier: real images or generated ones, at equal count or bytes?

Every row trains fresh networks with one recipe and one number of updates, and tests them on real images:

    real-count   random real images, as many as the bundle has latents (bytes: lossless WebP)
    real-bytes   random real images, lossless WebP, as many as fit into the bytes of the bundle
    real-coded   random real images, lossy WebP at the best of some qualities, as many as fit
    real-herding, real-forgetting
                 real images chosen by a network that is trained on all of them, as many as the bundle has latents
    gan          the bundle's generator on normal draws, as many as the bundle has latents
    gan-fresh    the bundle's generator on new normal draws every epoch
    inversion    the bundle's generator on latents inverted from real images (--inversion FILE)
    dm           pixels learned by distribution matching, in at most the bytes of the bundle (--dm DIR)
    it-gan       the bundle
    real-whole   the whole real training set (first seed only)

The bundle of `--dm` is made by `itgan-data condense --method dm --images-per-class N --latents-dtype int8`.
Results are kept as soon as they exist; the same command again goes on with what is missing.

    python benchmarks/accuracy.py --scale cpu --data imagefolder:DIR --inversion WORKDIR/condense/inversion.safetensors
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from coded import LOSSLESS, NO_LIMIT, fill_with_files
from coresets import choose_coresets, coreset_recipe
from setting import (
    PATH,
    Run,
    Scale,
    Setting,
    balanced_order,
    benchmark,
    generator_checksum,
    hold_out,
    names_in,
    stored_results,
)

from itgan_data.bundle.writing import LATENTS_FILE, Bundle, load_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.evaluation.results import Results, RowKey
from itgan_data.generators.store import WEIGHTS_FILE
from itgan_data.images import ImageSource, LabeledImages
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.networks import NETWORKS
from itgan_data.recipes import fast_recipe, paper_recipe
from itgan_data.storage.files import sha256_of

CORESETS = ("real-herding", "real-forgetting")
ROWS = ("real-count", "real-bytes", "real-coded", *CORESETS)
ROWS += ("gan", "gan-fresh", "inversion", "dm", "it-gan", "real-whole")
DEFAULT_ROWS = ",".join(name for name in ROWS if name not in CORESETS)  # those train one more network first


@dataclass(frozen=True, kw_only=True)
class AccuracyScale(Scale):
    """How much work a row is."""

    qualities: tuple[int, ...] = (20, 50)
    """Of lossy WebP, that are tried for `real-coded`."""


SCALES = {
    "tiny": AccuracyScale(recipe=fast_recipe(2, 16), seeds=1),
    "cpu": AccuracyScale(recipe=replace(fast_recipe(1200), precision="bfloat16", compile=True)),
    "gpu": AccuracyScale(
        recipe=replace(paper_recipe(), precision="bfloat16", compile=True), qualities=(10, 20, 30, 40, 50, 60, 70)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. Where a seed chooses the images too, the key describes the first seed's."""

    name: str
    key: RowKey
    make: Callable[[int], ImageSource]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What single rows need in addition to the setting."""

    inversion: Path | None
    """Inverted latents."""
    dm: Bundle | None
    """Learned pixels."""
    qualities: tuple[int, ...]
    """Of lossy WebP, to be tried."""
    trials: Results
    """Where what they are judged by is kept."""
    coresets: Path
    """Where chosen images are kept."""


def best_quality(setting: Setting, qualities: tuple[int, ...], results: Results) -> int:
    """The WebP quality that trains the best classifier, judged by one seed on held-out training images."""
    held_out, order = hold_out(setting.train.labels)
    judges = setting.train.select(held_out)
    seed = setting.seeds[0]
    scores = {}
    for quality in qualities:
        subset, num_bytes = fill_with_files(setting.train, order, budget=setting.bundle.num_bytes, quality=quality)
        key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=f"lossy WebP, quality {quality}")
        name = f"quality {quality}"
        result = results.get(name, key, seed)
        if result is None:
            result = setting.run(subset, judges, seed, f"real-coded, {name}")
            results.add(name, key, result)
        scores[quality] = result.accuracy
    return max(scores, key=lambda quality: scores[quality])


def real_row(setting: Setting, name: str, *, quality: int | None = LOSSLESS, equal_count: bool = False) -> Row:
    """Random real images, other ones for each seed: as many as latents, or as fit into the bundle's bytes."""
    budget = NO_LIMIT if equal_count else setting.bundle.num_bytes

    def choose(seed: int) -> tuple[LabeledImages, int]:
        order = balanced_order(setting.train.labels, seed)
        chosen = order[: len(setting.bundle.latents)] if equal_count else order
        return fill_with_files(setting.train, chosen, budget=budget, quality=quality)

    subset, num_bytes = choose(setting.seeds[0])
    content = "lossless WebP" if quality is LOSSLESS else f"lossy WebP, quality {quality}"
    key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=content)
    return Row(name=name, key=key, make=lambda seed: choose(seed)[0], seeds=setting.seeds)


def coreset_row(setting: Setting, name: str, file: Path) -> Row:
    """Real images chosen by herding or forgetting; every seed trains on the same ones."""
    count = len(setting.bundle.latents) // setting.train.num_classes
    chosen = torch.tensor(choose_coresets(setting, count, file)[name.removeprefix("real-")])
    subset, num_bytes = fill_with_files(setting.train, chosen, budget=NO_LIMIT, quality=LOSSLESS)
    recipe = coreset_recipe(setting)
    content = f"lossless WebP, chosen by a {setting.network} of {recipe.steps} steps and seed {setting.seeds[0]}"
    key = RowKey(num_images=len(subset), num_bytes=num_bytes, content=content)
    return Row(name=name, key=key, make=lambda seed: subset, seeds=setting.seeds)


def whole_row(setting: Setting) -> Row:
    """All real images; their bytes are those of 1,000 of them, scaled up."""
    sample = balanced_order(setting.train.labels, setting.seeds[0])[:1000]
    _, num_bytes = fill_with_files(setting.train, sample, budget=NO_LIMIT, quality=LOSSLESS)
    key = RowKey(
        num_images=len(setting.train),
        num_bytes=num_bytes * len(setting.train) // len(sample),
        content="lossless WebP, bytes estimated",
    )
    return Row(name="real-whole", key=key, make=lambda seed: setting.train, seeds=setting.seeds[:1])


def gan_row(setting: Setting, name: str) -> Row:
    """As many normal draws as the bundle has latents, or other ones every epoch; stored is the generator alone."""
    bundle = setting.bundle
    count = len(bundle.latents)

    def make(seed: int) -> ImageSource:
        draws = RandomLatents(count, bundle.generator.latent_dim, bundle.generator.num_classes, seed=seed)
        if name == "gan-fresh":
            return setting.synthetic(draws)
        fixed = LatentSet.drawn_from(draws)
        return setting.synthetic(fixed)

    key = RowKey(
        num_images=None if name == "gan-fresh" else count,
        num_bytes=(bundle.path / WEIGHTS_FILE).stat().st_size,
        content=f"{'fresh' if name == 'gan-fresh' else 'fixed'} draws, {generator_checksum(bundle)}",
    )
    return Row(name=name, key=key, make=make, seeds=setting.seeds)


def inversion_row(setting: Setting, file: Path) -> Row:
    """Inverted latents, stored as the bundle stores its own."""
    bundle = setting.bundle
    stored_bytes = (bundle.path / LATENTS_FILE).stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / LATENTS_FILE
        LatentSet.load(file).save(stored, dtype=getattr(torch, bundle.config["latents"]["dtype"]))
        latents = LatentSet.load(stored)
        num_bytes = bundle.num_bytes - stored_bytes + stored.stat().st_size
    source = setting.synthetic(latents)
    content = f"latents {sha256_of(file)[:12]}, {generator_checksum(bundle)}"
    key = RowKey(num_images=len(latents), num_bytes=num_bytes, content=content)
    return Row(name="inversion", key=key, make=lambda seed: source, seeds=setting.seeds)


def open_dm(setting: Setting, folder: Path) -> Bundle:
    """A bundle of learned pixels.

    Raises:
        ValueError: it takes more bytes than the bundle it is compared with, or has other classes.
    """
    pixels, limit = load_bundle(folder), setting.bundle.num_bytes
    if pixels.class_names != setting.train.classes:
        raise ValueError(f"{folder} has classes {pixels.class_names}, expected {setting.train.classes}")
    if pixels.num_bytes > limit:
        raise ValueError(
            f"{folder} takes {pixels.num_bytes:,} bytes, the bundle it is compared with {limit:,}; "
            "condense fewer images per class, or store them as int8"
        )
    return pixels


def dm_row(setting: Setting, pixels: Bundle) -> Row:
    """Learned pixels."""
    source = SyntheticDataset(pixels.generator, pixels.latents, device=setting.device)
    content = f"latents {pixels.config['sha256'][LATENTS_FILE][:12]}"
    key = RowKey(num_images=len(pixels.latents), num_bytes=pixels.num_bytes, content=content)
    return Row(name="dm", key=key, make=lambda seed: source, seeds=setting.seeds)


def bundle_row(setting: Setting) -> Row:
    """The bundle as it is."""
    bundle = setting.bundle
    source = setting.synthetic(bundle.latents)
    content = f"latents {bundle.config['sha256'][LATENTS_FILE][:12]}, {generator_checksum(bundle)}"
    key = RowKey(num_images=len(bundle.latents), num_bytes=bundle.num_bytes, content=content)
    return Row(name="it-gan", key=key, make=lambda seed: source, seeds=setting.seeds)


@benchmark("accuracy", __doc__, SCALES)
@click.option("--inversion", type=PATH, help="Inverted latents, for the row of that name.")
@click.option("--dm", type=PATH, help="A bundle of learned pixels, for the row of that name.")
@click.option("--network", type=click.Choice(NETWORKS), help="By default as the scale says.")
@click.option("--rows", default=DEFAULT_ROWS, help="Joined by commas; by default all but the coresets.")
def main(run: Run[AccuracyScale], inversion: Path | None, dm: Path | None, network: str | None, rows: str) -> None:
    names = names_in(rows, ROWS)
    run = replace(run, scale=replace(run.scale, network=network or run.scale.network))
    results, setting = run.results(), run.open()
    inputs = Inputs(
        inversion=inversion,
        dm=None if dm is None else open_dm(setting, dm),
        qualities=run.scale.qualities,
        trials=run.results(run.out.with_suffix(".qualities.json")),
        coresets=run.out.with_suffix(".coresets.json"),
    )
    for name in names:
        if name in ("inversion", "dm") and getattr(inputs, name) is None:
            click.echo(f"no --{name}: the row {name!r} is left out", err=True)
            continue
        run_row(make_row(setting, name, inputs), setting, results)
    click.echo(report(run.out), nl=False)


def report(out: Path) -> str:
    """Markdown: the rows of a file of results."""
    return stored_results(out).table(ROWS)


def make_row(setting: Setting, name: str, inputs: Inputs) -> Row:
    if name == "real-count":
        return real_row(setting, name, equal_count=True)
    if name == "real-bytes":
        return real_row(setting, name)
    if name == "real-coded":
        chosen = best_quality(setting, inputs.qualities, inputs.trials)
        return real_row(setting, name, quality=chosen)
    if name in CORESETS:
        return coreset_row(setting, name, inputs.coresets)
    if name in ("gan", "gan-fresh"):
        return gan_row(setting, name)
    if name == "inversion":
        assert inputs.inversion is not None
        return inversion_row(setting, inputs.inversion)
    if name == "dm":
        assert inputs.dm is not None
        return dm_row(setting, inputs.dm)
    return bundle_row(setting) if name == "it-gan" else whole_row(setting)


def run_row(row: Row, setting: Setting, results: Results) -> None:
    """Train what is missing of a row, and keep each result at once."""
    for seed in row.seeds:
        if results.get(row.name, row.key, seed) is None:
            results.add(row.name, row.key, setting.run(row.make(seed), setting.test, seed, row.name))


if __name__ == "__main__":
    main()
