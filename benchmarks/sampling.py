"""Which way to draw GAN samples gives the better classifier? Slim, 2020, Tables 1 and 3, and what learned latents add.

Every row of Table 1 trains fresh networks with one recipe and one number of updates on generated images, and tests them
on real ones; the spread is that of the networks, and of the draws, which are each network's own. A row is named after
what its latents are and what is done to them, joined by +:

    fixed        normal draws, made once
    fresh        normal draws, new in every epoch
    several      fresh, one of several generators (--generator) drawn for each batch
    learned      the bundle's latents
    real         all real images
    transforms   crops and flips of the images
    truncation   latents within [-1.5, 1.5]
    filter       draws that a classifier gives their label with probability .9 or more; it is trained on all real
                 images, for longer than the rows: one that is seldom so sure accepts next to nothing
    jitter       learned latents plus new noise in every epoch
    mixed        half of the learned latents, other ones in every epoch, replaced by fresh draws

Table 3, several generators, is in `complementary.py`: on digits whatever the data, for its rows train generators.
Results are kept as soon as they exist; the same command again goes on with what is missing.

    python benchmarks/sampling.py --scale cpu --data imagefolder:DIR --workdir WORKDIR

Source: Slim, "Boosting generative networks for incremental learning", 2020: ResNet-20 of width 64, 72,000 updates of
125 images, learning rate / 10 at 100 and 150 of 180 epochs, 50,000 fixed ones, the best accuracy of the training. Here
the accuracy is the last one, and the scale `gpu` has as many updates of a ResNet-18 in one cycle.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import complementary
import torch
from setting import (
    PATH,
    Run,
    Scale,
    Setting,
    benchmark,
    generator_checksum,
    names_in,
    summary_of,
    train_and_test,
    verdict,
)
from torch import nn

from itgan_data.augmentation import CropFlip
from itgan_data.data.ensemble import SyntheticEnsemble
from itgan_data.draws import Stream, make_seed
from itgan_data.evaluation.results import Results, RowKey
from itgan_data.generators.store import WEIGHTS_FILE, load_generator
from itgan_data.images import ImageSource
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.latents.stored import LatentSet, LatentSource
from itgan_data.networks import create_network
from itgan_data.recipes import Recipe, fast_recipe
from itgan_data.storage.files import (
    fingerprint,
    load_tensors,
    read_json,
    save_tensors,
    sha256_of,
    write_json,
)

PAPER = {  # accuracy in percent, Table 1
    "fixed": 62.26,
    "fixed+transforms": 79.76,
    "fixed+filter": 67.98,
    "fixed+truncation": 59.35,
    "fixed+transforms+filter": 83.84,
    "fixed+transforms+filter+truncation": 78.02,
    "fresh": 59.48,
    "fresh+transforms": 84.25,
    "fresh+filter": 66.50,
    "fresh+truncation": 56.98,
    "fresh+transforms+filter": 88.56,
    "fresh+transforms+filter+truncation": 83.85,
    "real+transforms": 94.26,
}
LEARNED = ("learned+transforms", "learned+transforms+jitter", "learned+transforms+mixed")
SEVERAL = ("several+transforms", "several+transforms+filter")
ROWS = (*PAPER, *LEARNED, *SEVERAL)
TRUNCATION = 1.5
MIN_PROBABILITY = 0.9
JITTER = 0.3
FILTER = "the filter's classifier"
FILTER_SEED = 1000  # unlike those of the rows


@dataclass(frozen=True, kw_only=True)
class SamplingScale(Scale):
    """How much work a row is."""

    num_images: int
    """Of a fixed set, and in an epoch of fresh draws."""
    filter_steps: int
    """Updates of the classifier that filters."""


SCALES = {
    # Seconds: shows that all works.
    "tiny": SamplingScale(recipe=fast_recipe(1, 16), num_images=20, filter_steps=1, seeds=1),
    # Two cores, one hour and a half: a filtered image costs eight draws on average.
    "cpu": SamplingScale(
        recipe=replace(fast_recipe(400), precision="bfloat16", compile=True),
        num_images=10_000,
        filter_steps=1600,
        seeds=2,
    ),
    "gpu": SamplingScale(
        network="resnet18",
        recipe=Recipe(steps=180 * 400, batch_size=125, lr=0.1, weight_decay=1e-4, augmentation=CropFlip()),
        num_images=50_000,
        filter_steps=180 * 400,
        seeds=3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What rows are made of, in addition to the setting."""

    generators: list[nn.Module]
    """The bundle's, then others."""
    checksums: list[str]
    """What tells one from another, in their order."""
    classifier: nn.Module
    """Trained on the real images."""
    num_images: int


def make_latents(
    setting: Setting, name: str, inputs: Inputs, generator: Any, seed: int
) -> tuple[LatentSource, FilteredLatents | None]:
    """The latents of a row for one generator, and the filter that they passed."""
    parts = name.split("+")
    learned = setting.bundle.latents if parts[0] == "learned" else None
    drawn: LatentSource = RandomLatents(
        inputs.num_images if learned is None else len(learned),
        generator.latent_dim,
        generator.num_classes,
        truncation=TRUNCATION if "truncation" in parts else None,
        labels=None if learned is None else learned.labels,
        seed=seed,
    )
    if learned is not None:
        if "mixed" in parts:
            return MixedLatents(learned, drawn, seed=seed), None
        return (JitteredLatents(learned, JITTER, seed=seed) if "jitter" in parts else learned), None
    filtered = None
    if "filter" in parts:
        drawn = filtered = FilteredLatents(
            drawn,
            generator,
            inputs.classifier,
            normalization=setting.bundle.normalization,
            min_probability=MIN_PROBABILITY,
            dtype=getattr(torch, setting.recipe.precision),
        )
    return (LatentSet.drawn_from(drawn) if parts[0] == "fixed" else drawn), filtered


def make_source(setting: Setting, name: str, inputs: Inputs, seed: int) -> tuple[ImageSource, list[FilteredLatents]]:
    """The training set of a row, and its filters."""
    if name.startswith("real"):
        return setting.train, []
    several = name.startswith("several")
    datasets, filters = [], []
    for number, generator in enumerate(inputs.generators if several else inputs.generators[:1]):
        own_seed = make_seed(seed, number, stream=Stream.SCRIPT) if number else seed
        latents, filtered = make_latents(setting, name, inputs, generator, own_seed)
        bundle = replace(setting.bundle, generator=generator)
        datasets.append(replace(setting, bundle=bundle).synthetic(latents))
        filters += [filtered] if filtered is not None else []
    return (SyntheticEnsemble(datasets, seed=seed) if several else datasets[0]), filters


def row_key(setting: Setting, name: str, inputs: Inputs) -> RowKey:
    """What a row is made from."""
    parts = name.split("+")
    if parts[0] == "real":
        return real_key(setting)
    bundle = setting.bundle
    used = inputs.checksums if parts[0] == "several" else inputs.checksums[:1]
    details = {"filter": fingerprint(inputs.classifier.state_dict())[:12], "truncation": TRUNCATION, "jitter": JITTER}
    chosen = [f"{part} {details[part]}" for part in parts if part in details]
    count = len(bundle.latents) if parts[0] == "learned" else inputs.num_images
    weights = (bundle.path / WEIGHTS_FILE).stat().st_size * len(used)
    return RowKey(
        num_images=count if parts[0] == "fixed" or name == LEARNED[0] else None,
        num_bytes=bundle.num_bytes if parts[0] == "learned" else weights,
        content=", ".join([*chosen, f"epochs of {count}", *used]),
    )


def real_key(setting: Setting) -> RowKey:
    """All real images."""
    train = setting.train
    return RowKey(num_images=len(train), num_bytes=train.images.nbytes, content=f"all, {train.fingerprint[:12]}")


def train_filter(setting: Setting, steps: int, file: Path, results: Results) -> nn.Module:
    """The classifier that filters, trained on all real images and kept in `file`; its accuracy is a result too."""
    train, key = setting.train, real_key(setting)
    network = create_network(setting.network, train.num_classes, image_shape=train.image_shape)
    if file.is_file() and results.get(FILTER, key, FILTER_SEED) is not None:
        network.load_state_dict(load_tensors(file))
        return _ready(network, setting)
    result = train_and_test(
        train,
        setting.test,
        lambda rng: network,
        replace(setting.recipe, steps=steps),
        seed=FILTER_SEED,
        normalization=setting.bundle.normalization,
        device=setting.device,
        title=FILTER,
    )
    save_tensors(file, {name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    results.add(FILTER, key, result)
    return _ready(network, setting)


def _ready(network: nn.Module, setting: Setting) -> nn.Module:
    if setting.recipe.compile:
        network.compile(dynamic=True)  # a filter's batches have all sizes
    return network.to(setting.device)


def run_row(setting: Setting, name: str, inputs: Inputs, seed: int, results: Results, rates: Path) -> None:
    """Train a network of a row if it is missing, and keep its result, and what its filters let through, at once."""
    key = row_key(setting, name, inputs)
    if results.get(name, key, seed) is not None:
        return
    if "transforms" not in name.split("+"):
        setting = replace(setting, recipe=replace(setting.recipe, augmentation=None))
    source, filters = make_source(setting, name, inputs, seed)
    results.add(name, key, setting.run(source, setting.test, seed, name))
    if filters:
        kept = read_json(rates) if rates.is_file() else {}
        asked = [one for one in filters if one.num_tried.any()]  # a generator may not have been drawn
        write_json(rates, {**kept, name: [passed(one) for one in asked]})


def passed(filtered: FilteredLatents) -> dict[str, Any]:
    """What a filter let through, in all and of each class."""
    return {
        "acceptance_rate": filtered.acceptance_rate,
        "of_each_class": (filtered.num_accepted / filtered.num_tried.clamp(min=1)).tolist(),
        "given_up": int(filtered.num_given_up.sum()),
        "tried": int(filtered.num_tried.sum()),
    }


def report(out: Path) -> str:
    """Two Markdown tables: the rows of a file of results with the paper's, and what each choice changes in both."""
    rows, file = read_json(out)["rows"], out.with_suffix(".rates.json")
    rates = read_json(file) if file.is_file() else {}
    here = {name: summary_of(rows[name]) for name in ROWS if name in rows}
    lines = [
        "| training set | filter accepts (%) | Slim (%) | test accuracy (%) | seeds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, summary in here.items():
        shares = ", ".join(f"{100 * rate['acceptance_rate']:.1f}" for rate in rates.get(name, []))
        lines.append(f"| {name} | {shares} | {PAPER.get(name, '')} | {summary} | {summary.num_seeds} |")
    lines += ["", "| change | from | Slim | here | the paper's sign |", "|---|---|---:|---:|---|"]
    for change, before, after in changes():
        if before in here and after in here:
            paper, ours = PAPER[after] - PAPER[before], 100 * (here[after].mean - here[before].mean)
            better, worse = (after, before) if paper > 0 else (before, after)
            holds = verdict(here[better], here[worse])
            lines.append(f"| {change} | {before} | {paper:+.2f} | {ours:+.2f} | {holds} |")
    accuracy = 100 * rows[FILTER]["summary"]["mean"]
    return "\n".join([*lines, "", f"The classifier that filters recognises {accuracy:.2f}% of the test images."]) + "\n"


def changes() -> list[tuple[str, str, str]]:
    """Pairs of rows of the paper that differ in one choice: its name, the row before, the row after."""
    pairs = []
    for before in PAPER:
        for part in ("transforms", "filter", "truncation"):
            pairs += [(part, before, after) for after in PAPER if after == f"{before}+{part}"]
        if before.startswith("fixed"):
            pairs.append(("fresh", before, before.replace("fixed", "fresh")))
    return sorted(pairs)


def table_1(names: list[str], run: Run[SamplingScale], others: tuple[Path, ...]) -> None:
    """Measure what is missing of some rows."""
    results, setting = run.results(filter_steps=run.scale.filter_steps), run.open()
    checksums = [f"generator {sha256_of(path / WEIGHTS_FILE)[:12]}" for path in others]
    generators = [setting.bundle.generator, *map(load_generator, others)]
    inputs = Inputs(
        generators=[generator.to(run.device) for generator in generators],
        checksums=[generator_checksum(setting.bundle), *checksums],
        classifier=train_filter(setting, run.scale.filter_steps, run.out.with_suffix(".filter.safetensors"), results),
        num_images=run.scale.num_images,
    )
    if not others and (without := [name for name in names if name in SEVERAL]):
        click.echo(f"no --generator: left out {', '.join(without)}", err=True)
        names = [name for name in names if name not in without]
    for seed in setting.seeds:  # a run that is stopped leaves a whole table of fewer networks
        for name in names:
            run_row(setting, name, inputs, seed, results, run.out.with_suffix(".rates.json"))


@benchmark("sampling", __doc__, SCALES, keeps="the generators of Table 3")
@click.option("--tables", default="1,3", show_default=True, help="Joined by commas; 3 is always the same work.")
@click.option("--generator", "others", multiple=True, type=PATH, help="One more, for the rows 'several'.")
@click.option("--rows", default=",".join(ROWS), help="Of Table 1, joined by commas; by default all.")
def main(run: Run[SamplingScale], tables: str, others: tuple[Path, ...], rows: str) -> None:
    wanted, names = names_in(tables, "13"), names_in(rows, ROWS)
    if "1" in wanted:
        table_1(names, run, others)
        click.echo(report(run.out), nl=False)
    if "3" in wanted:
        out = run.out.with_suffix(".table-3.json")
        complementary.measure_all(run.workdir, out, run.device)
        click.echo(complementary.report(out), nl=False)


if __name__ == "__main__":
    main()
