"""The objectives of condensation, as pure functions of embeddings.

Embeddings are `[num_classes, images_per_class, dim]`, so that all classes are one batch. Losses are `[num_classes]`;
the total is their sum.

Source of the equations: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022.
"""

from collections.abc import Sequence

import torch

_EPSILON = 1e-6  # of the published gradient distance: a unit without gradient counts as orthogonal


def distribution_matching(real_means: torch.Tensor, synthetic_means: torch.Tensor) -> torch.Tensor:
    """Squared distance between the mean embeddings of each class (the condensation loss of Eq. 2, Algorithm 1).

    Args:
        real_means, synthetic_means: `[num_classes, dim]`.

    Returns:
        `[num_classes]`.
    """
    return (real_means - synthetic_means).square().sum(dim=1)


def gradient_distance(real: Sequence[torch.Tensor], synthetic: Sequence[torch.Tensor]) -> torch.Tensor:
    """Distance between two gradients of a network: 1 - cosine, summed over output units and layers; a scalar.

    It lies between 0 and twice the number of output units, and does not depend on the lengths of the gradients.
    Parameters of one dimension (biases, gains) are ignored.

    Source: Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching" (DC), 2021, Section 3.

    Args:
        real, synthetic: one tensor per parameter, in the same order; the first dimension is output units.
    """
    distances = []
    for ours, theirs in zip(synthetic, real, strict=True):
        if ours.ndim > 1:
            one, other = ours.flatten(1), theirs.flatten(1)
            lengths = one.norm(dim=1) * other.norm(dim=1)
            distances.append((1.0 - (one * other).sum(dim=1) / (lengths + _EPSILON)).sum())
    return torch.stack(distances).sum()


def pairwise_regularizer(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Squared distance between paired embeddings, averaged over the pairs of each class (Eq. 3).

    Sum it over classes like `distribution_matching`: another normalisation would change the weight of the two terms.

    Args:
        real, synthetic: `[num_classes, images_per_class, dim]`; row j of both belongs to one pair.

    Returns:
        `[num_classes]`.
    """
    return (real - synthetic).square().sum(dim=2).mean(dim=1)


def total_loss(condensation: torch.Tensor, regularizer: torch.Tensor, weight: float) -> torch.Tensor:
    """`(1 - weight) * condensation + weight * regularizer` (Eq. 4)."""
    return (1.0 - weight) * condensation + weight * regularizer


def reconstruction(
    synthetic_features: torch.Tensor,
    real_features: torch.Tensor,
    synthetic_images: torch.Tensor,
    real_images: torch.Tensor,
    pixel_weight: float,
) -> torch.Tensor:
    """Inversion's loss of each image: mean squared feature distance plus weighted pixel distance (Eq. 1).

    Args:
        synthetic_features, real_features: `[N, dim]`.
        synthetic_images, real_images: signed `[N, C, H, W]`.
        pixel_weight: lambda_pixel, 1 in the paper.

    Returns:
        `[N]`.
    """
    feature = (synthetic_features - real_features).square().mean(dim=1)
    pixel = (synthetic_images - real_images).square().flatten(1).mean(dim=1)
    return feature + pixel_weight * pixel
