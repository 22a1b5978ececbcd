"""Make the bundle cifar10-gan of the package: train the generator, invert, condense, measure, save.

Every stage is kept in WORKDIR; killed at any moment, the same command goes on where it was. With another WORKDIR and
the same preset it ends with the same bundle on the same machine.

    python benchmarks/release_cifar10.py --preset cpu --data imagefolder:DIR --workdir WORKDIR
"""

import importlib.metadata
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from setting import readable

from itgan_data.bundle.config import BundleConfig
from itgan_data.bundle.writing import packaged_bundle, save_bundle
from itgan_data.condense.condenser import Condenser, OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.pool import EmbeddingPool, PoolConfig, build_pool
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import CIFAR10, load_images, open_dataset
from itgan_data.evaluation.results import environment
from itgan_data.generators.frozen import FrozenBigGAN, fold
from itgan_data.images import LabeledImages
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.pretraining import presets
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.pretraining.gan import GeneratorTrainer
from itgan_data.recipes import accuracy

logger = logging.getLogger("release_cifar10")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The configuration of every stage."""

    generator: GeneratorTrainerConfig
    condenser: CondenserConfig


# Two cores and a few hours: 64 channels.
CPU = Preset(
    generator=presets.small(),
    condenser=CondenserConfig(
        images_per_class=200,
        steps=300,
        lr_latents=1e-2,
        regularizer_weight=1e-3,
        inversion=InversionConfig(encoder_steps=1500, steps=400),
        pool=PoolConfig(num_networks=3, steps=1200, snapshots=4, precision="bfloat16", compile=True),
        precision="bfloat16",
        compile=True,
    ),
)
# The paper's size: 256 channels, a latent for each of the 50,000 images, groups of 1,250 per class, a large pool.
GPU = Preset(
    generator=presets.paper(),
    condenser=CondenserConfig(
        group_size=1250,
        steps=5000,
        inversion=InversionConfig(encoder_steps=20_000, steps=500, batch_size=2500),
        pool=PoolConfig(num_networks=50, steps=7500, snapshots=6, precision="bfloat16"),
        precision="bfloat16",
        compile=True,
    ),
)
PRESETS = {"cpu": CPU, "gpu": GPU}


@click.command(help=readable(__doc__))
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Size of generator and latent set.")
@click.option("--data", default="cifar10", show_default=True, help="cifar10[:ROOT] or imagefolder:DIR.")
@click.option("--workdir", type=click.Path(path_type=Path), required=True, help="Where the stages are kept.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=packaged_bundle("cifar10-gan"),
    help="The bundle's folder; by default the one in the package.",
)
@click.option("--device", default=None, help="By default CUDA where there is one.")
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--max-minutes", type=float, default=None, help="Stop each stage about then, to go on later.")
def main(
    preset: str,
    data: str,
    workdir: Path,
    out: Path,
    device: str | None,
    threads: int | None,
    max_minutes: float | None,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = PRESETS[preset]
    try:
        real_images = load_images(open_dataset(data, "train"), image_shape=CIFAR10.image_shape)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    trainer = GeneratorTrainer(chosen.generator, real_images, workdir=workdir / "generator", device=device)
    generator = fold(trainer.run(max_minutes))
    if trainer.step < chosen.generator.steps:
        raise click.ClickException(f"stopped at step {trainer.step} of the generator; run again to go on")
    try:
        condenser = Condenser(generator, real_images, chosen.condenser, workdir=workdir / "condense", device=device)
        latents = condenser.run(max_minutes)
    except OutOfTimeError as error:
        raise click.ClickException(str(error)) from error
    pool = build_pool(
        condenser.real_images,
        chosen.condenser.pool,
        normalization=chosen.condenser.normalization,
        seed=chosen.condenser.seed,
        workdir=workdir / "condense" / "pool",
    )
    config = bundle_config(chosen, condenser.real_images, measure(generator, latents, pool, chosen.condenser))
    bundle = save_bundle(out, generator, latents, config=config)
    click.echo(f"{out}: {len(latents)} latents, {bundle.num_bytes / 1e6:.2f} MB")


def measure(
    generator: FrozenBigGAN, latents: LatentSet, pool: EmbeddingPool, config: CondenserConfig
) -> dict[str, float]:
    """How often the most accurate ConvNet of the pool, trained on real images, sees the conditioning label."""
    pool.load_best()
    fresh = RandomLatents(5000, generator.latent_dim, generator.num_classes, seed=1)
    agreement = {
        name: accuracy(pool.network, SyntheticDataset(generator, source, cache=None), config.normalization)
        for name, source in {"fresh samples": fresh, "learned latents": latents}.items()
    }
    logger.info("agreement of a ConvNet trained on real images with the label: %s", agreement)
    return {
        "validation accuracy of the judging ConvNet": round(max(pool.accuracies), 4),
        **{f"agreement with the label, {name}": round(value, 4) for name, value in agreement.items()},
    }


def bundle_config(preset: Preset, real_images: LabeledImages, metrics: dict[str, float]) -> BundleConfig:
    """What the bundle stands for and how it was made."""
    return BundleConfig(
        dataset=CIFAR10.name,
        class_names=CIFAR10.class_names,
        normalization=CIFAR10.normalization,
        method="IT-GAN",
        training={
            "generator": asdict(preset.generator),
            "condenser": asdict(preset.condenser),
            "real_images": {"count": len(real_images), "sha256": real_images.fingerprint},
            "environment": {
                **environment(real_images.images.device),
                "safetensors": importlib.metadata.version("safetensors"),
            },
        },
        metrics=metrics,
    )


if __name__ == "__main__":
    main()
