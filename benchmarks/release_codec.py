"""Make the coded CIFAR-10 bundles of the package: train a codec, code the images, save.

    cifar10        all 50,000 training images, in less than 5,000,000 bytes
    cifar10-1m3    fewer images of higher fidelity, in at most 1,300,000 bytes

Training is kept in WORKDIR; killed at any moment, the same command goes on where it was.

    python benchmarks/release_codec.py --preset cpu --data imagefolder:DIR --workdir WORKDIR
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from setting import readable

from itgan_data.bundle import packaged_bundle, save_bundle
from itgan_data.bundle.config import BundleConfig
from itgan_data.condense.coding import code_images, decoder_at
from itgan_data.datasets import CIFAR10, load_images, open_dataset
from itgan_data.evaluation.results import environment
from itgan_data.generators.codec import Codec
from itgan_data.generators.store import load_generator
from itgan_data.images import LabeledImages
from itgan_data.pretraining import presets
from itgan_data.pretraining.codec import CodecTrainer
from itgan_data.pretraining.context_fit import ContextFit


@dataclass(frozen=True, kw_only=True)
class Coded:
    """One bundle: which images, how finely, and how its codes are modelled."""

    count: int | None
    """Images, spread evenly over the training set; None for all."""
    step: float
    """Width of quantisation; wider takes fewer bytes per image."""
    max_bytes: int
    fit: ContextFit


BUNDLES = {
    "cifar10": Coded(count=None, step=1.13, max_bytes=5_000_000, fit=ContextFit(steps=5000, batch_size=256)),
    "cifar10-1m3": Coded(count=7880, step=0.7, max_bytes=1_300_000, fit=ContextFit(steps=1200)),
}
PRESETS = {"cpu": presets.codec_small, "gpu": presets.codec_paper}


@click.command(help=readable(__doc__))
@click.option("--preset", type=click.Choice(list(PRESETS)), required=True, help="Size of the codec.")
@click.option("--data", default="cifar10", show_default=True, help="cifar10[:ROOT] or imagefolder:DIR.")
@click.option("--workdir", type=click.Path(path_type=Path), required=True, help="Where the training is kept.")
@click.option("--codec", type=click.Path(path_type=Path), help="A codec that was trained, in place of a new one.")
@click.option("--bundle", "names", multiple=True, type=click.Choice(list(BUNDLES)), help="By default all of them.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=packaged_bundle("cifar10").parent,
    help="The folder of the bundles' folders; by default the one in the package.",
)
@click.option("--device", default=None, help="By default CUDA where there is one.")
@click.option("--max-minutes", type=float, default=None, help="Stop the training about then, to go on later.")
def main(
    preset: str,
    data: str,
    workdir: Path,
    codec: Path | None,
    names: tuple[str, ...],
    out: Path,
    device: str | None,
    max_minutes: float | None,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        real_images = load_images(open_dataset(data, "train"), image_shape=CIFAR10.image_shape)
        trained = load_generator(codec) if codec else None
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    config = PRESETS[preset](real_images.num_classes)
    if trained is None:
        trainer = CodecTrainer(config, real_images, workdir=workdir / "codec", device=device)
        trained = trainer.run(max_minutes)
        if trainer.step < config.steps:
            raise click.ClickException(f"stopped at step {trainer.step} of the codec; run again to go on")
    if not isinstance(trained, Codec):
        raise click.ClickException(f"{codec} holds a {type(trained).__name__}, expected a codec with its encoder")
    for name in names or BUNDLES:
        release(name, trained, real_images, asdict(config) if codec is None else {"codec": trained.arguments}, out)


def release(name: str, codec: Codec, real_images: LabeledImages, training: dict[str, Any], out: Path) -> None:
    """Code the images of one bundle and save it.

    Raises:
        click.ClickException: it takes more bytes than it may.
    """
    bundle = BUNDLES[name]
    indices = torch.arange(bundle.count or len(real_images)) * len(real_images) // (bundle.count or len(real_images))
    latents = code_images(codec, real_images, step=bundle.step, fit=bundle.fit, indices=indices, precision="bfloat16")
    config = BundleConfig(
        dataset="cifar10",
        class_names=tuple(real_images.class_names),
        normalization=CIFAR10.normalization,
        method="codec",
        training={**training, "step": bundle.step, "environment": environment()},
        metrics={},
    )
    saved = save_bundle(out / name, decoder_at(codec, bundle.step), latents, config=config)
    click.echo(f"{saved.path}: {len(latents)} latents, {saved.num_bytes:,} bytes")
    if saved.num_bytes > bundle.max_bytes:
        raise click.ClickException(f"{name} takes {saved.num_bytes:,} bytes, more than {bundle.max_bytes:,}")


if __name__ == "__main__":
    main()
