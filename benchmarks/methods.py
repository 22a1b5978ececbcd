"""Every method of condensation on CIFAR-10, end to end, and the selections and draws that cost nothing.

    random, herding, forgetting                 real images
    gan                                         the bundle's generator on normal draws
    inversion-optimization, -encoder, -both     latents of real images
    it-gan, it-gan-gradient                     latents learned from there
    dm, dm-batch-norm, dc, dsa                  pixels learned from real images; dc-noise from noise

All have as many images and train the same network by the same recipe; the spread is that of the networks, and of the
images where each seed draws its own (random, gan). A scale changes the published configurations, the number of steps
above all, so that `cpu` shows the methods at equal images and little work, not at their best. Learned sets and results
are kept as they are made; the same command again goes on with what is missing.

    python benchmarks/methods.py --scale cpu --data imagefolder:DIR --workdir WORKDIR

Source of the published numbers: Zhao and Bilen, "Dataset condensation with distribution matching", 2023, Table 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from cells import link
from coresets import choose_coresets
from setting import Run, Scale, Setting, benchmark, generator_checksum, names_in, summary_of

from itgan_data.condense import methods
from itgan_data.condense.condenser import Condenser
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.condense.selection import select_random
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.evaluation.results import Results, RowKey
from itgan_data.generators.pixels import Pixels
from itgan_data.generators.store import WEIGHTS_FILE
from itgan_data.images import ImageSource
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.recipes import fast_recipe, paper_recipe
from itgan_data.storage.files import read_json

METHODS: dict[str, Callable[..., CondenserConfig]] = {
    "inversion-optimization": partial(methods.gan_inversion, by="optimization"),
    "inversion-encoder": partial(methods.gan_inversion, by="encoder"),
    "inversion-both": methods.gan_inversion,
    "it-gan": methods.it_gan,
    "it-gan-gradient": methods.it_gan_gradient,
    "dm": methods.dm,
    "dm-batch-norm": partial(methods.dm, norm="batch"),
    "dc-noise": methods.dc,
    "dc": partial(methods.dc, initialize="inversion"),
    "dsa": methods.dsa,
}
PIXELS = ("dm", "dm-batch-norm", "dc-noise", "dc", "dsa")
CORESETS = ("herding", "forgetting")
ROWS = ("random", *CORESETS, "gan", *METHODS)
PAPER = {  # per cent
    "random": "26.0 ± 1.2",
    "herding": "31.6 ± 0.7",
    "forgetting": "23.3 ± 1.0",
    "dm": "48.9 ± 0.6",
    "dc-noise": "44.9 ± 0.5",
    "dsa": "52.1 ± 0.5",
}


@dataclass(frozen=True, kw_only=True)
class MethodsScale(Scale):
    """How much work a method is."""

    images_per_class: int = 10
    common: Mapping[str, Any] = field(default_factory=dict)
    """What is changed of every configuration."""
    inversion: Mapping[str, int] = field(default_factory=dict)
    """Numbers of steps of the inversion, where a method takes such steps at all."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is changed of single methods."""
    flips: bool = True
    """Whether a mirrored image keeps its class."""


# Digits, in seconds: shows that all works.
TINY_LOOPS = {"steps": 2, "networks": FreshNetworks(width=8, outer_steps=2, inner_epochs=1)}
TINY = MethodsScale(
    images_per_class=2,
    recipe=fast_recipe(4, 16),
    seeds=1,
    common={
        "real_batch_size": 8,
        "pool": PoolConfig(num_networks=1, width=8, steps=4, snapshots=1, validation_images=100, flips=False),
    },
    inversion={"encoder_steps": 2, "steps": 1},
    changes={
        "it-gan": {"steps": 2},
        "it-gan-gradient": {"steps": 2},
        "dm": {"steps": 2, "networks": FreshNetworks(width=8)},
        "dm-batch-norm": {"steps": 2, "networks": FreshNetworks(width=8, norm="batch")},
        "dc-noise": TINY_LOOPS,
        "dc": TINY_LOOPS,
        "dsa": TINY_LOOPS,
    },
    flips=False,
)
# Two cores, an hour. Gradient matching cannot compile its networks, and bfloat16 pays on the CPU only where it can.
GRADIENT = {"steps": 40, "real_batch_size": 32, "precision": "float32", "compile": False}
LOOPS = {**GRADIENT, "networks": FreshNetworks(outer_steps=10, inner_epochs=10)}
CPU = MethodsScale(
    recipe=replace(fast_recipe(200, 64), precision="bfloat16", compile=True),
    common={
        "real_batch_size": 64,
        "pool": PoolConfig(num_networks=2, steps=600, precision="bfloat16", compile=True),
        "precision": "bfloat16",
        "compile": True,
    },
    inversion={"encoder_steps": 500, "steps": 200},
    changes={
        "it-gan": {"steps": 150, "lr_latents": 1e-2},  # the learning rate that is best in the paper's Table 4
        "it-gan-gradient": GRADIENT,
        "dm": {"steps": 300},
        "dm-batch-norm": {"steps": 300},
        "dc-noise": LOOPS,
        "dc": LOOPS,
        "dsa": LOOPS,
    },
)
SCALES = {"tiny": TINY, "cpu": CPU, "gpu": MethodsScale(recipe=paper_recipe(1000, num_images=100))}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where rows come from."""

    setting: Setting
    scale: MethodsScale
    workdir: Path

    @property
    def num_images(self) -> int:
        return self.scale.images_per_class * self.setting.train.num_classes


def configuration(bench: Bench, name: str) -> CondenserConfig:
    """A method at the scale of the bench."""
    scale = bench.scale
    config = METHODS[name](images_per_class=scale.images_per_class)
    steps = {part: count for part, count in scale.inversion.items() if getattr(config.inversion, part)}
    strategy = [part for part in config.strategy.split("_") if part != "flip" or scale.flips]
    return replace(
        config,
        **{**scale.common, **scale.changes.get(name, {})},
        inversion=replace(config.inversion, **steps),
        strategy="_".join(strategy),
        normalization=bench.setting.bundle.normalization,
    )


def learn(bench: Bench, name: str) -> SyntheticDataset:
    """What a method learns."""
    setting, folder, config = bench.setting, bench.workdir / name, configuration(bench, name)
    generator: Any = setting.bundle.generator
    if name in PIXELS:
        generator = Pixels(setting.train.image_shape, setting.train.num_classes, config.normalization)
    link(folder / "pool", bench.workdir / "pool")
    condenser = Condenser(generator, setting.train, config, workdir=folder, device=setting.device)
    return SyntheticDataset(generator, condenser.run(), device=setting.device)


def draw(bench: Bench, name: str, seed: int) -> ImageSource:
    """Real images, or normal draws of the generator."""
    train, generator = bench.setting.train, bench.setting.bundle.generator
    if name == "random":
        return train.select(select_random(train, bench.scale.images_per_class, seed=seed))
    if name in CORESETS:
        chosen = choose_coresets(bench.setting, bench.scale.images_per_class, bench.workdir / "coresets.json")
        return train.select(torch.tensor(chosen[name]))
    drawn = RandomLatents(bench.num_images, generator.latent_dim, generator.num_classes, seed=seed)
    return SyntheticDataset(generator, LatentSet.drawn_from(drawn), device=bench.setting.device)


def row_key(bench: Bench, name: str) -> RowKey:
    """Images in uint8; latents in float16, with their generator."""
    bundle, count = bench.setting.bundle, bench.num_images
    if name in ("random", *CORESETS, *PIXELS):
        num_bytes = count * math.prod(bench.setting.train.image_shape)
        return RowKey(num_images=count, num_bytes=num_bytes, content="uint8 pixels")
    num_bytes = (bundle.path / WEIGHTS_FILE).stat().st_size + 2 * count * bundle.generator.latent_dim
    return RowKey(num_images=count, num_bytes=num_bytes, content=generator_checksum(bundle))


def run_row(bench: Bench, name: str, results: Results) -> None:
    """Train what is missing of a row, and keep each result at once."""
    setting, key = bench.setting, row_key(bench, name)
    missing = [seed for seed in setting.seeds if results.get(name, key, seed) is None]
    learned = learn(bench, name) if missing and name in METHODS else None
    for seed in missing:
        source = draw(bench, name, seed) if learned is None else learned
        results.add(name, key, setting.run(source, setting.test, seed, name))


def report(out: Path) -> str:
    """Markdown: the rows of a file of results, with the published numbers."""
    content = read_json(out)
    rows, images_per_class = content["rows"], content["settings"]["configurations"]["it-gan"]["images_per_class"]
    lines = [f"| {images_per_class} images per class | here (%) | published, 10 (%) |", "|---|---:|---:|"]
    for name in ROWS:
        if name in rows:
            lines.append(f"| {name} | {summary_of(rows[name])} | {PAPER.get(name, '')} |")
    return "\n".join(lines) + "\n"


@benchmark("methods", __doc__, SCALES, keeps="the networks and what is learned")
@click.option("--rows", default=",".join(ROWS), help="Joined by commas; by default all.")
def main(run: Run[MethodsScale], rows: str) -> None:
    names = names_in(rows, ROWS)
    bench = Bench(setting=run.open(), scale=run.scale, workdir=run.workdir)
    configurations = {name: asdict(configuration(bench, name)) for name in METHODS}
    results = run.results(configurations=configurations, data=bench.setting.train.fingerprint[:12])
    for name in names:
        run_row(bench, name, results)
    click.echo(report(run.out), nl=False)


if __name__ == "__main__":
    main()
