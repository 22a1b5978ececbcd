"""A frozen generator: spectral norm folded away, class batch norm as tables, upsampling by parity convolutions."""

import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..files import (
    TensorInfo,
    check_sha256,
    load_tensors,
    read_header,
    read_json,
    save_tensors,
    sha256_of,
    write_json,
)
from .biggan import BatchStatistics, BigGAN, BigGANConfig, ClassBatchNorm2d, UpBlock, first_map
from .pixels import Pixels, build_pixels

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "generator.safetensors"
WEIGHTS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_WIDTH = 1 << 16  # classes, latent width, channels: far beyond any BigGAN
_MAX_WIDTHS = 8  # entries of a list of them: 512 px


class ClassAffine(nn.Module):
    """A gain and a bias for each class and channel: class batch norm on stored statistics, folded."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(num_classes, channels))
        self.bias = nn.Parameter(torch.empty(num_classes, channels))

    def forward(self, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The gain and bias of each image's class, then ReLU."""
        gain = self.gain[labels][:, :, None, None].to(maps.dtype)  # autocast leaves addcmul alone
        bias = self.bias[labels][:, :, None, None].to(maps.dtype)
        return torch.addcmul(bias, maps, gain).relu_()


class Conv2d(nn.Module):
    """A plain convolution of stride 1 that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.conv2d(maps, self.weight, self.bias, padding=self.weight.shape[2] // 2)


class UpsampleConv2d(Conv2d):
    """Nearest upsampling and a 3x3 convolution, as four 2x2 convolutions of the small map.

    An output pixel of each parity sees only 2x2 different inputs, so the taps that meet the same input are
    summed beforehand: 16 multiplies an output pixel in place of 36, with equal results. The sums are made once, when
    a state dict is loaded, which holds the 3x3 weight alone.
    """

    kernels: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3)
        self.register_buffer("kernels", torch.empty(2, 2, out_channels, in_channels, 2, 2), persistent=False)
        self.register_load_state_dict_post_hook(_sum_taps)  # type: ignore[no-untyped-call]

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = maps.shape
        padded = F.pad(maps, (1, 1, 1, 1))
        result = torch.empty(
            (batch, len(self.weight), 2 * height, 2 * width),
            dtype=maps.dtype,
            device=maps.device,
            memory_format=torch.channels_last,
        )
        for row in (0, 1):
            for column in (0, 1):
                window = padded[:, :, row : row + height + 1, column : column + width + 1]
                result[:, :, row::2, column::2] = F.conv2d(window, self.kernels[row, column], self.bias)
        return result


def _sum_taps(conv: nn.Module, _keys: object) -> None:
    assert isinstance(conv, UpsampleConv2d)
    conv.kernels = parity_kernels(conv.weight.detach())


def parity_kernels(weight: torch.Tensor) -> torch.Tensor:
    """3x3 kernels `[out, in, 3, 3]` as 2x2 kernels `[2, 2, out, in, 2, 2]`, by row and column parity."""
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # parity, small row, large row
    return torch.einsum("pru,qsv,oiuv->pqoirs", taps, taps, weight)


class FrozenUpBlock(nn.Module):
    """`UpBlock` with folded weights."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int) -> None:
        super().__init__()
        self.bn1 = ClassAffine(num_classes, in_channels)
        self.conv1 = UpsampleConv2d(in_channels, out_channels)
        self.bn2 = ClassAffine(num_classes, out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3)
        self.shortcut = Conv2d(in_channels, out_channels, 1)

    def forward(self, maps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv2(self.bn2(self.conv1(self.bn1(maps, labels)), labels))
        shortcut: torch.Tensor = self.shortcut(maps)
        batch, channels, height, width = shortcut.shape
        fine = hidden.view(batch, channels, height, 2, width, 2)
        fine += shortcut[:, :, :, None, :, None]  # upsampled as it is read
        return hidden


class FrozenBigGAN(nn.Module):
    """A trained BigGAN for use: plain weights, no gradients of its own, every image independent of its batch.

    Called as `generator(latents, labels)`: latents `[N, latent_dim]` float, labels `[N]` int64; returns signed
    images `[N, 3, H, W]` in the dtype of the weights, differentiable in the latents. Made by `fold` or
    `load_generator`; built directly, its weights are uninitialised memory.
    """

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.num_classes = config.num_classes
        self.image_shape = config.image_shape
        widths = config.channels
        self.largest_map = max(width * (config.bottom << number) ** 2 for number, width in enumerate(widths))
        self.linear = nn.Linear(config.latent_dim, widths[0] * config.bottom**2, device="meta")
        default = torch.empty(0).device  # skips the default initialisation, which draws from the global RNG
        self.linear.to_empty(device=default)
        self.blocks = nn.ModuleList(
            FrozenUpBlock(before, after, config.num_classes) for before, after in pairwise(widths)
        )
        self.output_affine = ClassAffine(1, widths[-1])
        self.output_conv = Conv2d(widths[-1], 3, 3)
        self.requires_grad_(False)
        self.eval()

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        maps = first_map(self.linear(latents.to(self.linear.weight.dtype)), self.config)
        for block in self.blocks:
            maps = block(maps, labels)
        return torch.tanh(self.output_conv(self.output_affine(maps, torch.zeros_like(labels))))


@torch.no_grad()
def fold(generator: BigGAN) -> FrozenBigGAN:
    """The frozen form of a trained generator; equal images up to rounding.

    Evaluation-mode spectral norm divides by a constant, and batch norm on stored statistics is a gain and a bias,
    so both become part of plain weights.
    """
    training = generator.training
    generator.eval()
    frozen = FrozenBigGAN(generator.config).to(next(generator.parameters()))
    folded = {"linear.weight": generator.linear.normalized_weight(), "linear.bias": generator.linear.bias}
    for number, block in enumerate(generator.blocks):
        assert isinstance(block, UpBlock)
        for name in ("bn1", "bn2"):
            folded |= _folded_norm(f"blocks.{number}.{name}", getattr(block, name))
        for name in ("conv1", "conv2", "shortcut"):
            conv = getattr(block, name)
            folded[f"blocks.{number}.{name}.weight"] = conv.normalized_weight()
            folded[f"blocks.{number}.{name}.bias"] = conv.bias
    output = generator.output
    gain, bias = _affine(output.bn, output.gain.unsqueeze(0), output.bias.unsqueeze(0))
    folded |= {"output_affine.gain": gain, "output_affine.bias": bias}
    folded |= {"output_conv.weight": output.conv.normalized_weight(), "output_conv.bias": output.conv.bias}
    frozen.load_state_dict(folded)
    generator.train(training)
    return frozen.to(memory_format=torch.channels_last)


def _folded_norm(prefix: str, norm: ClassBatchNorm2d) -> dict[str, torch.Tensor]:
    gain, bias = _affine(norm, 1.0 + norm.gain, norm.bias)
    return {f"{prefix}.gain": gain, f"{prefix}.bias": bias}


def _affine(norm: BatchStatistics, gain: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain and bias that equal normalisation by the stored statistics followed by `gain` and `bias`."""
    gain = gain * (norm.running_var + norm.eps).rsqrt()
    return gain, bias - norm.running_mean * gain


def describe_generator(generator: nn.Module) -> dict[str, Any]:
    """What `build_generator` needs to build it again, besides the weights.

    Raises:
        ValueError: it is neither a `FrozenBigGAN` nor `Pixels`.
    """
    if isinstance(generator, Pixels):
        return {"architecture": "pixels", "arguments": generator.arguments}
    if not isinstance(generator, FrozenBigGAN):
        raise ValueError(f"expected a FrozenBigGAN (see fold) or Pixels, got {type(generator).__name__}")
    return {"architecture": "biggan", "arguments": asdict(generator.config)}


def build_generator(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> FrozenBigGAN | Pixels:
    """The frozen generator of a description and its tensors, in float32.

    Raises:
        ValueError: another architecture, arguments it does not take, or tensors that do not fit.
    """
    generator = _outline(description)
    _check_shapes(generator, {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"generator tensor {name!r} holds values that are not finite")
    generator.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return generator.to(memory_format=torch.channels_last)


def read_generator(folder: Path, config: Mapping[str, Any]) -> FrozenBigGAN | Pixels:
    """The generator of a folder whose `config.json` was read; its file is checked before it takes memory.

    Raises:
        ValueError: a checksum, header or tensor that does not fit the configuration.
    """
    check_sha256(folder / WEIGHTS_FILE, config.get("sha256"))
    _check_shapes(_outline(config["generator"]), read_header(folder / WEIGHTS_FILE))
    return build_generator(config["generator"], load_tensors(folder / WEIGHTS_FILE))


def _outline(description: object) -> FrozenBigGAN | Pixels:
    """A generator without memory for its weights."""
    if not isinstance(description, Mapping):
        raise ValueError(f"the description of a generator must be an object, got {type(description).__name__}")
    if (architecture := description.get("architecture")) == "pixels":
        return build_pixels(description.get("arguments"))
    if architecture != "biggan":
        raise ValueError(f"unknown architecture {reprlib.repr(architecture)}; expected 'biggan' or 'pixels'")
    if problem := _problem(description.get("arguments")):
        raise ValueError(f"the arguments of the generator are not those of a BigGAN ({problem})")
    with torch.device("meta"):
        return FrozenBigGAN(BigGANConfig(**description["arguments"]))


def _problem(arguments: object) -> str | None:
    """What keeps JSON values from being the arguments of a `BigGANConfig` of a reasonable size."""
    if not isinstance(arguments, Mapping):
        return f"expected an object, got {type(arguments).__name__}"
    known = {field.name: type(field.default) for field in fields(BigGANConfig)}
    for name, value in arguments.items():
        if name not in known:
            return f"unknown: {reprlib.repr(name)}"
        values = value if isinstance(value, (list, tuple)) else (value,)
        item = int if known[name] is tuple else known[name]
        if (known[name] is tuple) != (values is value) or any(type(entry) is not item for entry in values):
            return f"{name} must be {'a list of int' if known[name] is tuple else item.__name__}"
        if len(values) > _MAX_WIDTHS or (item is int and max(values, default=0) > _MAX_WIDTH):
            return f"{name} must be at most {_MAX_WIDTH}, a list have at most {_MAX_WIDTHS} entries"
    return None


def _check_shapes(generator: nn.Module, tensors: Mapping[str, TensorInfo]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        got = tensors[name].shape if name in tensors else None
        if got != expected.get(name):
            raise ValueError(f"generator tensor {name[:80]!r}: expected shape {expected.get(name)}, got {got}")
        if (dtype := tensors[name].dtype) not in WEIGHTS_DTYPES:
            raise ValueError(f"generator tensor {name!r}: expected one of {WEIGHTS_DTYPES}, got {dtype}")


def save_generator(
    folder: str | os.PathLike[str], generator: FrozenBigGAN, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write `generator.safetensors`, then `config.json` with its description and checksum."""
    folder = Path(folder)
    save_tensors(folder / WEIGHTS_FILE, {k: v.to(dtype) for k, v in generator.state_dict().items()})
    checksum = {WEIGHTS_FILE: sha256_of(folder / WEIGHTS_FILE)}
    write_json(folder / CONFIG_FILE, {"generator": describe_generator(generator), "sha256": checksum})


def load_generator(path: str | os.PathLike[str]) -> FrozenBigGAN | Pixels:
    """Read a frozen generator from a folder: what `GeneratorTrainer` wrote, or a bundle.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the weights do not fit their description.
    """
    folder = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; expected a bundle or a trained generator")
    config = read_json(folder / CONFIG_FILE)
    if "generator" not in config:
        raise ValueError(f"{folder / CONFIG_FILE} has no key 'generator'; expected a bundle or a trained generator")
    return read_generator(folder, config)
