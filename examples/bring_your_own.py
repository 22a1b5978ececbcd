"""A generator of your own, the decoder of a convolutional auto-encoder, and the GAN on scikit-learn's digits.

It is trained here, inverts real images by its own encoder, is condensed as the GAN is, and comes back from a bundle.

    python examples/bring_your_own.py [--workdir FOLDER]
"""

import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import click
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

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
    load_bundle,
    open_dataset,
    save_bundle,
    select_random,
)
from itgan_data.datasets import DIGITS, load_images
from itgan_data.evaluation.results import summarize
from itgan_data.images import LabeledImages, unit_to_signed
from itgan_data.networks import Classifier, create_network
from itgan_data.pretraining import presets
from itgan_data.recipes import fast_recipe
from itgan_data.storage.files import load_tensors, save_tensors

IMAGES_PER_CLASS = 10
WIDTH = 32
SEEDS = (0, 1, 2)

GAN = presets.digits()
AUTO_ENCODER = SimpleNamespace(steps=400, batch_size=32, lr=2e-3, divergence_weight=1e-3)
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


class Decoder(nn.Module):
    """The generator: takes latents `[N, latent_dim]` and labels `[N]` to signed images `[N, 3, 32, 32]`.

    Nothing of the package is needed for it, but four attributes.
    """

    image_shape = (3, 32, 32)

    def __init__(self, latent_dim: int = 32, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_classes = num_classes
        self.arguments = {"latent_dim": latent_dim, "num_classes": num_classes, "width": width}
        self.classes = nn.Embedding(num_classes, latent_dim)
        self.input = nn.Linear(2 * latent_dim, 2 * width * 4 * 4)
        layers: list[nn.Module] = []
        for before, after in ((2 * width, 2 * width), (2 * width, width), (width, width)):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.Upsample(scale_factor=2)]
            layers += [nn.Conv2d(before, after, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        maps = self.input(torch.cat([latents, self.classes(labels)], dim=1)).unflatten(1, (-1, 4, 4))
        return torch.tanh(self.layers(maps))


class AutoEncoder(nn.Module):
    """Decoder and encoder. As a generator it is the decoder, and its `encode` is how the Condenser inverts images."""

    def __init__(self, decoder: Decoder, width: int = 32) -> None:
        super().__init__()
        self.latent_dim, self.num_classes = decoder.latent_dim, decoder.num_classes
        self.image_shape = decoder.image_shape
        self.decoder = decoder
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.output = nn.Linear(2 * width * 4 * 4 + decoder.num_classes, 2 * decoder.latent_dim)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents, labels)

    def encode(self, unit_images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The latents `[N, latent_dim]` of unit images `[N, 3, 32, 32]`."""
        return self.posterior(unit_images, labels)[0]

    def posterior(self, unit_images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance `[N, latent_dim]` of the latents that may have made the images."""
        maps = self.layers(unit_to_signed(unit_images))
        mean, log_variance = self.output(torch.cat([maps, F.one_hot(labels, self.num_classes)], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)


def train_auto_encoder(real: LabeledImages, file: Path) -> AutoEncoder:
    """Train it, or read it where it is finished.

    Latents are drawn from a posterior that is pulled towards N(0, 1), so that fresh draws mean something.
    Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoEncoder(Decoder())
    if file.is_file():
        model.load_state_dict(load_tensors(file))
        return model.eval()
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=AUTO_ENCODER.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, AUTO_ENCODER.lr, total_steps=AUTO_ENCODER.steps, cycle_momentum=False
    )
    for _ in trange(AUTO_ENCODER.steps, desc="auto-encoder", unit="step"):
        images, labels = real.unit_batch(torch.randint(len(real), (AUTO_ENCODER.batch_size,), generator=rng))
        mean, log_variance = model.posterior(images, labels)
        latents = mean + torch.randn(mean.shape, generator=rng) * (log_variance / 2).exp()
        error = (model(latents, labels) - unit_to_signed(images)).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        optimizer.zero_grad()
        (error + AUTO_ENCODER.divergence_weight * divergence).backward()
        optimizer.step()
        schedule.step()
    save_tensors(file, model.state_dict())
    return model.eval()


def condense(generator: nn.Module, real: LabeledImages, workdir: Path) -> tuple[LatentSet, LatentSet]:
    """The latents that invert real images, and those that are learned from there."""
    learned = Condenser(generator, real, CONDENSER, workdir=workdir).run()
    return LatentSet.load(workdir / "inversion.safetensors"), learned


def through_a_bundle(decoder: Decoder, learned: LatentSet, folder: Path) -> SyntheticDataset:
    """What somebody gets who has the bundle and this file."""
    about = BundleConfig(
        dataset="digits",
        class_names=DIGITS.class_names,
        normalization=DIGITS.normalization,
        method="IT-GAN with an auto-encoder",
        training={"script": "examples/bring_your_own.py", "condenser": asdict(CONDENSER)},
        metrics={},
    )
    save_bundle(folder, decoder, learned, config=about)
    bundle = load_bundle(folder, trust=Decoder)  # without `trust` the class would be refused
    return SyntheticDataset(bundle.generator, bundle.latents, classes=bundle.class_names)


def training_sets(real: LabeledImages, workdir: Path) -> dict[str, LabeledImages | SyntheticDataset]:
    """The rows of the table."""
    gan = fold(GeneratorTrainer(GAN, real, workdir=workdir / "gan").run())
    model = train_auto_encoder(real, workdir / "auto-encoder.safetensors")
    gan_start, gan_learned = condense(gan, real, workdir / "condense-gan")
    own_start, own_learned = condense(model, real, workdir / "condense-own")
    fresh = RandomLatents(len(own_learned), model.latent_dim, model.num_classes)
    return {
        "random real images": real.select(select_random(real, IMAGES_PER_CLASS, seed=0)),
        "GAN, fresh draws": SyntheticDataset(gan, RandomLatents(len(gan_learned), gan.latent_dim, gan.num_classes)),
        "GAN, inversion": SyntheticDataset(gan, gan_start),
        "GAN, IT-GAN": SyntheticDataset(gan, gan_learned),
        "decoder, fresh draws": SyntheticDataset(model.decoder, fresh),
        "decoder, its own encoder": SyntheticDataset(model.decoder, own_start),
        "decoder, condensed": through_a_bundle(model.decoder, own_learned, workdir / "bundle"),
        "whole real set": real,
    }


@click.command(help=__doc__)
@click.option("--workdir", type=click.Path(path_type=Path), help="Keep what is made here, and go on from there.")
def main(workdir: Path | None) -> None:
    started = time.monotonic()
    real = load_images(open_dataset("digits", "train"))
    test = open_dataset("digits", "test")
    with tempfile.TemporaryDirectory() if workdir is None else nullcontext(workdir) as folder:
        rows = training_sets(real, Path(folder))
    for name, source in rows.items():
        results = evaluate(source, test, _network, RECIPE, seeds=SEEDS, normalization=DIGITS.normalization)
        print(f"{name:25} {len(source):5} images  {summarize(results)} %", flush=True)
        if name == "decoder, condensed":
            verdict = summarize(results).mean
    print(f"{time.monotonic() - started:.0f} s in all")
    print(f"real test accuracy {100 * verdict:.2f}%")


def _network(rng: torch.Generator) -> Classifier:
    return create_network("convnet", 10, width=WIDTH, rng=rng)


if __name__ == "__main__":
    main()
