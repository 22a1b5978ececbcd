"""BigGAN in its training form: spectral norm, batch statistics, class-conditional batch norm.

One class with options: the generators of different papers and code bases differ in `BigGANConfig` alone.

Source: Brock, Donahue and Simonyan, "Large scale GAN training for high fidelity natural image synthesis", 2019;
the default layout for 32 px is the one that DiffAugment (Zhao et al., 2020) trains on CIFAR.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..config import Above, AtLeast, AtMost, check
from .spectral import SpectralConv2d, SpectralLinear, normal_02

MAX_WIDTH = 1 << 16  # classes, latent width, channels: far beyond any BigGAN
MAX_BLOCKS = 7  # 512 px
MAX_ATTENTION_SIZE = 64  # every pixel attends to a quarter of them: 4 M numbers per image

Upsampling = Literal["nearest", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class BigGANConfig:
    """The shape of a generator. The defaults are the reference's for CIFAR-10 (4.3 M parameters)."""

    num_classes: Annotated[int, AtLeast(1), AtMost(MAX_WIDTH)] = 10
    latent_dim: Annotated[int, AtLeast(1), AtMost(MAX_WIDTH)] = 128
    channels: tuple[Annotated[int, AtLeast(1), AtMost(MAX_WIDTH)], ...] = (256, 256, 256, 256)
    """Channels of the 4 px map, then after each block; every block doubles the side (four entries: 32 px)."""
    bn_eps: Annotated[float, Above(0)] = 1e-5
    shared_dim: Annotated[int, AtLeast(0), AtMost(MAX_WIDTH)] = 0
    """Width of the class embedding that all batch norms share; 0: each has tables of its own."""
    hierarchical: bool = False
    """Split the latent into equal chunks: one for the first map, and one per block, next to the shared embedding."""
    attention_size: int = 0
    """Side in pixels of the block output that self-attention follows; 0: none."""
    upsampling: Upsampling = "nearest"
    spectral_norm: bool = True
    """Divide every weight by its largest singular value; in a frozen generator this is done already."""
    bottom: ClassVar[int] = 4
    """Side of the first map in pixels."""

    def __post_init__(self) -> None:
        check(self)
        if not 2 <= len(self.channels) <= MAX_BLOCKS + 1:
            raise ValueError(f"channels must have 2 to {MAX_BLOCKS + 1} entries, got {len(self.channels)}")
        if self.hierarchical and not self.shared_dim:
            raise ValueError("hierarchical latents join a shared embedding; set shared_dim, or hierarchical=False")
        if self.hierarchical and self.latent_dim % len(self.channels):
            raise ValueError(
                f"hierarchical latents are split into {len(self.channels)} equal chunks; "
                f"latent_dim must be a multiple of that, got {self.latent_dim}"
            )
        sides = {self.bottom << number: width for number, width in enumerate(self.channels) if number}
        allowed = [side for side, width in sides.items() if width >= 8 and side <= MAX_ATTENTION_SIZE]
        if self.attention_size not in (0, *allowed):
            raise ValueError(
                f"attention_size must be 0, or the side of a block's output of at least 8 channels and at most "
                f"{MAX_ATTENTION_SIZE} px (here one of {allowed}); got {self.attention_size}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of the images."""
        side = self.bottom << len(self.channels) - 1
        return 3, side, side

    @property
    def latent_widths(self) -> list[int]:
        """How much of the latent goes to the first map, then to each block."""
        count = len(self.channels)
        return [self.latent_dim // count] * count if self.hierarchical else [self.latent_dim] + [0] * (count - 1)

    @property
    def attention_block(self) -> int | None:
        """Number of the block that self-attention follows."""
        return (self.attention_size // self.bottom).bit_length() - 2 if self.attention_size else None


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
        self.gain = nn.Parameter(normal_02((num_classes, channels), rng))
        self.bias = nn.Parameter(normal_02((num_classes, channels), rng))

    def forward(self, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        gain, bias = F.embedding(labels, self.gain), F.embedding(labels, self.bias)
        return _scale(self.normalize(maps), 1.0 + gain, bias)


class ConditionBatchNorm2d(BatchStatistics):
    """Batch normalisation whose gain (1 + a linear layer) and bias come from a vector `[N, width]` of each image."""

    def __init__(self, channels: int, width: int, config: BigGANConfig, rng: torch.Generator) -> None:
        super().__init__(channels, config.bn_eps)
        self.gain = SpectralLinear(width, channels, rng, bias=False, spectral=config.spectral_norm)
        self.bias = SpectralLinear(width, channels, rng, bias=False, spectral=config.spectral_norm)

    def forward(self, maps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return _scale(self.normalize(maps), 1.0 + self.gain(condition), self.bias(condition))


class SelfAttention(nn.Module):
    """Maps plus `strength` (0 at first) times what every pixel gathers from all others.

    Source: Zhang et al., "Self-attention generative adversarial networks", 2019, Eq. 1-3, keys and values pooled.
    """

    def __init__(self, channels: int, config: BigGANConfig, rng: torch.Generator) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            SpectralConv2d(before, after, 1, rng, bias=False, spectral=config.spectral_norm)
            for before, after in attention_widths(channels)
        )
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.output(attend(self.query(maps), self.key(maps), self.value(maps)))
        return maps + self.strength.to(maps.dtype) * gathered


class UpBlock(nn.Module):
    """BN - ReLU - up - conv - BN - ReLU - conv, plus up - conv 1x1 of the input; then self-attention, if configured.

    The batch norms see labels `[N]`, or vectors `[N, width]` with a shared embedding (see `BigGAN.condition`). The 1x1
    convolution commutes with upsampling, so the shortcut is computed on the small map.
    """

    def __init__(self, number: int, config: BigGANConfig, rng: torch.Generator) -> None:
        super().__init__()
        before, after = config.channels[number : number + 2]
        self.upsampling = config.upsampling
        self.bn1 = self._norm(before, config, rng)
        self.conv1 = SpectralConv2d(before, after, 3, rng, spectral=config.spectral_norm)
        self.bn2 = self._norm(after, config, rng)
        self.conv2 = SpectralConv2d(after, after, 3, rng, spectral=config.spectral_norm)
        self.shortcut = SpectralConv2d(before, after, 1, rng, spectral=config.spectral_norm)
        self.attention = SelfAttention(after, config, rng) if number == config.attention_block else None

    @staticmethod
    def _norm(channels: int, config: BigGANConfig, rng: torch.Generator) -> ClassBatchNorm2d | ConditionBatchNorm2d:
        if config.shared_dim:
            return ConditionBatchNorm2d(channels, config.shared_dim + config.latent_widths[-1], config, rng)
        return ClassBatchNorm2d(channels, config.num_classes, config.bn_eps, rng)

    def forward(self, maps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv1(upsample(F.relu(self.bn1(maps, condition)), self.upsampling))
        hidden = self.conv2(F.relu(self.bn2(hidden, condition)))
        hidden = hidden + upsample(self.shortcut(maps), self.upsampling)
        return hidden if self.attention is None else self.attention(hidden)


class OutputLayer(nn.Module):
    """BN with one gain and bias for all classes - ReLU - conv - tanh."""

    def __init__(self, config: BigGANConfig, rng: torch.Generator) -> None:
        super().__init__()
        channels = config.channels[-1]
        self.bn = BatchStatistics(channels, config.bn_eps)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.conv = SpectralConv2d(channels, 3, 3, rng, spectral=config.spectral_norm)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = _scale(self.bn.normalize(maps), self.gain.unsqueeze(0), self.bias.unsqueeze(0))
        return torch.tanh(self.conv(F.relu(maps)))


class BigGAN(nn.Module):
    """A class-conditional generator, in the form it is trained in.

    Called as `generator(latents, labels)`: latents `[N, latent_dim]` float, labels `[N]` int64; returns signed
    images `[N, 3, H, W]`. In `train()` mode batch norm uses the batch's statistics, so images depend on each
    other; use `frozen.fold` for a frozen generator, whose images do not.

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
        first_numbers = config.channels[0] * config.bottom**2
        self.linear = SpectralLinear(config.latent_widths[0], first_numbers, rng, spectral=config.spectral_norm)
        self.shared = (
            nn.Parameter(normal_02((config.num_classes, config.shared_dim), rng)) if config.shared_dim else None
        )
        self.blocks = nn.ModuleList(UpBlock(number, config, rng) for number in range(len(config.channels) - 1))
        self.output = OutputLayer(config, rng)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first, *others = torch.split(latents, self.config.latent_widths, dim=1)
        maps = first_map(self.linear(first), self.config)
        for block, chunk in zip(self.blocks, others, strict=True):
            maps = block(maps, self.condition(labels, chunk))
        images: torch.Tensor = self.output(maps)
        return images

    def condition(self, labels: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """What a block's batch norms see: labels, or their shared embedding with the block's latents."""
        return labels if self.shared is None else torch.cat([F.embedding(labels, self.shared), chunk], dim=1)


def first_map(features: torch.Tensor, config: BigGANConfig) -> torch.Tensor:
    """The linear layer's output `[N, channels * 16]` as channels-last maps `[N, channels, 4, 4]`."""
    maps = features.view(len(features), config.channels[0], config.bottom, config.bottom)
    return maps.contiguous(memory_format=torch.channels_last)


def upsample(maps: torch.Tensor, mode: Upsampling = "nearest") -> torch.Tensor:
    """Twice the side."""
    return F.interpolate(maps, scale_factor=2.0, mode=mode)


def attention_widths(channels: int) -> tuple[tuple[int, int], ...]:
    """Channels into and out of the query, key, value and output of self-attention."""
    return (channels, channels // 8), (channels, channels // 8), (channels, channels // 2), (channels // 2, channels)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Values `[N, V, H, W]` gathered by the softmax of query times key, both `[N, K, H, W]`.

    Keys and values are pooled to half the side first; the products are not scaled.
    """
    rows = [maps.flatten(2).mT for maps in (query, F.max_pool2d(key, 2), F.max_pool2d(value, 2))]
    gathered = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], scale=1.0)
    return gathered.mT.reshape(value.shape)


def _scale(maps: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`gain * maps + bias`, with gains and biases `[N, C]` per image, or `[1, C]` for all."""
    return torch.addcmul(bias.to(maps.dtype)[:, :, None, None], maps, gain.to(maps.dtype)[:, :, None, None])
