"""Does the encoder pay? Reconstruction loss (Eq. 1) over time, from an encoder's start and from normal draws.

Both runs invert the same real images with the same optimiser. The time of the encoder run includes the encoder's
prediction and, in its own column, its share of the encoder's training when SET images are inverted.

    python benchmarks/inversion.py --data imagefolder:DIR --pool WORKDIR/condense/pool
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import click
import torch

from itgan_data.bundle import load_bundle
from itgan_data.condense.embedding import PoolConfig, build_pool
from itgan_data.condense.inversion import InversionConfig, invert, starting_latents, train_encoder
from itgan_data.draws import permutation
from itgan_data.evaluation.protocol import environment
from itgan_data.files import write_json
from itgan_data.images import CIFAR10, load_images, open_dataset

POINTS = (0, 5, 10, 20, 40, 60, 100)


@click.command(help=__doc__)
@click.option("--data", required=True, help="imagefolder:DIR or cifar10[:ROOT].")
@click.option("--bundle", type=click.Path(path_type=Path), default=None, help="By default the one in the package.")
@click.option("--pool", type=click.Path(path_type=Path), required=True, help="Where embedding networks are kept.")
@click.option("--images", default=200, show_default=True, help="Real images to invert.")
@click.option("--steps", default=100, show_default=True, help="Adam steps.")
@click.option("--set-size", default=2000, show_default=True, help="Images that share the encoder's training.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/inversion.json"))
def main(
    data: str, bundle: Path | None, pool: Path, images: int, steps: int, set_size: int, seed: int,
    threads: int | None, out: Path,
) -> None:  # fmt: skip
    if threads is not None:
        torch.set_num_threads(threads)
    generator = load_bundle(bundle).generator
    real_images = load_images(open_dataset(data, "train"))
    pool_config = PoolConfig(num_networks=1, steps=1200, precision="bfloat16", compile=True)
    networks = build_pool(real_images, pool_config, normalization=CIFAR10.normalization, seed=seed, workdir=pool)
    networks.load_best()
    chosen = real_images.select(permutation(seed, 0, len(real_images))[:images])
    config = InversionConfig(steps=steps, batch_size=images)

    started = time.perf_counter()
    encoder = train_encoder(generator, config, seed=seed, device=torch.device("cpu"))
    training = (time.perf_counter() - started) * images / set_size

    curves = {}
    for name, net in (("normal draws", None), ("encoder", encoder)):
        curve: list[tuple[int, float, float]] = []
        started = time.perf_counter()

        def note(step: int, losses: torch.Tensor, curve: list = curve, started: float = started) -> None:
            curve.append((step, time.perf_counter() - started, float(losses.mean())))

        start = starting_latents(generator, net, chosen, config, seed=seed)
        invert(
            generator,
            networks.network.embed,
            chosen,
            start,
            config,
            normalization=CIFAR10.normalization,
            on_step=note,
        )
        curves[name] = curve
    print("| start | " + " | ".join(f"step {step}" for step in POINTS if step <= steps) + " | seconds | + encoder |")
    print("|---|" + "---:|" * (len([step for step in POINTS if step <= steps]) + 2))
    for name, curve in curves.items():
        losses = " | ".join(f"{curve[step][2]:.3f}" for step in POINTS if step <= steps)
        print(f"| {name} | {losses} | {curve[-1][1]:.0f} | {training if name == 'encoder' else 0:.0f} |")
    write_json(
        out,
        {
            "settings": {"images": images, "set_size": set_size, "seed": seed, "inversion": asdict(replace(config))},
            "environment": environment(),
            "encoder_training_seconds_share": training,
            "curves": {name: {"columns": ["step", "seconds", "loss"], "rows": rows} for name, rows in curves.items()},
        },
    )


if __name__ == "__main__":
    main()
