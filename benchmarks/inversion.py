"""Does the encoder pay? Reconstruction loss (Eq. 1) of inversion from an encoder's start and from normal draws.

All runs invert the same real images with the same optimiser. The encoder's training is shared by all images of a set:
its share is added to the encoder's time, and plain optimisation is run once more, with the steps that this time buys.

    python benchmarks/inversion.py --data imagefolder:DIR --pool WORKDIR/condense/pool
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from setting import readable

from itgan_data.bundle.writing import load_bundle
from itgan_data.condense.inversion import InversionConfig, invert, starting_latents
from itgan_data.condense.pool import EmbeddingPool, PoolConfig, build_pool
from itgan_data.datasets import CIFAR10, load_images, open_dataset
from itgan_data.draws import Stream, permutation
from itgan_data.evaluation.results import environment
from itgan_data.generators.frozen import FrozenBigGAN
from itgan_data.images import LabeledImages
from itgan_data.pretraining.encoder import Encoder, train_encoder
from itgan_data.storage.files import read_json, write_json

CPU = torch.device("cpu")
POOL = PoolConfig(num_networks=1, steps=1200, precision="bfloat16", compile=True)  # the first network of the release
POINTS = (0, 5, 10, 20, 40, 60)


@dataclass(frozen=True)
class Inverter:
    """What the runs have in common."""

    generator: FrozenBigGAN
    pool: EmbeddingPool
    real_images: LabeledImages
    seed: int

    def run(self, config: InversionConfig, encoder: Encoder | None) -> list[tuple[int, float, float]]:
        """`(step, seconds, mean loss)` before every step and after the last."""
        curve: list[tuple[int, float, float]] = []
        started = time.perf_counter()
        start = starting_latents(self.generator, encoder, self.real_images, config, seed=self.seed)
        invert(
            self.generator,
            self.pool.network.embed,
            self.real_images,
            start,
            config,
            normalization=CIFAR10.normalization,
            on_step=lambda step, losses: curve.append((step, time.perf_counter() - started, float(losses.mean()))),
        )
        return curve


@click.command(help=readable(__doc__))
@click.option("--data", required=True, help="imagefolder:DIR or cifar10[:ROOT].")
@click.option("--bundle", type=click.Path(path_type=Path), default=None, help="By default cifar10-gan, in the package.")
@click.option("--pool", type=click.Path(path_type=Path), required=True, help="Where embedding networks are kept.")
@click.option("--images", default=100, show_default=True, help="Real images to invert.")
@click.option("--steps", default=60, show_default=True, help="Adam steps.")
@click.option("--set-size", default=2000, show_default=True, help="Images that share the encoder's training.")
@click.option("--encoder-steps", default=1500, show_default=True, help="Updates of the encoder.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "inversion.json")
def main(
    data: str,
    bundle: Path | None,
    pool: Path,
    images: int,
    steps: int,
    set_size: int,
    encoder_steps: int,
    seed: int,
    threads: int | None,
    out: Path,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    generator = load_bundle(bundle or "cifar10-gan").generator
    real_images = load_images(open_dataset(data, "train"))
    networks = build_pool(real_images, POOL, normalization=CIFAR10.normalization, seed=seed, workdir=pool)
    networks.load_best()
    chosen = real_images.select(permutation(seed, 0, len(real_images), stream=Stream.SCRIPT)[:images])
    inverter = Inverter(generator, networks, chosen, seed)
    config = InversionConfig(encoder_steps=encoder_steps, steps=steps, batch_size=images)

    started = time.perf_counter()
    encoder = train_encoder(
        generator,
        steps=config.encoder_steps,
        batch_size=config.encoder_batch_size,
        lr=config.lr_encoder,
        seed=seed,
        device=CPU,
    )
    share = (time.perf_counter() - started) * images / set_size
    curves = {"encoder": inverter.run(config, encoder), "normal draws": inverter.run(config, None)}
    bought = round(steps * (1 + share / curves["normal draws"][-1][1]))
    curves["normal draws, equal time"] = inverter.run(replace(config, steps=bought), None)

    settings = {"images": images, "set_size": set_size, "seed": seed, "inversion": asdict(config)}
    write_json(
        out,
        {
            "settings": settings,
            "environment": environment(),
            "encoder_seconds_share": share,
            "columns": ["step", "seconds", "loss"],
            "curves": curves,
        },
    )
    click.echo(report(out), nl=False)


def report(out: Path) -> str:
    """Markdown: the loss of each start after some steps; the encoder's time includes its share of the training."""
    content = read_json(out)
    rows = [f"| start | {' | '.join(f'step {step}' for step in POINTS)} | last | steps | seconds |"]
    rows.append("|---|" + "---:|" * (len(POINTS) + 3))
    for name, curve in content["curves"].items():
        losses = " | ".join(f"{curve[step][2]:.3f}" if step < len(curve) else "" for step in POINTS)
        seconds = curve[-1][1] + (content["encoder_seconds_share"] if name == "encoder" else 0)
        rows.append(f"| {name} | {losses} | {curve[-1][2]:.3f} | {len(curve) - 1} | {seconds:.0f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
