"""Learning the context model of codes: gradients through its rounding, then tables by counting."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import draws
from ..config import Above, AtLeast, check
from ..draws import Stream
from ..generators.context import (
    INPUT_UNITS,
    LARGEST,
    MAX_HIDDEN,
    UNITS,
    WEIGHT_UNITS,
    ContextModel,
    ContextShape,
    read_inputs,
)

logger = logging.getLogger(__name__)

_SHARPNESS = 2.0  # of a flag's logit, for steps of an eighth in its table's number
_NARROWEST, _WIDEST = -3.0, 2.5  # logarithms of the spread of the first and the last table


@dataclass(frozen=True, kw_only=True)
class ContextFit:
    """How a context model is learned."""

    steps: Annotated[int, AtLeast(1)] = 2000
    batch_size: Annotated[int, AtLeast(1)] = 128
    """Images an update."""
    lr: Annotated[float, Above(0)] = 4e-3
    """Of Adam; up over the first 50 steps, level for a third, then down to 0."""
    compile: bool = False
    """Through torch.compile: faster from a few hundred steps on, but needs a C++ compiler."""

    def __post_init__(self) -> None:
        check(self)


def fit_context(
    shape: ContextShape,
    codes: torch.Tensor,
    labels: torch.Tensor,
    config: ContextFit,
    *,
    seed: int = 0,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> ContextModel:
    """The context model that codes shortest, of those of a shape.

    Args:
        shape: of the model.
        codes: int8 `[N, K, H, W]`.
        labels: int64 `[N]`.
        config: how it is learned.
        seed: of the initial weights and of the batches.
        progress: called after each update with the number of updates so far and the bytes of an image.

    Raises:
        ValueError: codes of another shape.
    """
    if codes.dtype != torch.int8 or codes.shape[1:] != (shape.channels, *shape.map_size) or len(codes) != len(labels):
        raise ValueError(
            f"codes must be int8 [{len(labels)}, {shape.channels}, {shape.map_size}], got {codes.dtype} "
            f"{list(codes.shape)}"
        )
    with draws.global_rng_seeded(draws.make_seed(seed, stream=Stream.CONTEXT_WEIGHTS)):
        network = _ContextNetwork(shape, codes)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.9, 0.99))
    rng = draws.make_rng(seed, stream=Stream.CONTEXT_BATCHES)
    loss_of: Callable[..., torch.Tensor] = torch.compile(network, dynamic=False) if config.compile else network
    for step in range(config.steps):
        rising, falling = (step + 1) / 50, 1.5 * (1 - step / config.steps)
        optimizer.param_groups[0]["lr"] = config.lr * min(1.0, rising, falling)
        chosen = torch.randint(len(codes), (config.batch_size,), generator=rng)
        loss = loss_of(_inputs(codes[chosen]), codes[chosen].float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(step + 1, loss.detach())
    return ContextModel.counted(shape, network.integers(), codes.numpy(), labels.numpy())


def _inputs(codes: torch.Tensor) -> torch.Tensor:
    """What the network reads, `[N, H, W, 2, K]`, in units of 1."""
    reads = read_inputs(codes.permute(0, 2, 3, 1).contiguous().numpy())
    return torch.from_numpy(reads).permute(1, 2, 3, 0, 4) / INPUT_UNITS


class _RoundedLinear(nn.Linear):
    """A linear layer that computes with the integers it will be stored as; `bias_units` of its bias to one."""

    def __init__(self, inputs: int, outputs: int, bias_units: int) -> None:
        super().__init__(inputs, outputs)
        self.bias_units = bias_units
        nn.init.normal_(self.weight, std=0.5 / math.sqrt(inputs))
        nn.init.zeros_(self.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, _rounded(self.weight, WEIGHT_UNITS), _rounded(self.bias, self.bias_units))


class _ContextNetwork(nn.Module):
    """The float twin of a `ContextModel`: the mean length of the code of an image, in bytes."""

    def __init__(self, shape: ContextShape, codes: torch.Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.read = min(shape.neighbor_channels, shape.channels)
        self.neighbors = _RoundedLinear(8 * self.read, shape.hidden, INPUT_UNITS * WEIGHT_UNITS)
        self.labels = nn.Parameter(torch.zeros(shape.num_classes, shape.hidden))
        self.positions = nn.Parameter(torch.zeros(shape.map_size[0] * shape.map_size[1], shape.hidden))
        self.hidden, self.outputs = nn.ModuleList(), nn.ModuleList()
        spreads = codes[:10_000].float().std(dim=(0, 2, 3))
        for number, (start, width) in enumerate(zip(shape.starts, shape.groups, strict=True)):
            inputs = shape.hidden + 2 * shape.seen(number)
            self.hidden.append(_RoundedLinear(inputs, shape.group_hidden, UNITS * WEIGHT_UNITS))
            output = _RoundedLinear(shape.group_hidden, 2 * width + 1, UNITS * WEIGHT_UNITS)
            nn.init.zeros_(output.weight)
            with torch.no_grad():
                output.bias[width : 2 * width] = (0.55 * spreads[start : start + width] + 0.05).log()
            self.outputs.append(output)

    def forward(self, inputs: torch.Tensor, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        patches = codes.permute(0, 2, 3, 1).flatten(0, 2)
        own = inputs.flatten(0, 2)
        summary = self._summary(inputs, labels)
        bits = codes.new_zeros(())
        for number, (start, width) in enumerate(zip(self.shape.starts, self.shape.groups, strict=True)):
            seen = own[..., : self.shape.seen(number)].flatten(1)
            hidden = _rounded_hidden(self.hidden[number](torch.cat([summary, seen], dim=1)))
            mean, log_scale, flag = self.outputs[number](hidden).split([width, width, 1], dim=1)
            values = patches[:, start : start + width]
            lengths = _lengths(values, mean, log_scale).sum(dim=1)
            if number >= self.shape.first_flag:
                nonzero = (values != 0).any(dim=1).to(lengths.dtype)
                bits = bits + F.binary_cross_entropy_with_logits(_SHARPNESS * flag[:, 0], nonzero, reduction="sum")
                lengths = lengths * nonzero
            bits = bits + lengths.sum()
        return bits / (math.log(2) * 8 * len(codes))

    def _summary(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the neighbours of each patch say, `[N * H * W, hidden]`."""
        read = inputs[..., : self.read].flatten(3)
        rows, columns = self.shape.map_size
        padded = F.pad(read, (0, 0, 1, 1, 1, 0))
        left, above = padded[:, 1:, :columns], padded[:, :rows, 1 : columns + 1]
        around = torch.cat([left, above, padded[:, :rows, :columns], padded[:, :rows, 2:]], dim=3)
        units = INPUT_UNITS * WEIGHT_UNITS
        bias = _rounded(self.labels, units)[labels][:, None] + _rounded(self.positions, units)
        sums: torch.Tensor = self.neighbors(around).flatten(1, 2) + bias
        return _rounded_hidden(sums).flatten(0, 1)

    def integers(self) -> dict[str, np.ndarray]:
        """The weights of a `ContextModel`."""
        units = INPUT_UNITS * WEIGHT_UNITS
        arrays = {f"neighbors.{name}": array for name, array in _integers(self.neighbors).items()}
        arrays["labels.bias"] = _whole(self.labels, units).numpy().astype(np.int32)
        arrays["positions.bias"] = _whole(self.positions, units).numpy().astype(np.int32)
        for number, (hidden, output) in enumerate(zip(self.hidden, self.outputs, strict=True)):
            for layer, linear in (("hidden", hidden), ("output", output)):
                assert isinstance(linear, _RoundedLinear)
                arrays |= {f"groups.{number}.{layer}.{name}": array for name, array in _integers(linear).items()}
        return arrays


def _integers(linear: _RoundedLinear) -> dict[str, np.ndarray]:
    return {
        "weight": _whole(linear.weight, WEIGHT_UNITS).numpy().astype(np.int8),
        "bias": _whole(linear.bias, linear.bias_units).numpy().astype(np.int32),
    }


def _whole(values: torch.Tensor, units: int) -> torch.Tensor:
    largest = 127 if units == WEIGHT_UNITS else 2**15 - 1
    return (values.detach() * units).round().clamp(-largest, largest)


def _rounded(values: torch.Tensor, units: int) -> torch.Tensor:
    return values + (_whole(values, units) / units - values).detach()


def _rounded_hidden(sums: torch.Tensor) -> torch.Tensor:
    values = sums.clamp(0, MAX_HIDDEN / UNITS)
    return values + ((values * UNITS).floor() / UNITS - values).detach()


def _lengths(values: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Natural logarithms of one over the probability of integers, under logistics."""
    scale = log_scale.clamp(_NARROWEST, _WIDEST).exp()
    distance = (values - mean).abs().clamp(max=float(4 * LARGEST))
    probability = torch.sigmoid((0.5 - distance) / scale) - torch.sigmoid((-0.5 - distance) / scale)
    tail = torch.log(-torch.expm1(-1 / scale)) - (distance - 0.5).clamp(min=0) / scale  # where the difference vanishes
    return -torch.where(probability > 1e-6, probability.clamp(min=1e-9).log(), tail)
