"""Layers under spectral norm, for generators and discriminators."""

import torch
import torch.nn.functional as F
from torch import nn

SPECTRAL_EPS = 1e-8


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, found by one power iteration per call.

    In training the iteration's vector `u` is kept for the next call; in evaluation it is not, so the divisor is a
    constant. Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018.
    """

    u: torch.Tensor | None

    def __init__(self, shape: tuple[int, ...], *, bias: bool, spectral: bool = True, rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal_02(shape, rng))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u", torch.randn(1, shape[0], generator=rng) if spectral else None)

    def normalized_weight(self) -> torch.Tensor:
        """The weight over its spectral norm, in the weight's own precision; as it is with `spectral=False`."""
        if self.u is None:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():  # the gradient goes through sigma alone, with both vectors held constant
                right = F.normalize(self.u @ matrix, eps=SPECTRAL_EPS)
                left = F.normalize(right @ matrix.t(), eps=SPECTRAL_EPS)
                if self.training:
                    self.u.copy_(left)
            sigma = (right @ matrix.t() @ left.t()).squeeze()
            return self.weight / sigma


class SpectralConv2d(SpectralNorm):
    """A convolution of stride 1 that keeps the size, under spectral norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        rng: torch.Generator,
        *,
        bias: bool = True,
        spectral: bool = True,
    ) -> None:
        super().__init__((out_channels, in_channels, kernel, kernel), bias=bias, spectral=spectral, rng=rng)
        self.padding = kernel // 2

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.conv2d(maps, self.normalized_weight(), self.bias, padding=self.padding)


class SpectralLinear(SpectralNorm):
    """A linear layer under spectral norm."""

    def __init__(
        self, in_features: int, out_features: int, rng: torch.Generator, *, bias: bool = True, spectral: bool = True
    ) -> None:
        super().__init__((out_features, in_features), bias=bias, spectral=spectral, rng=rng)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.normalized_weight(), self.bias)


class SpectralEmbedding(SpectralNorm):
    """A table of vectors, one per class, under spectral norm."""

    def __init__(self, num_classes: int, dim: int, rng: torch.Generator) -> None:
        super().__init__((num_classes, dim), bias=False, rng=rng)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, self.normalized_weight())


def normal_02(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """BigGAN's initial weights: normal, of standard deviation 0.02."""
    return torch.randn(shape, generator=rng) * 0.02
