"""What the accuracy benchmarks share: their options, and how a training set is judged.

A script has scales of its own, from `tiny` (digits, in seconds: shows that all works) over `cpu` (two cores, at most a
few hours) to `gpu` (the paper's sizes). `benchmark` makes its command.
"""

import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
import torch
from tqdm import tqdm

from itgan_data.augmentation import DSA, CropFlip, without_flip
from itgan_data.bundle import Bundle, load_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import SPECS, load_images, open_dataset, parse_spec
from itgan_data.draws import Stream, shuffled_classes
from itgan_data.evaluation.protocol import NetworkFactory, evaluate
from itgan_data.evaluation.results import Results, SeedResult, Summary, environment, summarize
from itgan_data.generators.store import WEIGHTS_FILE
from itgan_data.images import ImageSource, LabeledImages, Normalization
from itgan_data.latents.stored import LatentSource
from itgan_data.recipes import Recipe
from itgan_data.storage.files import read_json

MAX_HELD_OUT = 5000
PATH = click.Path(path_type=Path)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much work a script does; scripts add fields of their own."""

    recipe: Recipe
    """What the networks of a row are trained by."""
    seeds: int = 3
    """Networks per row."""
    network: str = "convnet"
    """What they are."""


AnyScale = TypeVar("AnyScale", bound=Scale)


@dataclass(frozen=True, kw_only=True)
class Run(Generic[AnyScale]):
    """What a command was asked for."""

    scale: AnyScale
    """With the options --steps and --seeds in it, and without flips if the data have none."""
    data: str
    bundle: Path | None
    workdir: Path
    device: str
    out: Path

    def open(self) -> "Setting":
        """Read and check everything that training needs."""
        bundle = load_bundle(self.bundle or "cifar10-gan")
        shape = bundle.generator.image_shape
        train, test = (load_images(open_dataset(self.data, split), image_shape=shape) for split in ("train", "test"))
        if not bundle.class_names == train.classes == test.classes:
            raise ValueError(
                f"{self.data} has training classes {train.classes} and test classes {test.classes}, "
                f"the bundle {bundle.class_names}; expected the same in the same order"
            )
        return Setting(
            bundle=bundle,
            train=train,
            test=test,
            network=self.scale.network,
            recipe=self.scale.recipe,
            device=self.device,
            seeds=tuple(range(self.scale.seeds)),
        )

    def results(self, out: Path | None = None, **more: Any) -> Results:
        """The file of results `out`, by default the run's, whose settings are network, recipe, data and `more`."""
        settings = {"network": self.scale.network, "recipe": self.scale.recipe.to_json(), **more}
        settings.setdefault("data", self.data.partition(":")[0])
        return Results(out or self.out, settings=settings, environment=environment(self.device))


def benchmark(
    name: str, doc: str | None, scales: Mapping[str, AnyScale], *, keeps: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function: called with a `Run`, and by name with the options that are its own.

    Args:
        name: of the script.
        doc: its help.
        scales: what --scale chooses from.
        keeps: what is in --workdir; by default there is no such option.
    """
    options = [
        click.option(
            "--scale",
            type=click.Choice(list(scales)),
            default="cpu",
            show_default=True,
            help="How much work: seconds on digits, two cores, the paper's sizes.",
        ),
        click.option("--data", default="cifar10", show_default=True, help=f"Real images: {SPECS}."),
        click.option("--bundle", type=PATH, help="A bundle's folder; by default cifar10-gan, in the package."),
        click.option("--out", type=PATH, help=f"File of results; by default runs/{name}-SCALE.json."),
        click.option("--steps", type=click.IntRange(1), help="Updates of each network; by default as the scale says."),
        click.option("--seeds", type=click.IntRange(1), help="Networks per row; by default as the scale says."),
        click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of PyTorch."),
    ]
    workdir = Path("runs", name)
    if keeps is not None:
        options.append(click.option("--workdir", type=PATH, default=workdir, show_default=True, help=f"Keeps {keeps}."))

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def call(
            scale: str, steps: int | None, seeds: int | None, threads: int | None, out: Path | None, **others: Any
        ) -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            shared = {option: others.pop(option, workdir) for option in ("data", "bundle", "workdir", "device")}
            with one_line_errors():
                run = Run(
                    scale=adapted(scales[scale], shared["data"], steps, seeds),
                    out=out or Path("runs") / f"{name}-{scale}.json",
                    **shared,
                )
                function(run, **others)

        for option in reversed(options):
            option(call)
        return click.command(help=readable(doc))(call)

    return decorate


def readable(doc: str | None) -> str:
    """A docstring as click prints it line by line where lines are indented: lists and commands."""
    paragraphs = (doc or "").split("\n\n")
    return "\n\n".join(f"\b\n{each}" if re.search("^    ", each, re.MULTILINE) else each for each in paragraphs)


def names_in(option: str, known: Collection[str]) -> list[str]:
    """The names, joined by commas, of an option that chooses some of those that are known."""
    names = option.split(",")
    if unknown := set(names) - set(known):
        raise click.BadParameter(f"unknown name {min(unknown)!r}; expected some of {','.join(known)}")
    return names


def adapted(scale: AnyScale, data: str, steps: int | None, seeds: int | None) -> AnyScale:
    """A scale with another number of updates or networks, if there is one, and without flips if the data have none."""
    recipe = replace(scale.recipe, steps=steps or scale.recipe.steps)
    augmentation = recipe.augmentation
    if not parse_spec(data)[0].flips:
        if isinstance(augmentation, CropFlip):
            augmentation = replace(augmentation, flip=False)
        elif isinstance(augmentation, DSA):
            augmentation = DSA(without_flip(augmentation.strategy))
    return replace(scale, recipe=replace(recipe, augmentation=augmentation), seeds=seeds or scale.seeds)


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


def balanced_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Indices in a random order of which every beginning holds equally many of each class, up to one."""
    orders = shuffled_classes(labels, int(labels.max()) + 1, seed, stream=Stream.SCRIPT)
    shortest = min(map(len, orders))
    return torch.stack([order[:shortest] for order in orders], dim=1).flatten()


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
