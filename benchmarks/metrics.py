"""How far are the images of a bundle from real ones? Fréchet distance, precision, recall, MS-SSIM, agreement, copies.

Three sets of one size, in equal shares of the classes, are set against the same real training images: the bundle's
learned latents, fresh samples of its generator, and real test images, which show what a perfect generator would get.

    python benchmarks/metrics.py --data imagefolder:DIR --pool WORKDIR/condense/pool [--inception WEIGHTS]
"""

from dataclasses import asdict
from pathlib import Path

import click
import torch
from setting import readable

from itgan_data.bundle.writing import load_bundle
from itgan_data.condense.pool import PoolConfig, build_pool
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import CIFAR10, load_images, open_dataset
from itgan_data.evaluation.features import FeatureNetwork, inception
from itgan_data.evaluation.metrics import nearest_neighbors
from itgan_data.evaluation.plots import plot_features, plot_neighbors, plot_preview
from itgan_data.evaluation.quality import ImageMetrics, Judge, equal_shares, measure_images, metrics_table
from itgan_data.evaluation.results import environment
from itgan_data.images import LabeledImages
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSource
from itgan_data.storage.files import read_json, write_json

POOL = PoolConfig(num_networks=1, steps=1200, precision="bfloat16", compile=True)  # the first network of the release
MAP_IMAGES = 100  # per class, in the t-SNE map


def trained_judge(real: LabeledImages, workdir: Path) -> Judge:
    """The first network of the release's pool, trained here if it is not there."""
    pool = build_pool(real, POOL, normalization=CIFAR10.normalization, seed=0, workdir=workdir)
    pool.load_best()
    name = f"ConvNet of {100 * max(pool.accuracies):.1f}%"
    return Judge(name=name, network=pool.network, normalization=CIFAR10.normalization)


@click.command(help=readable(__doc__))
@click.option("--data", required=True, help="imagefolder:DIR or cifar10[:ROOT].")
@click.option("--bundle", type=click.Path(path_type=Path), default=None, help="By default cifar10-gan, in the package.")
@click.option("--pool", type=click.Path(path_type=Path), required=True, help="Where embedding networks are kept.")
@click.option("--inception", "weights", type=click.Path(path_type=Path), default=None, help="Inception's weights.")
@click.option("--per-class", default=200, show_default=True, help="Images per class in each set.")
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
    loaded = load_bundle(bundle or "cifar10-gan")
    all_real = load_images(open_dataset(data, "train"))
    judge = trained_judge(all_real, pool)
    features = inception(weights) if weights is not None else judge.features

    def generate(latents: LatentSource) -> LabeledImages:
        dataset = SyntheticDataset(loaded.generator, latents, classes=loaded.class_names)
        return equal_shares(dataset, per_class, seed=seed)

    real = equal_shares(all_real, per_class, seed=seed)
    fresh = RandomLatents(len(real), loaded.generator.latent_dim, loaded.generator.num_classes, seed=seed)
    sets = {
        "learned latents": generate(loaded.latents),
        "fresh samples": generate(fresh),
        "real test images": equal_shares(open_dataset(data, "test"), per_class, seed=seed),
    }
    real_features = features.features(real.images)
    nearest = {name: nearest_neighbors(images.images, all_real.images) for name, images in sets.items()}
    rows = {
        name: measure_images(images, nearest[name][0], real_features, features=features, judge=judge)
        for name, images in sets.items()
    }
    settings = {"per_class": per_class, "seed": seed, "pool": asdict(POOL), "dataset": loaded.config["dataset"]}
    measured = {name: asdict(row) for name, row in rows.items()}
    write_json(out, {"settings": settings, "environment": environment(), "rows": measured})
    click.echo(report(out), nl=False)
    if pictures is not None:
        for name, images in sets.items():
            distances, indices = nearest[name]
            stem = str(pictures / name.replace(" ", "-"))
            plot_preview(f"{stem}.png", images.images, images.labels, images.class_names, title=name)
            plot_neighbors(f"{stem}-neighbors.png", images.images, all_real.images[indices], distances)
            draw_map(f"{stem}-features.png", real, images, features)


def report(out: Path) -> str:
    """Markdown: the rows of a file of results."""
    return metrics_table({name: ImageMetrics(**row) for name, row in read_json(out)["rows"].items()}) + "\n"


def draw_map(path: str, real: LabeledImages, images: LabeledImages, features: FeatureNetwork) -> None:
    """Up to `MAP_IMAGES` per class of the real images, and as many of a set of the same size."""
    count = min(MAP_IMAGES, len(real) // real.num_classes)
    shown, others = equal_shares(real, count), equal_shares(images, count)
    plot_features(
        path,
        features.features(shown.images),
        shown.labels,
        features.features(others.images),
        others.labels,
        images.class_names,
        network=features.name,
    )


if __name__ == "__main__":
    main()
