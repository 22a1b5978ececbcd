"""The projection discriminator that trains a generator, and the hinge losses of both."""

import torch
import torch.nn.functional as F
from torch import nn

from ..generators.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear


class DownBlock(nn.Module):
    """(ReLU -) conv - ReLU - conv (- pool), plus a shortcut: a 1x1 convolution if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, first: bool, pool: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.pool = first, pool
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, rng)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, rng)
        changes = pool or in_channels != out_channels
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, rng) if changes else nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv1(maps if self.first else F.relu(maps))
        hidden = self.conv2(F.relu(hidden))
        if self.pool:  # a 1x1 convolution commutes with average pooling: pooling first is cheaper
            hidden, maps = F.avg_pool2d(hidden, 2), F.avg_pool2d(maps, 2)
        shortcut: torch.Tensor = self.shortcut(maps)
        return hidden + shortcut


class ProjectionDiscriminator(nn.Module):
    """Scores `[N]` of signed images `[N, 3, H, W]` with labels `[N]`; high means real.

    Blocks halve the image until it is 8 px wide; two more keep its size.

    Source: Miyato and Koyama, "cGANs with projection discriminator", 2018.
    """

    def __init__(self, channels: int, num_classes: int, image_size: int, rng: torch.Generator) -> None:
        super().__init__()
        halvings = (image_size // 8).bit_length() - 1
        self.blocks = nn.Sequential()
        for number, pool in enumerate([True] * halvings + [False] * 2):
            width = channels if number else 3
            self.blocks.append(DownBlock(width, channels, first=number == 0, pool=pool, rng=rng))
        self.linear = SpectralLinear(channels, 1, rng)
        self.embedding = SpectralEmbedding(num_classes, channels, rng)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.blocks(images)).float().sum(dim=(2, 3))
        with torch.autocast(features.device.type, enabled=False):
            projection = (self.embedding(labels) * features).sum(dim=1)
            score: torch.Tensor = self.linear(features).squeeze(1) + projection
        return score


def discriminator_hinge(real_scores: torch.Tensor, synthetic_scores: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator; 2 if every score is 0."""
    return F.relu(1.0 - real_scores).mean() + F.relu(1.0 + synthetic_scores).mean()


def generator_hinge(synthetic_scores: torch.Tensor) -> torch.Tensor:
    """Loss of the generator: minus the mean score."""
    return -synthetic_scores.mean()
