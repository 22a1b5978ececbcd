"""How many bits the codes of images take: a network that predicts each from its neighbours, in floats, for training.

It has the reach of a `ContextModel`, which is learned when the codes are final, and gradients.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..generators.codec import CodecConfig

_CAUSAL = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0))  # patches decoded before the middle one
_NARROWEST, _WIDEST = -4.0, 5.0  # logarithms of a scale
_LARGEST_READ = 20.0  # of a value
_ROOT = 1e-6  # keeps the root of a magnitude differentiable


def default_groups(channels: int) -> tuple[int, ...]:
    """Channels coded at a time: few at first, where most bits are."""
    groups, left = [], channels
    for width in (3, 5, 8, 8, 8, *[16] * channels):
        if left > 0:
            groups.append(min(width, left))
            left -= width
    return tuple(groups)


class RatePrior(nn.Module):
    """Mean and log scale, each `[N, K, H, W]`, of integers from what is decoded before them.

    Called with values as the decoder takes them (integers times `step`) `[N, K, H, W]`, labels `[N]` and the
    logarithm of the step `[N]`.
    """

    mask: torch.Tensor

    def __init__(self, config: CodecConfig, spreads: torch.Tensor, *, width: int = 64) -> None:
        super().__init__()
        self.groups = default_groups(config.channels)
        self.neighbors = nn.Conv2d(2 * config.channels, width, 3, padding=1)
        self.register_buffer("mask", torch.tensor(_CAUSAL))
        self.labels = nn.Embedding(config.num_classes, width)
        self.positions = nn.Parameter(torch.zeros(width, *config.map_size))
        self.rate = nn.Linear(1, width)
        self.hidden, self.outputs = nn.ModuleList(), nn.ModuleList()
        start = 0
        for group in self.groups:
            self.hidden.append(nn.Conv2d(width + 2 * start, width, 1))
            output = nn.Conv2d(width, 2 * group, 1)
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)  # type: ignore[arg-type]
            self.outputs.append(output)
            start += group
        nn.init.normal_(self.labels.weight, std=0.1)
        self.log_scales = nn.Parameter((0.45 * spreads).log().clamp(-2, _WIDEST))

    def forward(
        self, values: torch.Tensor, labels: torch.Tensor, log_step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        magnitudes = values.abs().clamp(max=_LARGEST_READ)
        levels, roots = values.clamp(-_LARGEST_READ, _LARGEST_READ) / 2, (magnitudes + _ROOT).sqrt()
        around = F.conv2d(
            torch.cat([levels, roots], dim=1), self.neighbors.weight * self.mask, self.neighbors.bias, padding=1
        )
        offset = (self.labels(labels) + self.rate(log_step[:, None]))[:, :, None, None] + self.positions
        summary = F.relu(around + offset)
        means, log_scales, start = [], [], 0
        for group, hidden, output in zip(self.groups, self.hidden, self.outputs, strict=True):
            inputs = torch.cat([summary, levels[:, :start], roots[:, :start]], dim=1)
            mean, log_scale = output(F.relu(hidden(inputs))).split(group, dim=1)
            means.append(mean)
            log_scales.append(log_scale)
            start += group
        by_step = log_step[:, None, None, None]
        mean = torch.cat(means, dim=1) * (-by_step).exp()
        return mean, torch.cat(log_scales, dim=1) + self.log_scales[:, None, None] - by_step


def bits(values: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Bits of each value, in float32, under a logistic distribution over intervals of width 1."""
    scale = log_scale.float().clamp(_NARROWEST, _WIDEST).exp()
    distance = (values - mean.float()).abs()
    probability = torch.sigmoid((0.5 - distance) / scale) - torch.sigmoid((-0.5 - distance) / scale)
    tail = torch.log(-torch.expm1(-1 / scale)) - (distance - 0.5).clamp(min=0) / scale  # where the difference vanishes
    return -torch.where(probability > 1e-6, probability.clamp(min=1e-9).log(), tail) / math.log(2)
