"""How far are the images of a bundle from real ones? Fréchet distance, precision, recall, MS-SSIM, agreement, copies.

Three sets of one size, in equal shares of the classes, are set against the same real training images: the bundle's
learned latents, fresh samples of its generator, and real test images, which show what a perfect generator would get.

    python benchmarks/metrics.py --data imagefolder:DIR --pool WORKDIR/condense/pool [--inception WEIGHTS]
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from itgan_data.bundle import load_bundle
from itgan_data.condense.embedding import EmbeddingPool, PoolConfig, build_pool
from itgan_data.dataset import SyntheticDataset
from itgan_data.draws import permutation
from itgan_data.evaluation.plots import plot_features, plot_neighbors, plot_preview
from itgan_data.evaluation.protocol import environment
from itgan_data.features import FeatureNetwork, inception
from itgan_data.files import write_json
from itgan_data.fresh_latents import RandomLatents
from itgan_data.images import CIFAR10, LabeledImages, load_images, open_dataset
from itgan_data.latents import LatentSet
from itgan_data.metrics import compare_features, ms_ssim, nearest_neighbors
from itgan_data.recipes import accuracy

POOL = PoolConfig(num_networks=1, steps=1200, precision="bfloat16", compile=True)  # the first network of the release
MAP_IMAGES = 100  # a class, in the t-SNE map


def balanced(labels: torch.Tensor, per_class: int, seed: int) -> torch.Tensor:
    """Indices of `per_class` random samples of each class, class after class."""
    order = permutation(seed, 0, len(labels))
    shares = [order[labels[order] == label][:per_class] for label in range(int(labels.max()) + 1)]
    if min(len(share) for share in shares) < per_class:
        raise click.ClickException(f"a class has fewer than {per_class} images; ask for fewer with --per-class")
    return torch.cat(shares)


def convnet_features(pool: EmbeddingPool) -> FeatureNetwork:
    pool.load_best()
    name = f"ConvNet of {100 * max(pool.accuracies):.1f}%"
    return FeatureNetwork(name, lambda unit: pool.network.embed(CIFAR10.normalization.standardize(unit)))


def measure(
    images: LabeledImages,
    distances: torch.Tensor,
    real_features: torch.Tensor,
    features: FeatureNetwork,
    pool: EmbeddingPool,
) -> dict[str, Any]:
    """One row: a set, its distances to the nearest of all real training images, and the features of some of those."""
    compared = compare_features(real_features, features.features(images.images), network=features.name)
    similarity = ms_ssim(images.images, images.labels)
    return {
        **asdict(compared),
        "ms_ssim": float(similarity.mean()),
        "ms_ssim_std_over_classes": float(similarity.std()),
        "agreement": accuracy(pool.network, images, CIFAR10.normalization),
        "nearest_real_median": float(distances.median()),
        "nearest_real_minimum": float(distances.min()),
    }


def table(rows: dict[str, dict[str, Any]], network: str) -> str:
    lines = [
        f"| set | Fréchet distance ({network}) | precision | recall | MS-SSIM x100 | agreement (%) | nearest real |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {row['frechet_distance']:.2f} | {row['precision']:.3f} | {row['recall']:.3f} "
        f"| {100 * row['ms_ssim']:.1f} ± {100 * row['ms_ssim_std_over_classes']:.1f} | {100 * row['agreement']:.1f} "
        f"| {row['nearest_real_median']:.0f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--data", required=True, help="imagefolder:DIR or cifar10[:ROOT].")
@click.option("--bundle", type=click.Path(path_type=Path), default=None, help="By default the one in the package.")
@click.option("--pool", type=click.Path(path_type=Path), required=True, help="Where embedding networks are kept.")
@click.option("--inception", "weights", type=click.Path(path_type=Path), default=None, help="Inception's weights.")
@click.option("--per-class", default=200, show_default=True, help="Images of a class in each set.")
@click.option("--seed", default=0, show_default=True, help="Of the fresh samples and the choice of images.")
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "metrics.json")
@click.option("--pictures", type=click.Path(path_type=Path), default=None, help="Folder for the pictures.")
def main(
    data: str,
    bundle: Path | None,
    pool: Path,
    weights: Path | None,
    per_class: int,
    seed: int,
    threads: int | None,
    out: Path,
    pictures: Path | None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_bundle(bundle)
    all_real = load_images(open_dataset(data, "train"))
    networks = build_pool(all_real, POOL, normalization=CIFAR10.normalization, seed=0, workdir=pool)
    convnet = convnet_features(networks)
    features = inception(weights) if weights is not None else convnet

    def choose(images: LabeledImages) -> LabeledImages:
        return images.select(balanced(images.labels, per_class, seed))

    def generate(latents: LatentSet | RandomLatents) -> LabeledImages:
        return choose(load_images(SyntheticDataset(loaded.generator, latents, classes=loaded.class_names)))

    real = choose(all_real)
    total = per_class * loaded.generator.num_classes
    fresh = RandomLatents(total, loaded.generator.latent_dim, loaded.generator.num_classes, seed=seed)
    sets = {
        "learned latents": generate(loaded.latents),
        "fresh samples": generate(fresh),
        "real test images": choose(load_images(open_dataset(data, "test"))),
    }
    real_features = features.features(real.images)
    nearest = {name: nearest_neighbors(images.images, all_real.images) for name, images in sets.items()}
    rows = {name: measure(images, nearest[name][0], real_features, features, networks) for name, images in sets.items()}
    click.echo(table(rows, features.name))
    settings = {"per_class": per_class, "seed": seed, "pool": asdict(POOL), "dataset": loaded.config["dataset"]}
    write_json(out, {"settings": settings, "environment": environment(), "rows": rows})
    if pictures is not None:
        for name, images in sets.items():
            distances, indices = nearest[name]
            stem = str(pictures / name.replace(" ", "-"))
            plot_preview(f"{stem}.png", images.images, images.labels, images.class_names, title=name)
            plot_neighbors(f"{stem}-neighbors.png", images.images, all_real.images[indices], distances)
            draw_map(f"{stem}-features.png", real, real_features, images, features)


def draw_map(
    path: str, real: LabeledImages, real_features: torch.Tensor, images: LabeledImages, features: FeatureNetwork
) -> None:
    """Up to `MAP_IMAGES` a class of the real images beside as many of a set of the same size."""
    chosen = balanced(real.labels, min(MAP_IMAGES, len(real) // real.num_classes), seed=0)
    plot_features(
        path,
        real_features[chosen],
        real.labels[chosen],
        features.features(images.images[chosen]),
        images.labels[chosen],
        images.class_names,
        network=features.name,
    )


if __name__ == "__main__":
    main()
