"""What the accuracy benchmarks share: a bundle, real images, one recipe, and how a training set is judged by it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from itgan_data.bundle.writing import Bundle, load_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import load_images, open_dataset
from itgan_data.draws import Stream, make_rng
from itgan_data.evaluation.protocol import NetworkFactory, evaluate
from itgan_data.evaluation.results import Results, SeedResult, Summary, summarize
from itgan_data.generators.store import WEIGHTS_FILE
from itgan_data.images import ImageSource, LabeledImages, Normalization
from itgan_data.latents.stored import LatentSource
from itgan_data.recipes import Recipe
from itgan_data.storage.files import read_json

MAX_HELD_OUT = 5000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all training sets have in common."""

    bundle: Bundle
    train: LabeledImages
    test: LabeledImages
    network: str
    recipe: Recipe
    device: str
    seeds: tuple[int, ...]

    def run(self, source: ImageSource, test: LabeledImages, seed: int, title: str) -> SeedResult:
        """Train and test one network."""
        return train_and_test(
            source,
            test,
            self.network,
            self.recipe,
            seed=seed,
            normalization=self.bundle.normalization,
            device=self.device,
            title=f"{title}, seed {seed}",
        )

    def synthetic(self, latents: LatentSource) -> SyntheticDataset:
        """The bundle's generator at some latents, computing in the recipe's precision."""
        dtype = getattr(torch, self.recipe.precision)
        return SyntheticDataset(self.bundle.generator, latents, device=self.device, dtype=dtype)


@contextmanager
def training_bar(title: str, steps: int) -> Iterator[Callable[[int, torch.Tensor], None]]:
    """A progress bar; yields what is to be called after each update."""
    with tqdm(total=steps, desc=title, unit="step") as bar:

        def progress(step: int, loss: torch.Tensor) -> None:
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")

        yield progress


def train_and_test(
    source: ImageSource,
    test: LabeledImages,
    network: str | NetworkFactory,
    recipe: Recipe,
    *,
    seed: int,
    normalization: Normalization,
    device: str,
    title: str,
) -> SeedResult:
    """Train and test one network, behind a progress bar."""
    with training_bar(title, recipe.steps) as progress:
        (result,) = evaluate(
            source,
            test,
            network,
            recipe,
            seeds=[seed],
            normalization=normalization,
            device=device,
            progress=progress,
        )
    return result


def stored_results(path: Path) -> Results:
    """A file of results, to be read only: whatever its settings are."""
    content = read_json(path)
    return Results(path, settings=content["settings"], environment=content["environment"])


def summary_of(row: Mapping[str, Any]) -> Summary:
    """Accuracy over the seeds of a row of a file of results."""
    return summarize([SeedResult(**result) for result in row["results"]])


def verdict(better: Summary | None, worse: Summary | None) -> str:
    """Whether one is better than the other by more than the spread of the two."""
    if better is None or worse is None or better.std is None or worse.std is None:
        return "-"
    difference, spread = better.mean - worse.mean, math.hypot(better.std, worse.std)
    if abs(difference) <= spread:
        return "within the spread"
    return "holds" if difference > 0 else "reversed"


def open_setting(data: str, bundle: Path | None, *, network: str, recipe: Recipe, device: str, seeds: int) -> Setting:
    """Read and check everything that training needs."""
    loaded = load_bundle(bundle)
    shape = loaded.generator.image_shape
    train = load_images(open_dataset(data, "train"), image_shape=shape)
    test = load_images(open_dataset(data, "test"), image_shape=shape)
    if not loaded.class_names == train.classes == test.classes:
        raise ValueError(
            f"{data} has training classes {train.classes} and test classes {test.classes}, "
            f"the bundle {loaded.class_names}; expected the same in the same order"
        )
    return Setting(
        bundle=loaded,
        train=train,
        test=test,
        network=network,
        recipe=recipe,
        device=device,
        seeds=tuple(range(seeds)),
    )


def balanced_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Indices in a random order of which every beginning holds equally many of each class, up to one."""
    rng = make_rng(seed, stream=Stream.SCRIPT)
    classes = [(labels == label).nonzero()[:, 0] for label in torch.unique(labels)]
    shuffled = [indices[torch.randperm(len(indices), generator=rng)] for indices in classes]
    shortest = min(len(indices) for indices in classes)
    return torch.stack([indices[:shortest] for indices in shuffled], dim=1).flatten()


def hold_out(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of training images that choices are judged by, a fifth or 5,000, and of the others."""
    order = balanced_order(labels, seed=-1)
    count = min(MAX_HELD_OUT, len(order) // 5)
    return order[:count], order[count:]


def generator_checksum(bundle: Bundle) -> str:
    """Tells one generator from another in a row's key."""
    return f"generator {bundle.config['sha256'][WEIGHTS_FILE][:12]}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of the library without their traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
