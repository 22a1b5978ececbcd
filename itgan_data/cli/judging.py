"""`itgan-data evaluate` and `info`."""

import json
from dataclasses import asdict
from typing import Any

import click

from ..bundle.reading import Bundle, describe_bundle, load_bundle
from ..evaluation.metrics import nearest_neighbors
from ..evaluation.protocol import evaluate
from ..evaluation.quality import equal_shares, measure_images, metrics_table
from ..evaluation.results import environment, summarize
from ..generators.pixels import Pixels
from ..generators.trusted import Trust
from ..images import LabeledImages
from ..latents.fresh import RandomLatents
from ..latents.stored import LatentSet
from .comparing import Comparison, comparison_options, find_extra, training_bar
from .options import data_option, json_option, source_argument, trust_option


@click.command("evaluate")
@source_argument
@data_option("Real images; the test split judges")
@click.option("--metrics", is_flag=True, help="Compare the images with real ones instead of training on them.")
@click.option("--seeds", type=click.IntRange(1), help="Networks to train; by default 3.")
@comparison_options
@trust_option
@json_option
def evaluate_command(
    source: str, metrics: bool, seeds: int | None, trust: Trust, as_json: bool, **options: Any
) -> None:
    """Train networks on a bundle and test them on real images; or, with --metrics, compare its images with real ones.

    SOURCE is a folder or org/name[@revision] on the Hub; by default the bundle in the package.

    \b
    itgan-data evaluate runs/bundle --data cifar10:data --network resnet18
    itgan-data evaluate runs/bundle --data cifar10:data --metrics

    --metrics compares three sets with as many real training images: the learned latents, fresh samples of the
    generator, and real test images, which show the best possible values. It prints the Fréchet distance, precision and
    recall in the features of a network that is first trained on the real training images (or of --inception), the
    MS-SSIM within a class, how often that network predicts the label, and the distance to the nearest real image.
    """
    comparison = Comparison(**options)
    if not metrics and (comparison.weights or comparison.images_per_class):
        raise click.UsageError("--inception and --images-per-class are options of --metrics")
    if metrics and seeds is not None:
        raise click.UsageError("--seeds has no effect with --metrics, which trains one network")
    bundle = load_bundle(source, trust=trust)
    text, found = _compare(bundle, comparison) if metrics else _train(bundle, comparison, seeds or 3)
    if as_json:
        how = {"network": comparison.network, "recipe": comparison.chosen_recipe().to_json()}
        text = json.dumps({**how, **found, "environment": environment(comparison.device)}, indent=2)
    click.echo(text)


def _train(bundle: Bundle, comparison: Comparison, seeds: int) -> tuple[str, dict[str, Any]]:
    """Train on the bundle; returns the accuracy in words and as JSON values."""
    recipe, test = comparison.chosen_recipe(), comparison.real_images(bundle, "test")
    with training_bar(comparison.network, recipe.steps * seeds) as progress:
        results = evaluate(
            comparison.synthetic_images(bundle, bundle.latents),
            test,
            comparison.network,
            recipe,
            seeds=range(seeds),
            normalization=bundle.normalization,
            device=comparison.device,
            progress=progress,
        )
    return f"real test accuracy {summarize(results)}%", {"results": [asdict(result) for result in results]}


def _compare(bundle: Bundle, comparison: Comparison) -> tuple[str, dict[str, Any]]:
    """Measure the bundle's images; returns a table and JSON values."""
    find_extra("metrics", "torchmetrics", "torch_fidelity")
    real, test = (comparison.real_images(bundle, split) for split in ("train", "test"))
    count = comparison.count(bundle.latents.labels, real.labels, test.labels)
    if count < 2:
        raise ValueError("the metrics need at least two images of each class")
    reference, sets = equal_shares(real, count), _sets(bundle, comparison, test, count)
    inception = comparison.inception()  # before the training: its file may be damaged
    judge = comparison.judge(bundle, real)
    features = inception or judge.features
    real_features = features.features(reference.images)
    rows = {}
    for name, images in sets.items():
        distances, _ = nearest_neighbors(images.images.to(comparison.device), real.images.to(comparison.device))
        rows[name] = measure_images(images, distances.cpu(), real_features, features=features, judge=judge)
    told = f"{count} images of each class in a set; agreement with a {judge.name} on real test images"
    found = {"judge": judge.name, "images_per_class": count, "rows": {name: asdict(row) for name, row in rows.items()}}
    return f"{metrics_table(rows)}\n\n{told}", found


def _sets(bundle: Bundle, comparison: Comparison, test: LabeledImages, count: int) -> dict[str, LabeledImages]:
    generator = bundle.generator
    sets = {"learned latents": equal_shares(comparison.synthetic_images(bundle, bundle.latents), count)}
    if not isinstance(generator, Pixels):  # its fresh samples are noise
        fresh = RandomLatents(count * generator.num_classes, generator.latent_dim, generator.num_classes)
        fixed = LatentSet.drawn_from(fresh)  # generated in large batches
        sets["fresh samples"] = equal_shares(comparison.synthetic_images(bundle, fixed), count)
    return {**sets, "real test images": equal_shares(test, count)}


@click.command()
@source_argument
@json_option
def info(source: str, as_json: bool) -> None:
    """Print what a bundle holds, its size and its metrics, without loading it.

    \b
    itgan-data info org/name@main
    """
    config, sizes = describe_bundle(source)
    if as_json:
        click.echo(json.dumps({"config": config, "bytes": sizes}, indent=2))
        return
    latents = config["latents"]
    lines = [
        f"{config['dataset']}, condensed by {config['method']}: {len(config['class_names'])} classes",
        f"images     {' x '.join(map(str, config['image']['shape']))}",
        f"generator  {config['generator'].get('architecture')}",
        f"latents    {latents['count']} of width {latents['dim']}, {latents['dtype']}",
        *(f"{size:>12,} bytes  {name}" for name, size in sizes.items()),
        *(f"{value!s:>12}  {name}" for name, value in config["metrics"].items()),
    ]
    for line in lines:  # a bundle may come from anyone, and control characters command the terminal
        click.echo("".join(sign if sign.isprintable() else "?" for sign in line))
