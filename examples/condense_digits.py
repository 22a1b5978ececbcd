"""The whole way on scikit-learn's digits, from nothing, in a few minutes: generator, inversion, condensation, test.

python examples/condense_digits.py [--out FOLDER]
"""

import tempfile
import time
from pathlib import Path

import click
import torch

from itgan_data import (
    BundleConfig,
    Condenser,
    CondenserConfig,
    GeneratorTrainer,
    InversionConfig,
    LatentSet,
    PoolConfig,
    RandomLatents,
    SyntheticDataset,
    evaluate,
    fold,
    open_dataset,
    save_bundle,
    select_random,
)
from itgan_data.datasets import DIGITS, load_images
from itgan_data.evaluation.results import summarize
from itgan_data.networks import Classifier, create_network
from itgan_data.pretraining import presets
from itgan_data.recipes import fast_recipe

IMAGES_PER_CLASS = 10
WIDTH = 32
SEEDS = (0, 1, 2)

CONDENSER = CondenserConfig(
    images_per_class=IMAGES_PER_CLASS,
    steps=80,
    lr_latents=1e-2,
    regularizer_weight=1e-3,
    real_batch_size=64,
    strategy="color_crop_cutout_scale_rotate",
    normalization=DIGITS.normalization,
    inversion=InversionConfig(encoder_steps=200, encoder_batch_size=32, steps=40),
    pool=PoolConfig(num_networks=2, width=WIDTH, steps=120, batch_size=64, snapshots=3, flips=False),
)
RECIPE = fast_recipe(150, 50, flip=False)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), help="Also save a bundle in this folder.")
def main(out: Path | None) -> None:
    started = time.monotonic()
    real = load_images(open_dataset("digits", "train"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = GeneratorTrainer(presets.digits(), real, workdir=Path(folder, "generator"))
        generator = fold(trainer.run())
        learned = Condenser(generator, real, CONDENSER, workdir=Path(folder, "condense")).run()
        inverted = LatentSet.load(Path(folder, "condense", "inversion.safetensors"))
    count = len(learned)
    rows = {
        "random real images": real.select(select_random(real, IMAGES_PER_CLASS, seed=0)),
        "fresh GAN samples": SyntheticDataset(generator, RandomLatents(count, generator.latent_dim, 10)),
        "GAN inversion": SyntheticDataset(generator, inverted),
        "IT-GAN": SyntheticDataset(generator, learned),
        "whole real set": real,
    }
    accuracies = {}
    test = open_dataset("digits", "test")
    for name, source in rows.items():
        accuracies[name] = summarize(
            evaluate(source, test, _network, RECIPE, seeds=SEEDS, normalization=DIGITS.normalization)
        )
        print(f"{name:20} {len(source):5} images  {accuracies[name]} %", flush=True)
    print(f"{time.monotonic() - started:.0f} s in all")
    if out is not None:
        config = BundleConfig(
            dataset="digits",
            class_names=DIGITS.class_names,
            normalization=DIGITS.normalization,
            method="IT-GAN",
            training={"script": "examples/condense_digits.py"},
            metrics={f"test accuracy, {name}": summary.mean for name, summary in accuracies.items()},
        )
        save_bundle(out, generator, learned, config=config)
    print(f"real test accuracy {100 * accuracies['IT-GAN'].mean:.2f}%")


def _network(rng: torch.Generator) -> Classifier:
    return create_network("convnet", 10, width=WIDTH, rng=rng)


if __name__ == "__main__":
    main()
