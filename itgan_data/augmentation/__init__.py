"""Augmentations as pure functions of images and draws, and kornia's.

Every augmentation of ours is called as `augmentation(images, draws)`. `images` are standardized floats `[B, C, H, W]`,
`draws` are uniform numbers in [0, 1), `[B, augmentation.num_draws]`, one row per image. The caller draws, and so
decides what is shared: with equal rows the augmentation is siamese, with one row for all images of a class it is the
same per class, and with counter-based rows (`draws.uniform`) it is reproducible. Padding with zeros is padding with the
mean colour, and nothing is clamped. `Kornia` is the exception: it takes unit images, and draws for a batch as a whole.
"""

from .adapter import Kornia, standardize_and_augment
from .operations import DSA, Augmentation, Compose, CropFlip, diff_augment, without_flip

__all__ = [
    "DSA",
    "Augmentation",
    "Compose",
    "CropFlip",
    "Kornia",
    "diff_augment",
    "standardize_and_augment",
    "without_flip",
]
