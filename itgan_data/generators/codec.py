"""A generator that was trained to decode: every image has a latent of integers, and few bits.

The latent is a map of patches, one vector of channels for each 8 x 8 pixels. An orthonormal transform of patches, from
the principal components of the training images, turns it to pixels; small residual networks, which begin at zero,
learn on both sides what a transform cannot.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..config import Above, AtLeast, AtMost, Between, check
from ..images import unit_to_signed
from .contract import ImageGenerator

MAX_CODE = 127
"""Codes are integers of -127 to 127."""
_PATCH = 8
_SMALLEST_STEP = 2.0**-14  # of a weight; float16 holds it to ten bits
_MAX_SIZE = 1 << 16  # of a number of classes in a file
Width = Annotated[int, Between(1, 4096)]
Blocks = Annotated[int, Between(0, 64)]
_LARGEST_READ = 3.0  # of a coefficient, where the network reads it; larger ones pass by in the transform


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of a `Codec`."""

    num_classes: Annotated[int, Between(1, _MAX_SIZE)]
    image_size: Annotated[int, Between(_PATCH, 1024)] = 32
    """Pixels a side; a multiple of 8."""
    image_channels: Annotated[int, Between(1, 4)] = 3
    channels: Annotated[int, AtLeast(1)] = 80
    """Codes of a patch; at most 64 times the channels of an image."""
    decoder_widths: tuple[Width, Width] = (48, 32)
    """Channels of the decoder's maps of a quarter and a half of the side."""
    decoder_blocks: tuple[Blocks, Blocks] = (2, 3)
    """Residual blocks at these sizes."""
    encoder_widths: tuple[Width, Width, Width] = (32, 48, 96)
    """Channels of the encoder's maps of a half, a quarter and an eighth of the side."""
    dead_zone: Annotated[float, Above(0), AtMost(0.5)] = 0.4
    """A value is rounded up from `1 - dead_zone` on: 0.5 is the nearest integer, less favours zeros."""

    def __post_init__(self) -> None:
        check(self)
        if self.image_size % _PATCH:
            raise ValueError(f"image_size must be a multiple of {_PATCH}, got {self.image_size}")
        if self.channels > self.patch_values:
            raise ValueError(
                f"channels must be at most {self.patch_values}, the values of a patch, got {self.channels}"
            )

    @property
    def patch_values(self) -> int:
        """Pixel values of a patch."""
        return self.image_channels * _PATCH**2

    @property
    def map_size(self) -> tuple[int, int]:
        """Patches from top to bottom and from left to right."""
        return self.image_size // _PATCH, self.image_size // _PATCH

    @property
    def latent_dim(self) -> int:
        return self.channels * self.map_size[0] * self.map_size[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_channels, self.image_size, self.image_size


class Codec(ImageGenerator):
    """Decodes latents of integers to images and, where it has its encoder, encodes images.

    Called as `generator(latents, labels)`: latents `[N, latent_dim]`, integers in a float type, in the order of
    `[channels, rows, columns]`; returns signed images `[N, C, H, W]`, differentiable in the latents. Labels do not
    change an image: they help to predict codes only, so that no image leans on its label.

    The codec is one for a range of rates: `step`, a buffer, is the width of a quantisation step.

    Args:
        config: sizes.
        encoder: with an encoder, or a decoder alone.
    """

    step: torch.Tensor

    def __init__(self, config: CodecConfig, *, encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.num_classes = config.num_classes
        self.image_shape = config.image_shape
        self.register_buffer("step", torch.ones(()))
        self.decoder = Decoder(config)
        self.encoder = Encoder(config) if encoder else None

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON values that build it again."""
        return {**asdict(self.config), "encoder": self.encoder is not None}

    @torch.no_grad()
    def round_weights(self, steps_per_deviation: float = 8.0) -> None:
        """Give every weight of the decoder a step, this fraction of the deviation of its output's weights.

        The transform, whose sums pass to the image as they are, gets steps a quarter as wide.
        """
        for name, module in self.decoder.named_modules():
            if isinstance(module, RoundedConv2d):
                fraction = steps_per_deviation * (4 if name == "transform" else 1)
                step = module.weight.flatten(1).std(dim=1) / fraction
                module.weight_step.copy_(step.half().clamp(min=_SMALLEST_STEP).float()[:, None, None, None])

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        codes = latents.to(self.step.dtype).view(-1, self.config.channels, *self.config.map_size)
        images: torch.Tensor = self.decoder(codes * self.step, self.step.log().expand(len(codes)))
        return images.clamp(-1, 1)

    def encode(self, unit_images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The latents `[N, latent_dim]`, integers in float32, of unit images `[N, C, H, W]`.

        Raises:
            ValueError: there is no encoder, or images of another shape.
        """
        if self.encoder is None:
            raise ValueError("this codec has no encoder, so it only decodes; use the one that pretraining wrote")
        if tuple(unit_images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must be [N, {self.image_shape}], got {list(unit_images.shape)}")
        values = self.encoder(unit_to_signed(unit_images), self.step.log().expand(len(unit_images)))
        return quantize(values.float() / self.step, self.config.dead_zone).clamp(-MAX_CODE, MAX_CODE).flatten(1)


def quantize(values: torch.Tensor, dead_zone: float) -> torch.Tensor:
    """Integers near values: magnitudes are rounded up from a fraction of `1 - dead_zone` on."""
    return values.sign() * (values.abs() + dead_zone).floor()


def quantize_straight_through(values: torch.Tensor, dead_zone: float) -> torch.Tensor:
    """`quantize` whose gradient is that of the values, so that training sees the integers that use will see.

    Source: Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons", 2013.
    """
    return values + (quantize(values, dead_zone) - values).detach()


class RoundedConv2d(nn.Conv2d):
    """A convolution whose weights are used as they will be stored: multiples, up to 127, of a step for each output.

    `weight_step` `[out, 1, 1, 1]` is a buffer; where it is 0 a weight is used as it is. Gradients pass rounding.
    """

    weight_step: torch.Tensor

    def __init__(self, inputs: int, outputs: int, size: int, padding: int = 0) -> None:
        super().__init__(inputs, outputs, size, padding=padding)
        self.register_buffer("weight_step", torch.zeros(outputs, 1, 1, 1))

    def multiples(self) -> torch.Tensor:
        """The weights as multiples of their step, integers in a float type; 0 where there is no step."""
        step = torch.where(self.weight_step > 0, self.weight_step, torch.inf)
        return (self.weight / step).round().clamp(-MAX_CODE, MAX_CODE)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        rounded = torch.where(self.weight_step > 0, self.multiples() * self.weight_step, self.weight)
        outputs: torch.Tensor = self._conv_forward(maps, self.weight + (rounded - self.weight).detach(), self.bias)
        return outputs


class ResidualBlock(nn.Module):
    """ReLU - conv 3x3 - ReLU - conv 3x3, added to its input."""

    def __init__(self, width: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = conv(width, width, 3, padding=1)
        self.conv2 = conv(width, width, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = self.conv2(F.relu(self.conv1(F.relu(maps))))
        return maps + inner


def _residual_blocks(width: int, count: int, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, conv) for _ in range(count)))


class Encoder(nn.Module):
    """Signed images and the logarithm of the step `[N]` to coefficients `[N, channels, H / 8, W / 8]`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        half, quarter, eighth = config.encoder_widths
        self.transform = nn.Conv2d(config.patch_values, config.channels, 1)
        self.at_half = nn.Conv2d(4 * config.image_channels, half, 3, padding=1)
        self.at_half_blocks = _residual_blocks(half, 1)
        self.at_quarter = nn.Conv2d(4 * half, quarter, 1)
        self.at_quarter_blocks = _residual_blocks(quarter, 2)
        self.at_eighth = nn.Conv2d(4 * quarter, eighth, 1)
        self.at_eighth_blocks = _residual_blocks(eighth, 1)
        self.output = nn.Conv2d(eighth + config.channels, config.channels, 1)
        self.rate = nn.Linear(1, half)

    def forward(self, images: torch.Tensor, log_step: torch.Tensor) -> torch.Tensor:
        coefficients: torch.Tensor = self.transform(F.pixel_unshuffle(images, _PATCH))
        maps = self.at_half(F.pixel_unshuffle(images, 2)) + self.rate(log_step[:, None])[:, :, None, None]
        maps = self.at_quarter(F.pixel_unshuffle(self.at_half_blocks(maps), 2))
        maps = self.at_eighth(F.pixel_unshuffle(self.at_quarter_blocks(maps), 2))
        maps = F.relu(self.at_eighth_blocks(maps))
        read = coefficients.clamp(-_LARGEST_READ, _LARGEST_READ)
        correction: torch.Tensor = self.output(torch.cat([maps, read], dim=1))
        return coefficients + correction


class Decoder(nn.Module):
    """Coefficients `[N, channels, H / 8, W / 8]` and the logarithm of the step `[N]` to signed images."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        quarter, half = config.decoder_widths
        self.transform = RoundedConv2d(config.channels, config.patch_values, 1)
        self.at_quarter = RoundedConv2d(config.channels, 4 * quarter, 1)
        self.at_quarter_pixels = RoundedConv2d(16 * config.image_channels, quarter, 1)
        self.at_quarter_blocks = _residual_blocks(quarter, config.decoder_blocks[0], RoundedConv2d)
        self.at_half = RoundedConv2d(quarter, 4 * half, 1)
        self.at_half_pixels = RoundedConv2d(4 * config.image_channels, half, 3, padding=1)
        self.at_half_blocks = _residual_blocks(half, config.decoder_blocks[1], RoundedConv2d)
        self.output = RoundedConv2d(half, 4 * config.image_channels, 3, padding=1)
        self.rate = nn.Linear(1, quarter)

    def forward(self, coefficients: torch.Tensor, log_step: torch.Tensor) -> torch.Tensor:
        pixels = F.pixel_shuffle(self.transform(coefficients), _PATCH)
        maps = F.pixel_shuffle(self.at_quarter(coefficients), 2) + self.at_quarter_pixels(F.pixel_unshuffle(pixels, 4))
        maps = self.at_quarter_blocks(maps + self.rate(log_step[:, None])[:, :, None, None])
        maps = F.pixel_shuffle(self.at_half(F.relu(maps)), 2) + self.at_half_pixels(F.pixel_unshuffle(pixels, 2))
        maps = F.relu(self.at_half_blocks(maps))
        return pixels + F.pixel_shuffle(self.output(maps), 2)
