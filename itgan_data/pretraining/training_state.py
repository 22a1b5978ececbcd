"""What training changes: the two networks, their optimisers, and the moving average of the generator."""

import copy

import torch
from torch import nn

from .. import draws
from ..draws import Stream
from ..generators.biggan import BigGAN
from ..generators.spectral import SpectralNorm
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
        betas = (config.beta1, config.beta2)
        self.generator_optimizer = _adam(self.generator, config.lr_generator, betas)
        self.discriminator_optimizer = _adam(self.discriminator, config.lr_discriminator, betas)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Move the average towards the generator, buffers and all; faster in the first steps."""
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        pairs = zip(tensors_of(self.average), tensors_of(self.generator), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)

    def power_iterations(self) -> list[torch.Tensor]:
        """The vectors that spectral norms have found so far; they share memory with the networks."""
        return [layer.u for layer in self._spectral_layers() if layer.u is not None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name; they share memory with the state."""
        modules = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        tensors = {
            f"{prefix}.{name}": tensor.detach()
            for prefix, module in modules.items()
            for name, tensor in module.state_dict().items()
        }
        optimizers = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
        for prefix, optimizer in optimizers.items():
            for index, parameter_state in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.adam.{index}.{key}": value for key, value in parameter_state.items()}
        return tensors

    def _spectral_layers(self) -> list[SpectralNorm]:
        modules = [*self.generator.modules(), *self.discriminator.modules()]
        return [module for module in modules if isinstance(module, SpectralNorm)]


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def _adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """An Adam that has not stepped yet but has the tensors of its state, so that a checkpoint can fill them."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, betas=betas, eps=1e-6)
    for parameter in module.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer
