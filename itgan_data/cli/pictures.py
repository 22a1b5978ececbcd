"""`itgan-data preview`."""

from pathlib import Path
from typing import Any

import click
import torch

from ..bundle.reading import Bundle, load_bundle
from ..data.dataset import SyntheticDataset
from ..datasets import load_images
from ..evaluation.curves import read_curves
from ..evaluation.metrics import WEIGHT_METHODS, WeightMethod, nearest_neighbors, sample_weights
from ..evaluation.plots import MIN_POINTS, plot_features, plot_neighbors, plot_preview, plot_training, plot_weights
from ..evaluation.quality import equal_shares
from ..generators.trusted import Trust
from ..images import LabeledImages
from ..latents.stored import LatentSet
from .comparing import Comparison, comparison_options, find_extra
from .options import data_option, out_option, source_argument, trust_option

WITHOUT_DATA = ("grid", "curves")
WITH_DATA = ("pairs", "neighbors", "features", "weights")


@click.command()
@source_argument
@out_option("The PNG file.", folder=False)
@click.option(
    "--kind", type=click.Choice([*WITHOUT_DATA, *WITH_DATA]), help="By default grid, or pairs where --data is given."
)
@data_option("Real images; for all kinds but grid and curves", required=False)
@click.option("--columns", type=click.IntRange(1), default=10, show_default=True, help="Images in a row.")
@click.option("--class-name", help="For weights: the class to draw; by default the first.")
@click.option(
    "--weighting", type=click.Choice(WEIGHT_METHODS), default="A_mu", show_default=True, help="For weights: the method."
)
@comparison_options
@trust_option
def preview(
    source: str,
    out: Path,
    kind: str | None,
    data: str | None,
    columns: int,
    class_name: str | None,
    weighting: WeightMethod,
    trust: Trust,
    **options: Any,
) -> None:
    """Draw a bundle's images, or how a run went.

    \b
    itgan-data preview runs/bundle --out grid.png
    itgan-data preview runs/bundle --data cifar10:data --out pairs.png
    itgan-data preview runs/bundle --data cifar10:data --kind neighbors --out neighbors.png
    itgan-data preview runs/generator --kind curves --out losses.png

    \b
    grid       a row of images for each class
    pairs      the same, each image above the real image that it stands for
    neighbors  the images nearest to a real one, each above that one: are they copies?
    features   t-SNE maps of real and synthetic images in the features of a network that is trained on the real ones
    weights    a t-SNE map of the real images of a class, colored by how much the synthetic ones miss them (Slim 2020)
    curves     losses, and distances if they were measured; SOURCE is the --out of `pretrain` or the work folder
               of `condense`
    """
    if out.suffix != ".png":
        raise click.BadParameter(f"expected a file name that ends in .png, got {out}", param_hint="--out")
    kind = kind or ("grid" if data is None else "pairs")
    if (kind in WITH_DATA) != (data is not None):
        raise click.UsageError(f"{kind} {'needs' if data is None else 'takes no'} --data")
    find_extra("plots", "matplotlib", *(["sklearn"] if kind in ("features", "weights") else []))
    if kind == "curves":
        plot_training(out, read_curves(source))
    else:
        bundle, comparison = load_bundle(source, trust=trust), Comparison(data=data or "", **options)
        if kind in ("grid", "pairs"):
            _draw_rows(out, bundle, comparison, columns)
        elif kind == "neighbors":
            _draw_neighbors(out, bundle, comparison, columns)
        elif kind == "features":
            _draw_features(out, bundle, comparison)
        else:
            _draw_weights(out, bundle, comparison, class_name or bundle.class_names[0], weighting)
    click.echo(out)


def _draw_rows(out: Path, bundle: Bundle, comparison: Comparison, columns: int) -> None:
    """The first images of each class, above the real ones if there are data."""
    labels = bundle.latents.labels
    rows = torch.cat([(labels == label).nonzero()[:columns, 0] for label in torch.unique(labels)])
    shown = bundle.latents.select(rows)
    real = _sources(shown, comparison.real_images(bundle, "train")) if comparison.data else None
    dataset = SyntheticDataset(bundle.generator, shown, device=comparison.device, cache=None)
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    plot_preview(out, images, shown.labels, bundle.class_names, columns=columns, real_images=real)


def _sources(latents: LatentSet, real: LabeledImages) -> torch.Tensor:
    source = latents.source_index
    if source is None:
        raise ValueError("the latents do not say which real images they stand for; leave --data out")
    if int(source.max()) >= len(real) or not torch.equal(real.labels[source], latents.labels):
        raise ValueError(
            f"the latents stand for real images, up to number {int(source.max())}, that are missing or of other "
            f"classes in these data of {len(real)}; give the data that they were learned from"
        )
    return real.images[source]


def _draw_neighbors(out: Path, bundle: Bundle, comparison: Comparison, columns: int) -> None:
    real = comparison.real_images(bundle, "train")
    images = _share(bundle, comparison, real).images
    distances, indices = nearest_neighbors(images.to(comparison.device), real.images.to(comparison.device))
    plot_neighbors(out, images, real.images[indices.cpu()], distances.cpu(), columns=columns)


def _draw_features(out: Path, bundle: Bundle, comparison: Comparison) -> None:
    real = comparison.real_images(bundle, "train")
    images = _share(bundle, comparison, real)
    shown = equal_shares(real, len(images) // real.num_classes)
    network = comparison.features(bundle, real)
    points = network.features(shown.images), shown.labels, network.features(images.images), images.labels
    plot_features(out, *points, bundle.class_names, network=network.name)


def _draw_weights(out: Path, bundle: Bundle, comparison: Comparison, class_name: str, weighting: WeightMethod) -> None:
    if class_name not in bundle.class_names:
        raise click.BadParameter(
            f"{class_name!r} is not one of {', '.join(bundle.class_names)}", param_hint="--class-name"
        )
    label = bundle.class_names.index(class_name)
    real = comparison.real_images(bundle, "train")
    images = load_images(comparison.synthetic_images(bundle, bundle.latents.select(bundle.latents.labels == label)))
    shown = equal_shares(real, comparison.count(real.labels))
    shown = shown.select(shown.labels == label)
    if len(shown) < MIN_POINTS:
        raise ValueError(f"a map of {class_name} needs at least {MIN_POINTS} real images of it, got {len(shown)}")
    network = comparison.features(bundle, real)
    features = network.features(shown.images)
    weights = sample_weights(features, shown.labels, network.features(images.images), images.labels, method=weighting)
    plot_weights(out, features, weights, title=f"{class_name}, method {weighting}", network=network.name)


def _share(bundle: Bundle, comparison: Comparison, real: LabeledImages) -> LabeledImages:
    """As many synthetic images per class as are compared."""
    count = comparison.count(bundle.latents.labels, real.labels)
    return equal_shares(comparison.synthetic_images(bundle, bundle.latents), count)
