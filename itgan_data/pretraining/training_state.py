"""The state of GAN training: the two networks, their optimisers, and the moving average of the generator."""

import copy
from functools import partial

import torch
from torch import nn

from .. import draws
from ..draws import Stream
from ..generators.biggan import BigGAN
from ..generators.spectral import SpectralNorm
from ..running.training import prefixed, training_tensors
from .config import GeneratorTrainerConfig
from .discriminator import ProjectionDiscriminator


class TrainingState:
    """Generator, discriminator, an Adam for each, and the moving average, on `device`."""

    def __init__(self, config: GeneratorTrainerConfig, device: torch.device) -> None:
        self.ema_decay = config.ema_decay
        rng = draws.make_rng(config.seed, stream=Stream.GAN_WEIGHTS)
        self.generator = BigGAN(config.generator, rng=rng)
        self.discriminator = ProjectionDiscriminator(
            config.discriminator_channels, config.generator.num_classes, config.generator.image_shape[1], rng
        )
        if config.initialization == "orthogonal":
            for layer in self._spectral_layers():
                nn.init.orthogonal_(layer.weight, generator=rng)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        for module in (self.generator, self.discriminator, self.average):
            module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        adam = partial(torch.optim.Adam, betas=(config.beta1, config.beta2), eps=1e-6)
        self.generator_optimizer = adam(self.generator.parameters(), lr=config.lr_generator)
        self.discriminator_optimizer = adam(self.discriminator.parameters(), lr=config.lr_discriminator)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the average towards the generator, buffers and all; faster in the first steps."""
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        pairs = zip(tensors_of(self.average), tensors_of(self.generator), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)

    def power_iterations(self) -> list[torch.Tensor]:
        """The vectors of all power iterations so far; they share memory with the networks."""
        return [layer.u for layer in self._spectral_layers() if layer.u is not None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; they share memory with the state."""
        return {
            **prefixed("generator", training_tensors(self.generator, self.generator_optimizer)),
            **prefixed("discriminator", training_tensors(self.discriminator, self.discriminator_optimizer)),
            **prefixed("average", self.average.state_dict()),
        }

    def _spectral_layers(self) -> list[SpectralNorm]:
        modules = [*self.generator.modules(), *self.discriminator.modules()]
        return [module for module in modules if isinstance(module, SpectralNorm)]


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
