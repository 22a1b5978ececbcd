"""BigGAN in its training form: spectral norm, batch statistics, class-conditional batch norm.

Source: Brock, Donahue and Simonyan, "Large scale GAN training for high fidelity natural image synthesis", 2019;
the layout for 32 px is the one that DiffAugment (Zhao et al., 2020) trains on CIFAR.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

SPECTRAL_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class BigGANConfig:
    """The shape of a generator. The defaults are the reference's for CIFAR-10 (4.3 M parameters)."""

    num_classes: int = 10
    latent_dim: int = 128
    channels: tuple[int, ...] = (256, 256, 256, 256)
    """Channels of the 4 px map, then after each block; every block doubles the side (four entries: 32 px)."""
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # JSON gives a list
        for name in ("num_classes", "latent_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(f"channels must be two or more positive numbers, got {self.channels}")

    @property
    def bottom(self) -> int:
        """Side of the first map in pixels."""
        return 4

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of the images."""
        side = self.bottom * 2 ** (len(self.channels) - 1)
        return 3, side, side


class _SpectralNorm(nn.Module):
    """A weight divided by its largest singular value, found by one power iteration a call.

    In training the iteration's vector `u` is kept for the next call; in evaluation it is not, so the divisor is a
    constant. Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018.
    """

    u: torch.Tensor

    def __init__(self, shape: tuple[int, ...], *, bias: bool, rng: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(_normal_02(shape, rng))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u", torch.randn(1, shape[0], generator=rng))

    def normalized_weight(self) -> torch.Tensor:
        """The weight over its spectral norm, in the weight's own precision."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                right = F.normalize(self.u @ matrix, eps=SPECTRAL_EPS)
                left = F.normalize(right @ matrix.t(), eps=SPECTRAL_EPS)
                if self.training:
                    self.u.copy_(left)
            sigma = (right @ matrix.t() @ left.t()).squeeze()
            return self.weight / sigma


class SpectralConv2d(_SpectralNorm):
    """A convolution of stride 1 that keeps the size, under spectral norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, rng: torch.Generator) -> None:
        super().__init__((out_channels, in_channels, kernel, kernel), bias=True, rng=rng)
        self.padding = kernel // 2

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.conv2d(maps, self.normalized_weight(), self.bias, padding=self.padding)


class SpectralLinear(_SpectralNorm):
    """A linear layer under spectral norm."""

    def __init__(self, in_features: int, out_features: int, rng: torch.Generator) -> None:
        super().__init__((out_features, in_features), bias=True, rng=rng)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.normalized_weight(), self.bias)


class SpectralEmbedding(_SpectralNorm):
    """A table of vectors, one a class, under spectral norm."""

    def __init__(self, num_classes: int, dim: int, rng: torch.Generator) -> None:
        super().__init__((num_classes, dim), bias=False, rng=rng)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, self.normalized_weight())


class BatchStatistics(nn.Module):
    """Batch normalisation without gain and bias: the batch's statistics in training, stored ones in evaluation."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def normalize(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `[N, C, H, W]` of mean 0 and variance 1 in each channel."""
        return F.batch_norm(
            maps, self.running_mean, self.running_var, training=self.training, momentum=0.1, eps=self.eps
        )


class ClassBatchNorm2d(BatchStatistics):
    """Batch normalisation whose gain (1 + table) and bias are looked up by class."""

    def __init__(self, channels: int, num_classes: int, eps: float, rng: torch.Generator) -> None:
        super().__init__(channels, eps)
        self.gain = nn.Parameter(_normal_02((num_classes, channels), rng))
        self.bias = nn.Parameter(_normal_02((num_classes, channels), rng))

    def forward(self, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gain = (1.0 + F.embedding(labels, self.gain))[:, :, None, None]
        bias = F.embedding(labels, self.bias)[:, :, None, None]
        maps = self.normalize(maps)
        return torch.addcmul(bias.to(maps.dtype), maps, gain.to(maps.dtype))


class UpBlock(nn.Module):
    """BN - ReLU - up - conv - BN - ReLU - conv, beside up - conv 1x1.

    The 1x1 convolution commutes with nearest upsampling, so the shortcut is computed on the small map.
    """

    def __init__(self, in_channels: int, out_channels: int, config: BigGANConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.bn1 = ClassBatchNorm2d(in_channels, config.num_classes, config.bn_eps, rng)
        self.conv1 = SpectralConv2d(in_channels, out_channels, 3, rng)
        self.bn2 = ClassBatchNorm2d(out_channels, config.num_classes, config.bn_eps, rng)
        self.conv2 = SpectralConv2d(out_channels, out_channels, 3, rng)
        self.shortcut = SpectralConv2d(in_channels, out_channels, 1, rng)

    def forward(self, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv1(upsample(F.relu(self.bn1(maps, labels))))
        hidden = self.conv2(F.relu(self.bn2(hidden, labels)))
        return hidden + upsample(self.shortcut(maps))


class OutputLayer(nn.Module):
    """BN with one gain and bias for all classes - ReLU - conv - tanh."""

    def __init__(self, channels: int, eps: float, rng: torch.Generator) -> None:
        super().__init__()
        self.bn = BatchStatistics(channels, eps)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.conv = SpectralConv2d(channels, 3, 3, rng)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.bn.normalize(maps)
        maps = torch.addcmul(self.bias.to(maps.dtype)[:, None, None], maps, self.gain.to(maps.dtype)[:, None, None])
        return torch.tanh(self.conv(F.relu(maps)))


class BigGAN(nn.Module):
    """A class-conditional generator, in the form it is trained in.

    Called as `generator(latents, labels)`: latents `[N, latent_dim]` float, labels `[N]` int64; returns signed
    images `[N, 3, H, W]`. In `train()` mode batch norm uses the batch's statistics, so images depend on each
    other; use `inference.fold` for a frozen generator, whose images do not.

    Args:
        config: the shape.
        rng: draws the initial weights, N(0, 0.02); a fixed one by default. The global RNG is not touched.
    """

    def __init__(self, config: BigGANConfig, *, rng: torch.Generator | None = None) -> None:
        super().__init__()
        rng = rng or torch.Generator().manual_seed(0)
        self.config = config
        self.latent_dim = config.latent_dim
        self.num_classes = config.num_classes
        self.image_shape = config.image_shape
        widths = config.channels
        self.linear = SpectralLinear(config.latent_dim, widths[0] * config.bottom**2, rng)
        self.blocks = nn.ModuleList(UpBlock(before, after, config, rng) for before, after in pairwise(widths))
        self.output = OutputLayer(widths[-1], config.bn_eps, rng)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        maps = first_map(self.linear(latents), self.config)
        for block in self.blocks:
            maps = block(maps, labels)
        images: torch.Tensor = self.output(maps)
        return images


def first_map(features: torch.Tensor, config: BigGANConfig) -> torch.Tensor:
    """The linear layer's output `[N, channels * 16]` as channels-last maps `[N, channels, 4, 4]`."""
    maps = features.view(len(features), config.channels[0], config.bottom, config.bottom)
    return maps.contiguous(memory_format=torch.channels_last)


def upsample(maps: torch.Tensor) -> torch.Tensor:
    """Nearest neighbour, twice the side."""
    return F.interpolate(maps, scale_factor=2.0, mode="nearest")


def _normal_02(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=rng) * 0.02
