"""How synthetic images differ from real ones: Fréchet distance, precision and recall, diversity, nearest neighbours.

Everything is a function of features `[N, d]` (see `features.FeatureNetwork`) or of uint8 images `[N, C, H, W]`.
Distances are made in blocks, so memory does not grow with the product of the counts. Agreement with a classifier is
`recipes.accuracy`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .. import draws
from ..config import needs_extra
from ..draws import Stream
from ..images import check_labels, uint8_to_unit

WeightMethod = Literal["A_mu", "A_sigma", "B", "C"]
WEIGHT_METHODS: tuple[WeightMethod, ...] = get_args(WeightMethod)

_BLOCK = 1024  # rows and columns of a block of distances: 8 MB, and 50 MB for two blocks of 32 px images as float64
_MIN_SPREAD = 1e-6  # relative; distances that differ by less are equal, up to rounding

# The first three of the five scales of Wang, Simoncelli and Bovik, 2003, made to sum to one: at 32 px a fourth
# scale would be 4 px wide.
_SCALES = (0.0448, 0.2856, 0.3001)
_BETAS = tuple(scale / sum(_SCALES) for scale in _SCALES)
_MIN_SIDE = 12  # the third scale has a quarter of it, which must hold a window of 3 px


@dataclass(frozen=True, kw_only=True)
class FeatureMetrics:
    """Two sets of features compared. Numbers can be compared only for the same network and the same counts."""

    network: str
    """Whose features they are."""
    num_real: int
    num_synthetic: int
    frechet_distance: float
    """At least 0; the FID where the network is Inception."""
    precision: float
    """Share of the synthetic set within the real one, in [0, 1]."""
    recall: float
    """Share of the real set within the synthetic one, in [0, 1]."""


def compare_features(real_features: torch.Tensor, synthetic_features: torch.Tensor, *, network: str) -> FeatureMetrics:
    """Fréchet distance, precision and recall of two sets of features `[N, d]` and `[M, d]` of one network.

    Raises:
        ValueError, RuntimeError: see `frechet_distance` and `precision_recall`.
    """
    precision, recall = precision_recall(real_features, synthetic_features)
    return FeatureMetrics(
        network=network,
        num_real=len(real_features),
        num_synthetic=len(synthetic_features),
        frechet_distance=frechet_distance(real_features, synthetic_features),
        precision=precision,
        recall=recall,
    )


def frechet_distance(real_features: torch.Tensor, synthetic_features: torch.Tensor) -> float:
    """`|mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2))` of the Gaussians with the moments of two sets.

    It falls as the number of samples grows, so compare sets of equal size. Computed in float64, through the symmetric
    `S_r^(1/2) S_g S_r^(1/2)`: its eigenvalues equal the eigenvalues of `S_r S_g`, and are real even if a covariance is
    singular.

    Raises:
        ValueError: fewer than two samples, other numbers of features, or values that are not finite.

    Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017.
    """
    _check_features(at_least=2, real=real_features, synthetic=synthetic_features)
    real_mean, real_covariance = _moments(real_features)
    synthetic_mean, synthetic_covariance = _moments(synthetic_features)
    values, vectors = torch.linalg.eigh(real_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ synthetic_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (real_mean - synthetic_mean).square().sum()
    distance += real_covariance.trace() + synthetic_covariance.trace() - 2 * shared
    return max(float(distance), 0.0)  # rounding may leave equal sets a little below


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[d]` and covariance `[d, d]`, float64, without a float64 copy of the features."""
    mean = features.mean(dim=0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for block in torch.split(features, _BLOCK):
        centered = block.double() - mean
        covariance.addmm_(centered.T, centered)
    return mean, covariance / (len(features) - 1)


def precision_recall(
    real_features: torch.Tensor, synthetic_features: torch.Tensor, *, neighbors: int = 3
) -> tuple[float, float]:
    """Which share of one set lies in the other: precision (quality) and recall (coverage), both in [0, 1].

    A point lies in a set if its distance to some point of the set is at most the distance from that point to its
    `neighbors`-th nearest neighbour in the set. Both numbers depend on the counts, so compare sets of equal size.

    Raises:
        ValueError: no more than `neighbors` samples, other numbers of features, or values that are not finite.
        RuntimeError: the extra `metrics` is not installed.

    Source: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019.
    """
    if neighbors < 1:
        raise ValueError(f"neighbors must be at least 1, got {neighbors}")
    _check_features(at_least=neighbors + 1, real=real_features, synthetic=synthetic_features)
    with needs_extra("metrics"):
        from torch_fidelity.metric_prc import prc_features_to_metric
    values = prc_features_to_metric(
        synthetic_features.double(),  # in float32 close points lose their distance to rounding
        real_features.double(),
        prc_neighborhood=neighbors,
        prc_batch_size=_BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return values["precision"], values["recall"]


def ms_ssim(images: torch.Tensor, labels: torch.Tensor, *, pairs_per_class: int = 200, seed: int = 0) -> torch.Tensor:
    """Similarity of images of the same class, by multi-scale structural similarity; lower is more diverse.

    Three scales and a uniform window of 3 px, which fit images of 32 px. Other scales and windows give other scores
    (real CIFAR-10 has 0.105 here and 0.405 in the source), so compare with real images measured by this function. The
    pairs depend on `seed`, the label and the class's size only.

    Args:
        images: uint8 `[N, C, H, W]` of at least 12 px.
        labels: int64 `[N]`.
        pairs_per_class: random pairs of two different images.
        seed: of the pairs.

    Returns:
        The mean over the pairs, in [0, 1], of each class that has images, in the order of their labels. Its `mean()`
        is the intra-class score.

    Raises:
        ValueError: a class of one image, images too small, or labels that do not fit.
        RuntimeError: the extra `metrics` is not installed.

    Source: Slim, "Boosting generative networks for incremental learning", 2020, section 4.3, with 200 pairs per class.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0 or min(images.shape[2:]) < _MIN_SIDE:
        raise ValueError(
            f"images must be uint8 [N, C, H, W], not empty, of at least {_MIN_SIDE} px, "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    check_labels(labels, len(images))
    if pairs_per_class < 1:
        raise ValueError(f"pairs_per_class must be at least 1, got {pairs_per_class}")
    with needs_extra("metrics"):
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    scores = []
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(f"class {label} has one image; expected at least two to pair")
        numbers = draws.uniform(seed, label, torch.arange(pairs_per_class), 2, stream=Stream.METRIC_PAIRS).double()
        first = (numbers[:, 0] * len(members)).long()
        offset = 1 + (numbers[:, 1] * (len(members) - 1)).long()  # never 0, so that a pair is two different images
        second = (first + offset) % len(members)
        similarities = multiscale_structural_similarity_index_measure(
            uint8_to_unit(images[members[first]]),
            uint8_to_unit(images[members[second]]),
            gaussian_kernel=False,
            kernel_size=3,
            data_range=1.0,
            betas=_BETAS,
        )
        scores.append(similarities)
    return torch.stack(scores)


def nearest_neighbors(queries: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest of `references` `[M, ...]` to each of `queries` `[N, ...]`: features, or images of any range.

    A generator copies if its images lie closer to the training images than held-out real ones.

    Returns:
        Euclidean distances `[N]`, float64 in the unit of the values (exact for uint8), and indices `[N]`; of equally
        near references the first.

    Raises:
        ValueError: an empty set, other shapes, or values that are not finite.
    """
    queries, references = queries.flatten(1), references.flatten(1)
    _check_features(at_least=1, queries=queries, references=references)
    nearest = torch.full((len(queries),), torch.inf, dtype=torch.float64, device=queries.device)
    indices = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for rows, first, distances in _distance_blocks(queries, references):
        values, places = distances.min(dim=1)
        closer = values < nearest[rows]
        nearest[rows] = torch.where(closer, values, nearest[rows])
        indices[rows] = torch.where(closer, places + first, indices[rows])
    return nearest, indices


def sample_weights(
    real_features: torch.Tensor,
    real_labels: torch.Tensor,
    synthetic_features: torch.Tensor,
    synthetic_labels: torch.Tensor,
    *,
    method: WeightMethod,
) -> torch.Tensor:
    """How much each real sample is missing from the synthetic set: sampling weights for the next GAN's training.

    The distances of a real sample to all synthetic ones of its class are summed to d, and
    `w = (d - d_min) / d_max` with the extremes over the real samples of the class. With the mean mu and the
    (population) standard deviation sigma of w over the class, the methods are

    - `A_mu`: w, or 0 where w < mu; in [0, 1).
    - `A_sigma`: w, or 0 where w < mu - sigma; in [0, 1).
    - `B`: `1 / (1 + exp(-2 (w - mu) / sigma))`; in (0, 1).
    - `C`: w; in [0, 1), and 0 for the closest sample of each class.

    Returns:
        float32 `[N]`. The sum differs between classes, as in the source: divide by it for balanced classes.

    Raises:
        ValueError: an unknown method, labels or features that do not fit, a class without synthetic samples, or one
            whose real samples are all equally far (a single one is).

    Source: Slim, "Boosting generative networks for incremental learning", 2020, Algorithm 1. Its text takes the
    extremes over the synthetic samples, for which d is not defined.
    """
    if method not in WEIGHT_METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(WEIGHT_METHODS)}")
    _check_features(at_least=1, real=real_features, synthetic=synthetic_features)
    check_labels(real_labels, len(real_features))
    check_labels(synthetic_labels, len(synthetic_features))
    weights = torch.zeros(len(real_features), device=real_features.device)
    for label in torch.unique(real_labels).tolist():
        members, others = real_labels == label, synthetic_labels == label
        if not others.any():
            raise ValueError(f"class {label} has no synthetic samples; expected some of every real class")
        distances = _summed_distances(real_features[members], synthetic_features[others])
        lowest, highest = distances.min(), distances.max()
        if highest - lowest <= _MIN_SPREAD * highest:
            raise ValueError(
                f"the {len(distances)} real samples of class {label} are equally far from its synthetic ones, so all "
                "weights would be zero; expected at least two that differ"
            )
        weights[members] = _transform((distances - lowest) / highest, method).float()
    return weights


def _transform(weights: torch.Tensor, method: WeightMethod) -> torch.Tensor:
    """f of Algorithm 1, on the normalised weights of a class."""
    std, mean = torch.std_mean(weights, correction=0)
    if method == "B":
        return torch.sigmoid(2 * (weights - mean) / std)
    threshold = {"A_mu": mean, "A_sigma": mean - std, "C": torch.zeros_like(mean)}[method]
    return weights.where(weights >= threshold, 0.0)


def _summed_distances(queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
    for rows, _, distances in _distance_blocks(queries, references):
        total[rows] += distances.sum(dim=1)
    return total


def _distance_blocks(queries: torch.Tensor, references: torch.Tensor) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """Rows of `queries`, first row of `references`, and the float64 distances between the two blocks of rows."""
    for top in range(0, len(queries), _BLOCK):
        block = queries[top : top + _BLOCK].double()
        for left in range(0, len(references), _BLOCK):
            yield slice(top, top + _BLOCK), left, torch.cdist(block, references[left : left + _BLOCK].double())


def _check_features(*, at_least: int, **sets: torch.Tensor) -> None:
    """Refuse two sets that cannot be compared."""
    shapes = " and ".join(f"{name} {tuple(values.shape)}" for name, values in sets.items())
    if {values.ndim for values in sets.values()} != {2} or len({values.shape[1] for values in sets.values()}) > 1:
        raise ValueError(f"expected sets of equally many features [N, d], got {shapes}")
    if min(len(values) for values in sets.values()) < at_least:
        raise ValueError(f"expected at least {at_least} samples per set, got {shapes}")
    for name, values in sets.items():
        if not values.isfinite().all():
            raise ValueError(f"the {name} features hold values that are not finite; look at what made them")
