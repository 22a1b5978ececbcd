"""The objectives of condensation, as pure functions of embeddings.

Equations are those of Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022.
Embeddings come class by class, `[num_classes, images_per_class, dim]`, so that all classes are one batch.
"""

import torch


def distribution_matching(real_means: torch.Tensor, synthetic_means: torch.Tensor) -> torch.Tensor:
    """Squared distance of the mean embeddings, summed over classes (the condensation loss of Eq. 2, Algorithm 1).

    Args:
        real_means, synthetic_means: `[num_classes, dim]`.
    """
    return (real_means - synthetic_means).square().sum()


def pairwise_regularizer(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of the squared embedding distance, summed over classes (Eq. 3).

    Summed over classes as the first term is: another normalisation would shift the weight between the two.

    Args:
        real, synthetic: `[num_classes, images_per_class, dim]`; row j of both belongs to one pair.
    """
    return (real - synthetic).square().sum(dim=2).mean(dim=1).sum()


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
    """Inversion's objective of each image: mean squared feature distance plus weighted pixel distance (Eq. 1).

    Args:
        synthetic_features, real_features: `[N, dim]`.
        synthetic_images, real_images: signed `[N, C, H, W]`.
        pixel_weight: lambda_pixel, 1 in the paper.

    Returns:
        `[N]`: images do not depend on each other.
    """
    feature = (synthetic_features - real_features).square().mean(dim=1)
    pixel = (synthetic_images - real_images).square().flatten(1).mean(dim=1)
    return feature + pixel_weight * pixel
