"""What the training of a codec changes, and where it starts."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from .. import draws
from ..draws import Stream
from ..generators.codec import Codec
from ..images import LabeledImages, unit_to_signed
from .codec_config import CodecTrainerConfig
from .rate import RatePrior

_PATCHES_MEASURED = 10_000  # images whose patches the transform is found from


class CodecState:
    """Codec, prior, their optimiser, and the moving averages of both, on `device`."""

    def __init__(self, config: CodecTrainerConfig, images: LabeledImages, device: torch.device) -> None:
        self.config = config
        with draws.global_rng_seeded(draws.make_seed(config.seed, stream=Stream.CODEC_WEIGHTS)):
            self.codec = Codec(config.codec)
            spreads = start_from_components(self.codec, images, step_size=config.step_size)
            self.prior = RatePrior(config.codec, spreads)
        for module in (self.codec, self.prior):
            module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average_codec = copy.deepcopy(self.codec).requires_grad_(False).eval()
        self.average_prior = copy.deepcopy(self.prior).requires_grad_(False).eval()
        encoder, decoder = self.codec.encoder, self.codec.decoder
        assert encoder is not None
        transforms = [*encoder.transform.parameters(), *decoder.transform.parameters()]
        known = {id(parameter) for parameter in transforms}
        networks = [parameter for parameter in self.codec.parameters() if id(parameter) not in known]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": transforms, "share": 0.15},
                {"params": networks, "share": 1.0},
                {"params": list(self.prior.parameters()), "share": 1.5},
            ],
            lr=config.lr,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        for parameter in self.learned():  # so that a checkpoint can fill the moments
            self.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def learned(self) -> list[nn.Parameter]:
        """All that the optimiser changes."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def freeze_encoder(self) -> None:
        """From here on the encoder stays at its moving average, and the decoder computes with rounded weights."""
        encoder, average = self.codec.encoder, self.average_codec.encoder
        assert encoder is not None
        assert average is not None
        encoder.load_state_dict(average.state_dict())
        encoder.requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.grad = None
        for codec in (self.codec, self.average_codec):
            codec.round_weights(self.config.steps_per_deviation)
        steps = dict(self.average_codec.named_buffers())
        for name, buffer in self.codec.named_buffers():
            buffer.copy_(steps[name])

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the averages towards codec and prior; faster in the first steps."""
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        pairs = ((self.average_codec, self.codec), (self.average_prior, self.prior))
        for average, current in pairs:
            torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; they share memory with the state."""
        modules = {
            "codec": self.codec,
            "prior": self.prior,
            "average_codec": self.average_codec,
            "average_prior": self.average_prior,
        }
        tensors = {
            f"{prefix}.{name}": tensor.detach()
            for prefix, module in modules.items()
            for name, tensor in module.state_dict().items()
        }
        for number, parameter in enumerate(self.learned()):
            tensors |= {f"adam.{number}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors


@torch.no_grad()
def start_from_components(codec: Codec, images: LabeledImages, *, step_size: float) -> torch.Tensor:
    """Make both transforms the principal components of patches, and corrections zero.

    Args:
        codec: with its encoder.
        images: real ones.
        step_size: how much of an orthonormal coefficient becomes 1.

    Returns:
        The standard deviation `[channels]` of the coefficients.
    """
    encoder, decoder = codec.encoder, codec.decoder
    assert encoder is not None
    every = max(len(images) // _PATCHES_MEASURED, 1)
    unit_images, _ = images.unit_batch(torch.arange(0, len(images), every), 0)
    patches = F.pixel_unshuffle(unit_to_signed(unit_images.cpu()), 8).permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = patches.mean(dim=0)
    variances, components = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    first = components.flip(1)[:, : codec.config.channels]
    encoder.transform.weight.copy_((first.T / step_size)[:, :, None, None])
    encoder.transform.bias.copy_(-(mean @ first) / step_size)  # type: ignore[union-attr]
    decoder.transform.weight.copy_((first * step_size)[:, :, None, None])
    decoder.transform.bias.copy_(mean)  # type: ignore[union-attr]
    for layer in (encoder.output, decoder.output, encoder.rate, decoder.rate):
        layer.weight.zero_()
        layer.bias.zero_()  # type: ignore[union-attr]
    spreads: torch.Tensor = variances.flip(0)[: codec.config.channels].clamp(min=1e-12).sqrt() / step_size
    return spreads.float()
