from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import benchmark_script

from itgan_data.bundle.writing import save_bundle
from itgan_data.evaluation.results import SeedResult
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.pixels import Pixels
from itgan_data.images import LabeledImages, Normalization, to_pil
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json

CLASSES = ("cat", "dog")
CONFIG = {
    "dataset": "toy",
    "class_names": list(CLASSES),
    "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "method": "IT-GAN",
    "training": {},
    "metrics": {},
}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("accuracy") as module:
        yield module


@pytest.fixture
def images() -> LabeledImages:
    """Smooth images, which lossy coding leaves nearly as they are."""
    coarse = torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return LabeledImages((smooth * 255).to(torch.uint8), torch.arange(60) % 2, CLASSES)


def test_every_beginning_of_the_order_is_balanced(script: ModuleType) -> None:
    labels = torch.tensor([0] * 20 + [1] * 9 + [2] * 12)
    order = script.balanced_order(labels, seed=3)
    assert len(order) == len(order.unique()) == 27
    for length in range(1, 28):
        counts = labels[order[:length]].bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(order, script.balanced_order(labels, seed=3))
    assert not torch.equal(order, script.balanced_order(labels, seed=4))


class Bench:
    """The benchmark on a small folder of images and a small bundle; training itself is left out."""

    def __init__(self, folder: Path, images: LabeledImages, script: ModuleType) -> None:
        self.folder = folder
        self.script = script
        self.trained: list[tuple[int, int]] = []  # images and seed of each training
        for split in ("train", "test"):
            for index, image in enumerate(images.images):
                place = folder / split / CLASSES[int(images.labels[index])]
                place.mkdir(parents=True, exist_ok=True)
                to_pil(image).save(place / f"{index:03}.png")
        self.save_bundle(seed=0)
        self.save_pixels(images_per_class=1)

    def save_bundle(self, seed: int) -> None:
        generator = BigGAN(BigGANConfig(num_classes=2, channels=(8, 8, 8, 8), latent_dim=8)).eval()
        rng = torch.Generator().manual_seed(seed)
        latents = LatentSet(torch.randn(12, 8, generator=rng), torch.arange(12) % 2)
        save_bundle(self.folder / "bundle", generator, latents, config=CONFIG, preview=False)
        latents.save(self.folder / "inversion.safetensors", dtype=torch.float32)

    def save_pixels(self, images_per_class: int) -> None:
        """Learned pixels, were they learned."""
        pixels = Pixels((3, 32, 32), 2, Normalization((0.5,) * 3, (0.25,) * 3))
        count = 2 * images_per_class
        latents = LatentSet(torch.randn(count, pixels.latent_dim), torch.arange(count) % 2)
        save_bundle(self.folder / "dm", pixels, latents, config=CONFIG, preview=False, latents_dtype=torch.float16)

    def evaluate(self, source: Any, *_: Any, seeds: list[int], **__: Any) -> list[SeedResult]:
        self.trained.append((len(source), seeds[0]))
        return [SeedResult(seed=seeds[0], accuracy=len(source) / 100, final_loss=1.0, seconds=0.1)]

    def run(self, *options: str) -> Result:
        self.trained.clear()
        arguments = ["--data", f"imagefolder:{self.folder}", "--bundle", str(self.folder / "bundle")]
        arguments += ["--inversion", str(self.folder / "inversion.safetensors"), "--dm", str(self.folder / "dm")]
        arguments += ["--device", "cpu", "--scale", "tiny"]
        arguments += ["--seeds", "2", "--out", str(self.folder / "out.json"), *options]
        return CliRunner().invoke(self.script.main, arguments)


@pytest.fixture
def bench(
    tmp_path: Path, images: LabeledImages, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    bench = Bench(tmp_path, images, script)
    monkeypatch.setattr("setting.evaluate", bench.evaluate)
    return bench


def test_rows_have_the_count_or_the_bytes_of_the_bundle(bench: Bench) -> None:
    result = bench.run()
    assert result.exit_code == 0, result.output
    assert len(bench.trained) == 2 + 8 * 2 + 1  # qualities, rows of two seeds, the whole set once
    rows = read_json(bench.folder / "out.json")["rows"]
    assert list(rows) == bench.script.DEFAULT_ROWS.split(",")
    budget = rows["it-gan"]["key"]["num_bytes"]
    assert rows["real-count"]["key"]["num_images"] == rows["it-gan"]["key"]["num_images"] == 12
    assert rows["real-bytes"]["key"]["num_bytes"] <= budget
    assert rows["real-coded"]["key"]["num_bytes"] <= budget
    assert rows["inversion"]["key"]["num_bytes"] == budget  # as stored in a bundle, not as float32
    assert rows["gan"]["key"]["num_bytes"] < budget
    assert rows["dm"]["key"]["num_images"] == 2
    assert rows["dm"]["key"]["num_bytes"] <= budget


def test_another_bundle_is_measured_again(bench: Bench) -> None:
    bench.run("--rows", "real-count,it-gan")
    bench.save_bundle(seed=1)
    bench.run("--rows", "real-count,it-gan")
    assert bench.trained == [(12, 0), (12, 1)]


def test_fixed_draws_are_as_many_as_latents_and_fresh_ones_without_end(bench: Bench) -> None:
    assert bench.run("--rows", "gan,gan-fresh").exit_code == 0
    rows = read_json(bench.folder / "out.json")["rows"]
    assert (rows["gan"]["key"]["num_images"], rows["gan-fresh"]["key"]["num_images"]) == (12, None)


def test_pixels_of_more_bytes_than_the_bundle_are_refused(bench: Bench) -> None:
    bench.save_pixels(images_per_class=30)
    result = bench.run()
    assert "condense fewer images per class" in result.output
    assert bench.trained == []


def test_coresets_are_chosen_once_as_many_as_latents(bench: Bench) -> None:
    arguments = ("--rows", "real-herding,real-forgetting")
    assert bench.run(*arguments).exit_code == 0
    assert bench.trained == [(12, 0), (12, 1)] * 2
    rows = read_json(bench.folder / "out.json")["rows"]
    assert rows["real-herding"]["key"]["num_bytes"] != rows["real-forgetting"]["key"]["num_bytes"]
    chosen = (bench.folder / "out.coresets.json").stat().st_mtime_ns
    assert bench.run(*arguments).exit_code == 0
    assert bench.trained == []
    assert (bench.folder / "out.coresets.json").stat().st_mtime_ns == chosen


def test_the_quality_is_the_best_on_held_out_images(
    bench: Bench, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def evaluate(source: Any, test: LabeledImages, *_: Any, seeds: list[int], **__: Any) -> list[SeedResult]:
        judged.append(len(test))
        values = {len(judged): 0.1, 2: 0.9}
        return [SeedResult(seed=seeds[0], accuracy=values[len(judged)], final_loss=1.0, seconds=0.1)]

    monkeypatch.setattr("setting.evaluate", evaluate)
    scale = replace(script.SCALES["tiny"], qualities=(10, 40, 80))
    monkeypatch.setitem(script.SCALES, "tiny", scale)
    bench.run("--rows", "real-coded", "--seeds", "1")
    assert judged == [12, 12, 12, 60]  # a fifth of the training images judges, then the test images
    assert read_json(bench.folder / "out.json")["rows"]["real-coded"]["key"]["content"].endswith("quality 40")
