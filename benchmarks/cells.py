"""Cells of the ablations: configurations of the Condenser that share generator, pool and start, each made once."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from setting import Scale, Setting, generator_checksum, summary_of

from itgan_data.condense.condenser import Condenser, OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.pool import EmbeddingPool, build_pool
from itgan_data.evaluation.results import Results, RowKey, Summary, environment
from itgan_data.generators.store import WEIGHTS_FILE
from itgan_data.images import LabeledImages
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json


@dataclass(frozen=True, kw_only=True)
class AblationsScale(Scale):
    """How much work a cell is."""

    few: int
    """Latents per class in Tables 4 and 7; 100 in the paper."""
    many: int
    """Latents per class in Tables 5 and 6; 500 in the paper."""
    base: CondenserConfig
    """What cells have in common: random networks, all latents together, lambda 0."""
    judging_seeds: int
    """Networks that judge a cell on held-out images."""
    rates: tuple[float, ...]
    """Learning rates to choose from."""
    weights: tuple[float, ...]
    """Positive lambdas to choose from."""
    parts: tuple[int, ...] = (1, 2, 4, 5)
    """Numbers of groups in Table 5, some of the paper's."""
    lambdas: tuple[float, ...] = (0.0, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Those of Table 6, some of the paper's."""


def cell_name(config: CondenserConfig) -> str:
    """What tells a cell from the others, fit for a folder."""
    count = config.images_per_class
    assert count is not None
    size = config.group_size or count
    redrawn = "-redrawn" if config.regroup else ""
    networks = "random" if config.networks is not None else "pool"
    if config.band is not None:
        networks += "-{:g}-{:g}".format(*config.band)
    rate, weight = config.lr_latents, config.regularizer_weight
    return f"{config.objective}-lr{rate:g}-{count // size}x{size}{redrawn}-lambda{weight:g}-{networks}"


def link(place: Path, stage: Path) -> None:
    """Make a stage of the workdir that holds `place` one that is kept elsewhere."""
    for folder in (place.parent, stage):
        folder.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(stage.resolve(), target_is_directory=True)


class Record:
    """What a `Lab` has measured, read from its two files.

    Args:
        scale: how much work a cell was.
        out: JSON of the results on test images; those on held-out images lie next to it.
    """

    def __init__(self, scale: AblationsScale, out: Path) -> None:
        self.scale = scale
        self.base = scale.base
        self.out = out
        self.trials_file = out.with_suffix(".tuning.json")

    def cell(self, count: int, **changes: Any) -> CondenserConfig:
        """A configuration of `count` latents per class."""
        return replace(self.base, images_per_class=count, **changes)

    def has_networks(self, config: CondenserConfig) -> bool:
        """Whether the pool has a network that is as accurate as the cell's band asks."""
        return self._stored(config, self.out) is not None

    def judge(self, config: CondenserConfig) -> float:
        """Accuracy on held-out training images."""
        stored = self._stored(config, self.trials_file)
        if stored is None:
            raise ValueError(
                f"{self.trials_file} has no cell {cell_name(config)}; run ablations.py again to measure it"
            )
        return stored.mean

    def tested(self, config: CondenserConfig) -> Summary | None:
        """Accuracy on the test images, if it was measured by all networks."""
        stored = self._stored(config, self.out)
        return stored if stored is not None and stored.num_seeds >= self.scale.seeds else None

    def _stored(self, config: CondenserConfig, file: Path) -> Summary | None:
        rows = read_json(file)["rows"] if file.is_file() else {}
        name = cell_name(config)
        return summary_of(rows[name]) if name in rows else None


class Lab(Record):
    """Condenses cells and judges them, each once.

    Args:
        setting: bundle, training images without `judges`, test images, recipe.
        judges: held-out training images.
        scale: how much work a cell is.
        workdir: where stages and latents are kept.
        out: JSON of the results on test images; those on held-out images go next to it.
        max_minutes: from now; None for no limit. What measures or condenses raises `OutOfTimeError` about then.
    """

    def __init__(
        self,
        setting: Setting,
        judges: LabeledImages,
        scale: AblationsScale,
        *,
        workdir: Path,
        out: Path,
        max_minutes: float | None = None,
    ) -> None:
        super().__init__(scale, out)
        self.setting = setting
        self.judges = judges
        self.workdir = workdir
        self.deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.base = replace(scale.base, normalization=setting.bundle.normalization)
        self.pool_folder = workdir / "pool"
        settings = {
            "condenser": asdict(self.base),
            "network": setting.network,
            "recipe": setting.recipe.to_json(),
            "generator": generator_checksum(setting.bundle),
            "data": setting.train.fingerprint[:12],
        }
        self.started: set[int | None] = set()
        machine = environment(setting.device)
        self.results = Results(out, settings=settings, environment=machine)
        self.trials = Results(self.trials_file, settings=settings, environment=machine)

    @cached_property
    def pool(self) -> EmbeddingPool:
        """The networks of inversion and Table 7."""
        self._start(self.scale.few)
        real_images, base = self.setting.train.to(self.setting.device), self.base
        return build_pool(
            real_images, base.pool, normalization=base.normalization, seed=base.seed, workdir=self.pool_folder
        )

    def has_networks(self, config: CondenserConfig) -> bool:
        low, high = config.band or (0, 1)
        return any(low <= accuracy <= high for accuracy in self.pool.accuracies)

    def judge(self, config: CondenserConfig) -> float:
        self._measure(config, self.trials, self.judges, range(self.scale.judging_seeds))
        return super().judge(config)

    def test(self, config: CondenserConfig) -> None:
        """Measure a cell on the test images."""
        self._measure(config, self.results, self.setting.test, self.setting.seeds)

    def _measure(self, config: CondenserConfig, results: Results, images: LabeledImages, seeds: Sequence[int]) -> None:
        name, key = cell_name(config), self._key(config)
        missing = [seed for seed in seeds if results.get(name, key, seed) is None]
        if not missing:
            return
        source = self.setting.synthetic(self._latents(config))
        for seed in missing:
            self._minutes_left()
            results.add(name, key, self.setting.run(source, images, seed, name))

    def _key(self, config: CondenserConfig) -> RowKey:
        bundle = self.setting.bundle
        count = len(bundle.class_names) * (config.images_per_class or 0)
        num_bytes = (bundle.path / WEIGHTS_FILE).stat().st_size + 4 * count * bundle.generator.latent_dim
        return RowKey(num_images=count, num_bytes=num_bytes, content=f"float32 latents, {generator_checksum(bundle)}")

    def _latents(self, config: CondenserConfig) -> LatentSet:
        """The latents of a cell, condensed as far as they are not there yet."""
        folder = self.workdir / "cells" / cell_name(config)
        link(folder / "pool", self.pool_folder)
        link(folder / "inversion", self._start(config.images_per_class) / "inversion")
        return self._condense(config, folder)

    def _start(self, count: int | None) -> Path:
        """The workdir of the start of all cells of so many latents per class, made if it is not there yet."""
        folder = self.workdir / f"start-{count}"
        if count not in self.started:
            link(folder / "pool", self.pool_folder)
            self._condense(replace(self.base, images_per_class=count, steps=0), folder)
            self.started.add(count)
        return folder

    def _condense(self, config: CondenserConfig, workdir: Path) -> LatentSet:
        generator, device = self.setting.bundle.generator, self.setting.device
        condenser = Condenser(generator, self.setting.train, config, workdir=workdir, device=device)
        return condenser.run(self._minutes_left())

    def _minutes_left(self) -> float | None:
        if self.deadline == math.inf:
            return None
        left = (self.deadline - time.monotonic()) / 60
        if left <= 0:
            raise OutOfTimeError(f"out of time; the work so far is in {self.workdir}, run again to go on")
        return left


def tune_rate(lab: Record, config: CondenserConfig) -> CondenserConfig:
    """The learning rate that fits a group size, without regulariser."""
    return max((replace(config, lr_latents=rate) for rate in lab.scale.rates), key=lab.judge)


def tune(lab: Record, config: CondenserConfig) -> CondenserConfig:
    """The learning rate that fits a group size, and then lambda."""
    best = tune_rate(lab, config)
    return max([best, *(replace(best, regularizer_weight=weight) for weight in lab.scale.weights)], key=lab.judge)
