"""A trained BigGAN for use: spectral and batch norm folded into plain weights."""

import torch
from torch import nn

from .biggan import BatchStatistics, BigGAN, BigGANConfig, ClassBatchNorm2d, ConditionBatchNorm2d, UpBlock, first_map
from .contract import ImageGenerator
from .frozen_layers import ClassAffine, Conv2d, FrozenUpBlock
from .spectral import SpectralConv2d, SpectralNorm


class FrozenBigGAN(ImageGenerator):
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
        maps = [width * (config.bottom << number) ** 2 for number, width in enumerate(widths)]
        self.largest_map = max(*maps, config.attention_size**4 // 4)  # every pixel's weights of a quarter of the pixels
        self.linear = nn.Linear(config.latent_widths[0], widths[0] * config.bottom**2, device="meta")
        default = torch.empty(0).device  # skips the default initialisation, which draws from the global RNG
        self.linear.to_empty(device=default)
        self.blocks = nn.ModuleList(FrozenUpBlock(number, config) for number in range(len(widths) - 1))
        self.output_affine = ClassAffine(1, widths[-1])
        self.output_conv = Conv2d(widths[-1], 3, 3)
        self.requires_grad_(False)
        self.eval()

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first, *chunks = torch.split(latents.to(self.linear.weight.dtype), self.config.latent_widths, dim=1)
        maps = first_map(self.linear(first), self.config)
        for block, chunk in zip(self.blocks, chunks, strict=True):
            maps = block(maps, labels, chunk)
        return torch.tanh(self.output_conv(self.output_affine(maps, torch.zeros_like(labels), latents)))


@torch.no_grad()
def fold(generator: BigGAN) -> FrozenBigGAN:
    """Fold a trained generator into its frozen form, which makes equal images up to rounding.

    Evaluation-mode spectral norm divides by a constant, and batch norm on stored statistics is a gain and a bias,
    so both become part of plain weights. A shared embedding becomes part of every batch norm's own tables.
    """
    training = generator.training
    generator.eval()
    frozen = FrozenBigGAN(generator.config).to(next(generator.parameters()))
    folded = _folded_layer("linear", generator.linear)
    for number, block in enumerate(generator.blocks):
        assert isinstance(block, UpBlock)
        prefix = f"blocks.{number}"
        for name in ("bn1", "bn2"):
            folded |= _folded_norm(f"{prefix}.{name}", getattr(block, name), generator.shared)
        for name, module in block.named_modules():
            if isinstance(module, SpectralConv2d):
                folded |= _folded_layer(f"{prefix}.{name}", module)
        if block.attention is not None:
            name = f"{prefix}.attention.output.weight"
            folded[name] = block.attention.strength * folded[name]
    output = generator.output
    gain, bias = _affine(output.bn, output.gain.unsqueeze(0), output.bias.unsqueeze(0))
    folded |= {"output_affine.gain": gain, "output_affine.bias": bias}
    folded |= _folded_layer("output_conv", output.conv)
    frozen.load_state_dict(folded)
    generator.train(training)
    return frozen.to(memory_format=torch.channels_last)


def _folded_layer(name: str, layer: SpectralNorm) -> dict[str, torch.Tensor]:
    weight = {f"{name}.weight": layer.normalized_weight()}
    return weight if layer.bias is None else weight | {f"{name}.bias": layer.bias}


def _folded_norm(
    name: str, norm: ClassBatchNorm2d | ConditionBatchNorm2d, shared: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    if isinstance(norm, ClassBatchNorm2d):
        gain, bias = _affine(norm, 1.0 + norm.gain, norm.bias)
        return {f"{name}.gain": gain, f"{name}.bias": bias}
    assert shared is not None
    gains, biases = norm.gain.normalized_weight().t(), norm.bias.normalized_weight().t()
    width = shared.shape[1]  # rows of the shared embedding; the rows of the chunk of latents follow
    gain, bias = _affine(norm, 1.0 + shared @ gains[:width], shared @ biases[:width])
    folded = {f"{name}.gain": gain, f"{name}.bias": bias}
    if len(gains) > width:
        gain, bias = _affine(norm, gains[width:], biases[width:])
        folded |= {f"{name}.latent_gain": gain, f"{name}.latent_bias": bias}
    return folded


def _affine(norm: BatchStatistics, gain: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain and bias that equal normalisation by the stored statistics followed by `gain` and `bias`."""
    gain = gain * (norm.running_var + norm.eps).rsqrt()
    return gain, bias - norm.running_mean * gain
