"""Augmentations as pure functions of images and draws, and kornia's.

Every augmentation of ours is called as `augmentation(images, draws)`. `images` are standardized floats `[B, C, H, W]`,
`draws` are uniform numbers in [0, 1), `[B, augmentation.num_draws]`, one row an image. Who draws decides what
is shared: equal rows give a siamese augmentation, one row a class a per-class one, counter-based rows
(`draws.uniform`) a reproducible one. Zero padding is the mean colour, and nothing is clamped.
`Kornia` is the exception: it takes unit images, and draws for a batch as a whole.
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
