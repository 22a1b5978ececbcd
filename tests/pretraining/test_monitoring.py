import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from itgan_data.evaluation.features import FeatureNetwork
from itgan_data.evaluation.metrics import frechet_distance
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.store import load_generator
from itgan_data.images import LabeledImages, signed_to_uint8
from itgan_data.pretraining.batches import Batches
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.pretraining.monitoring import Monitor
from itgan_data.running.step_log import StepLog

CONFIG = GeneratorTrainerConfig(
    generator=BigGANConfig(num_classes=2, latent_dim=6, channels=(8, 8)), collapse_ratio=2.0, collapse_checks=3
)
PIXELS = FeatureNetwork("colours", lambda unit: F.avg_pool2d(unit, 4).flatten(1))


def make_average(seed: int) -> BigGAN:
    return BigGAN(CONFIG.generator, rng=torch.Generator().manual_seed(seed)).eval()


def images_of(generator: BigGAN, count: int = 60) -> LabeledImages:
    latents = torch.randn(count, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % 2
    with torch.no_grad():
        return LabeledImages(signed_to_uint8(generator(latents, labels)), labels, ("a", "b"))


def make_monitor(
    workdir: Path,
    *,
    step: int = 10**9,
    network: FeatureNetwork = PIXELS,
    config: GeneratorTrainerConfig = CONFIG,
) -> Monitor:
    """Of real images that the generator of seed 0 has made."""
    batches = Batches(config, images_of(make_average(0)))
    log = StepLog(workdir / "log.jsonl", step=step)
    return Monitor(network, batches, config, workdir=workdir, work={"seed": 0}, log=log)


def write_distances(workdir: Path, distances: Sequence[float], **change: Any) -> None:
    log = StepLog(workdir / "log.jsonl", step=10**9)
    for number, distance in enumerate(distances):
        log.write(number, **({"frechet_distance": distance, "network": "colours", "samples": 60} | change))


class TestCollapse:
    @pytest.mark.parametrize(
        ("distances", "collapsed"),
        [
            ([], False),
            ([5.0], False),
            ([9.0, 9.0, 9.0], False),
            ([4.0, 9.0, 9.0], False),
            ([4.0, 9.0, 9.0, 9.0], True),
            ([6.0, 4.0, 9.0, 8.1, 30.0], True),
            ([4.0, 9.0, 8.0, 9.0], False),
            ([4.0, 9.0, 9.0, 9.0, 5.0], False),
            ([0.0, 0.1, 0.1, 0.1], True),
        ],
    )
    def test_is_some_distances_in_a_row_above_a_multiple_of_the_lowest(
        self, tmp_path: Path, distances: list[float], collapsed: bool
    ) -> None:
        write_distances(tmp_path, distances)
        assert make_monitor(tmp_path).has_collapsed is collapsed

    def test_is_judged_by_the_configuration(self, tmp_path: Path) -> None:
        write_distances(tmp_path, [4.0, 9.0, 9.0, 9.0])
        assert not make_monitor(tmp_path, config=replace(CONFIG, collapse_ratio=2.5)).has_collapsed
        assert not make_monitor(tmp_path, config=replace(CONFIG, collapse_checks=4)).has_collapsed
        assert make_monitor(tmp_path, config=replace(CONFIG, collapse_checks=1)).has_collapsed

    @pytest.mark.parametrize("change", [{"network": "Inception v3"}, {"samples": 50}])
    def test_knows_nothing_of_distances_of_another_kind(self, tmp_path: Path, change: dict[str, Any]) -> None:
        write_distances(tmp_path, [0.1], **change)
        write_distances(tmp_path, [9.0, 9.0, 9.0, 9.0])
        monitor = make_monitor(tmp_path)
        assert not monitor.has_collapsed
        assert monitor.distances == {0: 9.0, 1: 9.0, 2: 9.0, 3: 9.0}


class TestCheck:
    def test_keeps_the_nearest_average(self, tmp_path: Path) -> None:
        """The images of seed 0 are nearest to the real ones, which it has made from other latents."""
        monitor = make_monitor(tmp_path)
        assert monitor.best_step is None
        for step, seed in ((10, 1), (20, 0), (30, 2)):
            monitor.check(make_average(seed), step)
        assert monitor.best_step == 20
        expected = make_average(0)
        latents, labels = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 2
        assert torch.equal(
            load_generator(tmp_path / "generator-best")(latents, labels), fold(expected)(latents, labels)
        )
        other = make_average(2)
        monitor.load_best(other)
        assert torch.equal(other(latents, labels), expected(latents, labels))
        assert make_monitor(tmp_path).distances == monitor.distances
        assert make_monitor(tmp_path, step=15).best_step == 10

    def test_measures_images_of_the_labels_of_the_real_ones(self, tmp_path: Path) -> None:
        config = replace(CONFIG, monitor_samples=40)
        monitor = make_monitor(tmp_path, config=config)
        monitor.check(make_average(1), 5)
        reference = monitor.batches.reference(40)
        with torch.no_grad():
            images = signed_to_uint8(make_average(1)(monitor.batches.fixed_latents(40), reference.labels))
        expected = frechet_distance(PIXELS.features(reference.images), PIXELS.features(images))
        assert monitor.distances[5] == pytest.approx(expected)
        [line] = (tmp_path / "log.jsonl").read_text().splitlines()
        assert json.loads(line) == {
            "step": 5,
            "frechet_distance": monitor.distances[5],
            "network": "colours",
            "samples": 40,
        }

    def test_a_best_average_that_is_gone_is_named(self, tmp_path: Path) -> None:
        write_distances(tmp_path, [3.0])
        with pytest.raises(ValueError, match="checkpoint-best is missing, where the moving average of step 0 was kept"):
            make_monitor(tmp_path).load_best(make_average(0))
