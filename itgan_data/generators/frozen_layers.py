"""Layers of a frozen generator: plain weights, class batch norm as tables, upsampling by parity convolutions."""

import torch
import torch.nn.functional as F
from torch import nn

from .biggan import BigGANConfig, attend, attention_widths, upsample


class ClassAffine(nn.Module):
    """A gain and a bias for each class and channel: class batch norm on stored statistics, folded.

    In a hierarchical generator the image's chunk of latents moves both: `[chunk, channels]` weights each.
    """

    def __init__(self, num_classes: int, channels: int, chunk: int = 0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(num_classes, channels))
        self.bias = nn.Parameter(torch.empty(num_classes, channels))
        self.latent_gain = nn.Parameter(torch.empty(chunk, channels)) if chunk else None
        self.latent_bias = nn.Parameter(torch.empty(chunk, channels)) if chunk else None

    def forward(self, maps: torch.Tensor, labels: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """The gain and bias of each image, then ReLU; `chunk` are its latents `[N, chunk]`, of width 0 if none."""
        gain, bias = self.gain[labels], self.bias[labels]
        if self.latent_gain is not None and self.latent_bias is not None:
            gain, bias = gain + chunk @ self.latent_gain, bias + chunk @ self.latent_bias
        gain = gain[:, :, None, None].to(maps.dtype)  # autocast leaves addcmul alone
        bias = bias[:, :, None, None].to(maps.dtype)
        return torch.addcmul(bias, maps, gain).relu_()


class Conv2d(nn.Module):
    """A plain convolution of stride 1 that keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return F.conv2d(maps, self.weight, self.bias, padding=self.weight.shape[2] // 2)


class BilinearConv2d(Conv2d):
    """Bilinear upsampling and a convolution. Every parity sees 3x3 inputs here, so there is nothing to save."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(upsample(maps, "bilinear"))


class NearestConv2d(Conv2d):
    """Nearest upsampling and a 3x3 convolution, as four 2x2 convolutions of the small map.

    An output pixel of each parity sees only 2x2 different inputs, so the weights that meet the same input are summed
    beforehand: 16 multiplications per output pixel instead of 36, with equal results. This happens when a state dict,
    which holds the 3x3 weights alone, is loaded.
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
    """3x3 kernels `[out, in, 3, 3]` as 2x2 kernels `[2, 2, out, in, 2, 2]`, by row and column parity."""
    assert isinstance(conv, NearestConv2d)
    weight = conv.weight.detach()
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # parity, small row, large row
    conv.kernels = torch.einsum("pru,qsv,oiuv->pqoirs", taps, taps, weight)


class FrozenSelfAttention(nn.Module):
    """`SelfAttention` with folded weights; its strength is a factor of the output weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            Conv2d(before, after, 1, bias=False) for before, after in attention_widths(channels)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.output(attend(self.query(maps), self.key(maps), self.value(maps)))
        return maps + gathered


class FrozenUpBlock(nn.Module):
    """`UpBlock` with folded weights; number `number` of its generator."""

    def __init__(self, number: int, config: BigGANConfig) -> None:
        super().__init__()
        before, after = config.channels[number : number + 2]
        chunk = config.latent_widths[number + 1]
        self.nearest = config.upsampling == "nearest"
        self.bn1 = ClassAffine(config.num_classes, before, chunk)
        self.conv1 = NearestConv2d(before, after) if self.nearest else BilinearConv2d(before, after, 3)
        self.bn2 = ClassAffine(config.num_classes, after, chunk)
        self.conv2 = Conv2d(after, after, 3)
        self.shortcut = Conv2d(before, after, 1)
        self.attention = FrozenSelfAttention(after) if number == config.attention_block else None

    def forward(self, maps: torch.Tensor, labels: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv2(self.bn2(self.conv1(self.bn1(maps, labels, chunk)), labels, chunk))
        shortcut: torch.Tensor = self.shortcut(maps)
        if self.nearest:
            batch, channels, height, width = shortcut.shape
            fine = hidden.view(batch, channels, height, 2, width, 2)
            fine += shortcut[:, :, :, None, :, None]  # upsampled as it is read
        else:
            hidden += upsample(shortcut, "bilinear")
        return hidden if self.attention is None else self.attention(hidden)
