"""Every preset from end to end on small digits."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itgan_data.bundle.writing import load_bundle, save_bundle
from itgan_data.condense import methods
from itgan_data.condense.condenser import Condenser
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import DIGITS, open_dataset
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.pixels import Pixels
from itgan_data.images import LabeledImages, signed_to_unit
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet

COUNT = 2  # images a class
SHAPE = (3, 16, 16)
POOL = PoolConfig(num_networks=1, width=8, steps=8, batch_size=32, snapshots=2, flips=False)
PRESETS: dict[str, tuple[CondenserConfig, bool]] = {  # and whether it learns pixels
    "it_gan": (methods.it_gan(images_per_class=COUNT, group_size=1), False),
    "it_gan_gradient": (methods.it_gan_gradient(images_per_class=COUNT), False),
    "gan_inversion": (methods.gan_inversion(images_per_class=COUNT), False),
    "gan_inversion by optimization": (methods.gan_inversion(images_per_class=COUNT, by="optimization"), False),
    "gan_inversion by encoder": (methods.gan_inversion(images_per_class=COUNT, by="encoder"), False),
    "dm": (methods.dm(images_per_class=COUNT), True),
    "dm, batch norm": (methods.dm(images_per_class=COUNT, norm="batch"), True),
    "dc": (methods.dc(images_per_class=10), True),
    "dsa": (methods.dsa(images_per_class=10), True),
}


@pytest.fixture(scope="module")
def digits() -> LabeledImages:
    """A fifth of the digits, at half their size."""
    real = open_dataset("digits", "train")
    assert isinstance(real, LabeledImages)
    small = F.avg_pool2d(real.images[::5].float(), 2).round().to(torch.uint8)
    return LabeledImages(small, real.labels[::5], real.class_names)


@pytest.fixture(scope="module")
def gan() -> nn.Module:
    rng = torch.Generator().manual_seed(0)
    return fold(BigGAN(BigGANConfig(latent_dim=8, channels=(8, 8, 8)), rng=rng))


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return Pixels(SHAPE, 10, DIGITS.normalization)


def tiny(config: CondenserConfig) -> CondenserConfig:
    """The same method, in tenths of seconds."""
    return replace(
        config,
        images_per_class=COUNT,
        steps=min(config.steps, 4),
        real_batch_size=8,
        strategy=config.strategy.replace("_flip", ""),
        normalization=DIGITS.normalization,
        inversion=replace(
            config.inversion,
            encoder_steps=min(config.inversion.encoder_steps, 3),
            encoder_batch_size=8,
            steps=min(config.inversion.steps, 3),
        ),
        pool=POOL,
        networks=config.networks and smaller(config.networks),
    )


def smaller(networks: FreshNetworks) -> FreshNetworks:
    return replace(networks, width=8, inner_epochs=min(networks.inner_epochs, 2))


def condense(generator: nn.Module, real: LabeledImages, config: CondenserConfig, workdir: Path) -> LatentSet:
    return Condenser(generator, real, config, workdir=workdir, device="cpu").run()


@pytest.mark.parametrize("name", PRESETS)
def test_a_method_from_end_to_end(
    name: str, gan: nn.Module, pixels: Pixels, digits: LabeledImages, tmp_path: Path
) -> None:
    config, of_pixels = PRESETS[name]
    generator = pixels if of_pixels else gan
    learned = condense(generator, digits, tiny(config), tmp_path / "work")
    start = LatentSet.load(tmp_path / "work" / "inversion.safetensors")
    assert learned.images_per_class == [COUNT] * 10
    assert torch.equal(digits.labels[learned.source_index], learned.labels)
    assert learned.latents.isfinite().all()
    places = {source: row for row, source in enumerate(start.source_index.tolist())}
    moved = (learned.latents - start.latents[[places[source] for source in learned.source_index.tolist()]]).abs()
    assert (moved.amax(dim=1) > 0).all() == (config.steps > 0)
    uses_pool = config.networks is None and name != "gan_inversion by encoder"
    assert (tmp_path / "work" / "pool").exists() == uses_pool

    description = {
        "dataset": "digits",
        "class_names": list(DIGITS.class_names),
        "normalization": {"mean": list(DIGITS.normalization.mean), "std": list(DIGITS.normalization.std)},
        "method": name,
        "training": {},
        "metrics": {},
    }
    save_bundle(tmp_path / "bundle", generator, learned, config=description, latents_dtype=torch.float32)
    bundle = load_bundle(tmp_path / "bundle")
    shown, labels = SyntheticDataset(bundle.generator, bundle.latents).unit_batch(torch.arange(20))
    assert shown.shape == (20, *SHAPE)
    assert torch.equal(labels, learned.labels)


def test_the_gan_baseline_is_fresh_draws(gan: nn.Module) -> None:
    dataset = SyntheticDataset(gan, RandomLatents(20, gan.latent_dim, 10))
    assert dataset.unit_batch(torch.arange(20))[0].shape == (20, *SHAPE)


def test_pixels_start_at_the_real_images_or_at_noise(pixels: Pixels, digits: LabeledImages, tmp_path: Path) -> None:
    config = replace(tiny(methods.dm(images_per_class=COUNT)), steps=0)
    exact = condense(pixels, digits, config, tmp_path / "exact")
    shown = signed_to_unit(pixels(exact.latents, exact.labels))
    torch.testing.assert_close(shown, digits.unit_batch(exact.source_index)[0])
    noise = condense(pixels, digits, replace(config, initialize="normal"), tmp_path / "noise")
    assert abs(float(noise.latents.mean())) < 0.05
    assert abs(float(noise.latents.std()) - 1) < 0.05


@pytest.mark.parametrize("name", ["dm", "dsa"])
def test_pixels_come_closer_to_the_real_images(
    name: str, pixels: Pixels, digits: LabeledImages, tmp_path: Path
) -> None:
    """From noise; by the mean loss of the first and the last steps."""
    config = replace(tiny(PRESETS[name][0]), initialize="normal", lr_latents=1.0, steps=20, log_steps=1)
    condense(pixels, digits, config, tmp_path)
    lines = (tmp_path / "logs" / "group-0000.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


class TestPublished:
    """The numbers of the papers."""

    def test_it_gan(self) -> None:
        config = methods.it_gan()
        assert (config.optimizer, config.lr_latents, config.steps) == ("adam", 1e-3, 5000)
        assert (config.group_size, config.regularizer_weight, config.objective) == (1250, 0.0, "distribution")
        assert methods.it_gan_gradient().objective == "gradient"

    @pytest.mark.parametrize(("count", "rate"), [(1, 1.0), (50, 1.0), (100, 10.0), (1250, 10.0)])
    def test_dm(self, count: int, rate: float) -> None:
        config = methods.dm(images_per_class=count)
        assert (config.optimizer, config.momentum, config.lr_latents) == ("sgd", 0.5, rate)
        assert (config.steps, config.real_batch_size, config.networks) == (20_000, 256, FreshNetworks())

    @pytest.mark.parametrize(("count", "outer", "inner"), [(1, 1, 0), (10, 10, 50), (50, 50, 10), (49, 50, 10)])
    def test_dc_and_dsa(self, count: int, outer: int, inner: int) -> None:
        config = methods.dc(images_per_class=count)
        assert config.networks == FreshNetworks(outer_steps=outer, inner_epochs=inner, lr=0.01, batch_size=256)
        assert (config.objective, config.lr_latents, config.momentum, config.strategy) == ("gradient", 0.1, 0.5, "")
        assert config.steps == 1000 * outer
        changed = {
            f.name
            for f in fields(config)
            if getattr(methods.dsa(images_per_class=count), f.name) != getattr(config, f.name)
        }
        assert changed == {"strategy", "initialize"}

    def test_an_unknown_way_of_inversion(self) -> None:
        by: Any = "magic"
        with pytest.raises(ValueError, match="by must be one of both, optimization, encoder, got 'magic'"):
            methods.gan_inversion(by=by)
