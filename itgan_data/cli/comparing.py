"""What the commands share that compare a bundle's images with real ones."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from tqdm import tqdm

from ..bundle.reading import Bundle
from ..config import needs_extra
from ..data.dataset import SyntheticDataset
from ..datasets import load_images, open_dataset
from ..evaluation.features import FeatureNetwork, inception
from ..evaluation.quality import Judge, train_judge
from ..images import LabeledImages
from ..latents.stored import LatentSource
from ..networks import NETWORKS
from ..recipes import Recipe, fast_recipe, paper_recipe
from .options import device_option, flips_of, flips_option, given, inception_option, with_options

MANY = 200  # images per class

comparison_options = with_options(
    click.option("--network", type=click.Choice(NETWORKS), default="convnet", show_default=True),
    click.option("--recipe", type=click.Choice(["fast", "paper"]), default="fast", show_default=True),
    click.option("--steps", type=click.IntRange(1), help="Updates; by default 2,000, or the paper's 200 epochs."),
    flips_option,
    device_option,
    inception_option,
    click.option(
        "--images-per-class",
        type=click.IntRange(1),
        help=f"Images that are compared; by default {MANY}, or as many as there are.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The options of such a command."""

    data: str
    network: str
    recipe: str
    steps: int | None
    flips: bool | None
    device: str
    weights: Path | None
    images_per_class: int | None

    def chosen_recipe(self) -> Recipe:
        chosen = fast_recipe if self.recipe == "fast" else paper_recipe
        return replace(chosen(flip=flips_of(self.flips, self.data)), **given(steps=self.steps))

    def real_images(self, bundle: Bundle, split: str) -> LabeledImages:
        """The real images of a split, in the bundle's shape and order of classes."""
        images = load_images(open_dataset(self.data, split), image_shape=bundle.generator.image_shape)
        if bundle.generator.class_names is None and images.num_classes == bundle.generator.num_classes:
            return images
        return images.in_order_of(bundle.class_names)

    def synthetic_images(self, bundle: Bundle, latents: LatentSource) -> SyntheticDataset:
        return SyntheticDataset(bundle.generator, latents, device=self.device, classes=bundle.class_names)

    def count(self, *labels: torch.Tensor) -> int:
        """How many images per class to compare of sets with these labels."""
        fewest = min(int(torch.bincount(each).min()) for each in labels)
        return self.images_per_class or max(min(fewest, MANY), 1)

    def judge(self, bundle: Bundle, real: LabeledImages) -> Judge:
        """A network trained on the real training images."""
        test, recipe = self.real_images(bundle, "test"), self.chosen_recipe()
        with training_bar(self.network, recipe.steps) as progress:
            return train_judge(
                real,
                test,
                self.network,
                recipe,
                normalization=bundle.normalization,
                device=self.device,
                progress=progress,
            )

    def inception(self) -> FeatureNetwork | None:
        return None if self.weights is None else inception(self.weights, device=self.device)

    def features(self, bundle: Bundle, real: LabeledImages) -> FeatureNetwork:
        """Inception if its weights are given, else a network trained on the real training images."""
        return self.inception() or self.judge(bundle, real).features


def find_extra(extra: str, *packages: str) -> None:
    """Raise before long work, rather than after it, if packages of an extra are missing."""
    with needs_extra(extra):
        for package in packages:
            importlib.import_module(package)


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[int, torch.Tensor], None]]:
    """A progress bar on stderr; yields a function to call after each update."""
    with tqdm(total=steps, desc=title, unit="step") as bar:
        yield lambda step, loss: bar.update() and None
