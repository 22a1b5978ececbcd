"""Sets of images compared with real ones: distance, diversity, recognisability, copies; as rows of a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from .. import draws
from ..draws import Stream
from ..images import LabeledImages, Normalization, unit_to_uint8
from ..networks import Classifier, create_network
from ..recipes import Recipe, accuracy
from .features import FeatureNetwork
from .metrics import FeatureMetrics, compare_features, ms_ssim
from .protocol import as_source, evaluate


@dataclass(frozen=True, eq=False, kw_only=True)
class Judge:
    """A classifier trained on real images, which tells whether it recognises other images and gives their features."""

    name: str
    """The network and its accuracy on real images that it has not seen."""
    network: Classifier
    normalization: Normalization
    """Maps unit images to what the network was trained on."""

    def agreement(self, images: LabeledImages) -> float:
        """Share, in [0, 1], of the images that the classifier takes for their label."""
        return accuracy(self.network, images, self.normalization)

    @property
    def features(self) -> FeatureNetwork:
        """What the linear layer reads, as features."""
        return FeatureNetwork(self.name, self._embed)

    def _embed(self, unit: torch.Tensor) -> torch.Tensor:
        device = next(self.network.parameters()).device
        return self.network.embed(self.normalization.standardize(unit.to(device)))


@dataclass(frozen=True, kw_only=True)
class ImageMetrics(FeatureMetrics):
    """A set of images compared with as many real training images."""

    ms_ssim: float
    """Likeness within a class, the mean over the classes, in [0, 1]; see `metrics.ms_ssim`."""
    ms_ssim_std_over_classes: float
    agreement: float
    """Share that a `Judge` takes for their label, in [0, 1]."""
    nearest_real_median: float
    """Distance to the nearest training image in uint8 steps, Euclidean over all values; see `nearest_neighbors`."""
    nearest_real_minimum: float


def train_judge(
    real_images: LabeledImages,
    test_images: LabeledImages,
    network: str,
    recipe: Recipe,
    *,
    normalization: Normalization,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> Judge:
    """Train a network on real images; its name tells its accuracy on the test images. Arguments: see `evaluate`."""
    rng = draws.make_rng(seed, stream=Stream.CLASSIFIER)
    model = create_network(network, real_images.num_classes, image_shape=real_images.image_shape, rng=rng)
    (result,) = evaluate(
        real_images,
        test_images,
        lambda _: model,
        recipe,
        seeds=[seed],
        normalization=normalization,
        device=device,
        progress=progress,
    )
    return Judge(name=f"{network} of {100 * result.accuracy:.1f}%", network=model, normalization=normalization)


def equal_shares(dataset: Dataset[object], per_class: int, *, seed: int = 0) -> LabeledImages:
    """`per_class` random images of each class of a data set, class after class; no others are generated.

    Raises:
        ValueError: a class has fewer.
    """
    source: Any = as_source(dataset)
    labels, num_classes = torch.as_tensor(source.targets), len(source.classes)
    orders = draws.shuffled_classes(labels, num_classes, seed, stream=Stream.EQUAL_SHARES)
    shares = [order[:per_class] for order in orders]
    sizes = [len(share) for share in shares]
    if (fewest := min(sizes)) < per_class:
        name = source.classes[sizes.index(fewest)]
        raise ValueError(f"class {name!r} has {fewest} images, expected at least {per_class}; ask for fewer per class")
    unit, labels = source.unit_batch(torch.cat(shares), 0)
    return LabeledImages(unit_to_uint8(unit.cpu()), labels.cpu(), source.classes)


def measure_images(
    images: LabeledImages,
    nearest_real: torch.Tensor,
    real_features: torch.Tensor,
    *,
    features: FeatureNetwork,
    judge: Judge,
) -> ImageMetrics:
    """Compare a set of images with real ones. Compare only results of equal counts and equal networks.

    Args:
        images: the set.
        nearest_real: `[N]`, the distances of `metrics.nearest_neighbors` to all real training images.
        real_features: `[M, d]` of as many real training images, by `features`.
        features: the network that gives the features.
        judge: the classifier whose agreement is measured.

    Raises:
        ValueError, RuntimeError: see `metrics.compare_features` and `metrics.ms_ssim`.
    """
    compared = compare_features(real_features, features.features(images.images), network=features.name)
    similarity = ms_ssim(images.images, images.labels)
    return ImageMetrics(
        **vars(compared),
        ms_ssim=float(similarity.mean()),
        ms_ssim_std_over_classes=float(similarity.std()),
        agreement=judge.agreement(images),
        nearest_real_median=float(nearest_real.median()),
        nearest_real_minimum=float(nearest_real.min()),
    )


def metrics_table(rows: Mapping[str, ImageMetrics]) -> str:
    """A Markdown table, one line per set; all rows have the same feature network."""
    network = next(iter(rows.values())).network
    lines = [
        f"| set | Fréchet distance ({network}) | precision | recall | MS-SSIM x100 | agreement (%) | nearest real |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {row.frechet_distance:.2f} | {row.precision:.3f} | {row.recall:.3f} "
        f"| {100 * row.ms_ssim:.1f} ± {100 * row.ms_ssim_std_over_classes:.1f} | {100 * row.agreement:.1f} "
        f"| {row.nearest_real_median:.0f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)
