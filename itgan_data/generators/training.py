"""Train a class-conditional generator: hinge loss, projection discriminator, DiffAugment, moving average."""

import copy
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import draws
from ..augmentation import CropFlip, diff_augment
from ..checkpoint import load_checkpoint, save_checkpoint
from ..files import write_atomically
from ..images import image_grid, load_images, signed_to_unit, uint8_to_unit, unit_to_signed
from ..precision import autocast, check_precision
from .biggan import BigGAN, BigGANConfig
from .discriminator import ProjectionDiscriminator, discriminator_hinge, generator_hinge
from .inference import fold, save_generator

logger = logging.getLogger(__name__)

# Streams of `draws`, one a use, so that no two share numbers.
_LATENTS, _LABELS, _AUGMENT, _FLIP, _ORDER = range(5)

# A run may be prolonged, and saved more or less often; its steps stay the same.
_MAY_DIFFER = ("steps", "checkpoint_minutes", "preview_steps")


@dataclass(frozen=True, kw_only=True)
class GeneratorTrainerConfig:
    """How a generator is trained."""

    generator: BigGANConfig = field(default_factory=BigGANConfig)
    discriminator_channels: int = 256
    """Channels of every block of the discriminator."""
    steps: int = 100_000
    """Updates of the generator."""
    batch_size: int = 64
    """Real images, and synthetic ones, an update."""
    discriminator_steps: int = 1
    """Updates of the discriminator for each of the generator."""
    lr_generator: float = 2e-4
    lr_discriminator: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.999
    augmentation: str = "color_crop_cutout"
    """DiffAugment's policy; empty for none."""
    flips: bool = True
    """Whether real images are mirrored at random."""
    ema_decay: float = 0.9999
    """Of the moving average of the generator that is returned; lower in the first steps."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What convolutions compute in; weights and optimisers stay float32."""
    checkpoint_minutes: float = 5.0
    preview_steps: int = 1000
    """Steps between two grids of sample images."""
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.generator, Mapping):  # JSON gives an object
            object.__setattr__(self, "generator", BigGANConfig(**self.generator))
        for name in ("discriminator_channels", "steps", "batch_size", "discriminator_steps", "preview_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr_generator", "lr_discriminator", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        check_precision(self.precision)
        diff_augment(self.augmentation)


class GeneratorTrainer:
    """Trains a `BigGAN` on a real data set, and can be killed and run again at any moment.

    Every random number is a function of (seed, step), so a resumed run ends with the weights of an uninterrupted
    one. `workdir` receives `checkpoint/`, `samples/*.png`, and in the end `generator/`, which `load_generator` reads.

    Args:
        config: how to train.
        real_dataset: anything torchvision-like; read into memory once.
        workdir: where checkpoints and samples go.
        device: `cpu`, `cuda`, ...; by default CUDA where there is one.

    Raises:
        ValueError: the images or classes do not fit the generator, or `workdir` holds a run of another configuration.
    """

    def __init__(
        self,
        config: GeneratorTrainerConfig,
        real_dataset: Dataset[Any],
        *,
        workdir: str | os.PathLike[str],
        device: str | torch.device | None = None,
    ) -> None:
        self.config = config
        self.workdir = Path(workdir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        real_images = load_images(real_dataset, image_shape=config.generator.image_shape)
        if real_images.num_classes != config.generator.num_classes:
            raise ValueError(
                f"the data set has {real_images.num_classes} classes and the generator is configured for "
                f"{config.generator.num_classes}; set num_classes={real_images.num_classes}"
            )
        self.real_images = real_images.to(self.device)
        self.augment = diff_augment(config.augmentation)
        self._work = {**asdict(config), "data": real_images.fingerprint}
        self.step = 0
        self._build()
        self._resume()

    def _build(self) -> None:
        config = self.config
        rng = draws.make_rng(config.seed)
        side = config.generator.image_shape[1]
        self.generator = BigGAN(config.generator, rng=rng)
        self.discriminator = ProjectionDiscriminator(
            config.discriminator_channels, config.generator.num_classes, side, rng
        )
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        for module in (self.generator, self.discriminator, self.average):
            module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        betas = (config.beta1, config.beta2)
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.lr_generator, betas=betas, eps=1e-6
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.lr_discriminator, betas=betas, eps=1e-6
        )
        for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
            _make_state(optimizer)

    def run(self, max_minutes: float | None = None) -> BigGAN:
        """Train until `config.steps`, or for about `max_minutes`, then write a checkpoint.

        Returns:
            The moving average of the generator, in evaluation mode; `fold` makes it a frozen one.
        """
        started = saved = time.monotonic()
        bar = tqdm(total=self.config.steps, initial=self.step, desc="generator", unit="step", smoothing=0.02)
        try:
            while self.step < self.config.steps:
                losses = self.train_step()
                if not all(map(math.isfinite, losses)):
                    raise FloatingPointError(
                        f"the losses are {losses} at step {self.step}; the last good state is in {self.workdir}, "
                        "lower the learning rates"
                    )
                bar.update()
                now = time.monotonic()
                if self.step % 20 == 0:
                    rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
                    bar.set_postfix_str(f"D {losses[0]:.3f} G {losses[1]:.3f} {rate:.0f} images/s", refresh=False)
                if self.step % self.config.preview_steps == 0:
                    self.save_samples()
                if now - saved > 60 * self.config.checkpoint_minutes:
                    self.save()
                    saved = now
                if max_minutes is not None and now - started > 60 * max_minutes:
                    logger.info("stopped after %.1f minutes at step %d", max_minutes, self.step)
                    break
        finally:
            bar.close()
        self.save()  # not after an error: the step it broke off would be saved half done
        self.save_samples()
        save_generator(self.workdir / "generator", fold(self.average))
        return self.average

    def train_step(self) -> tuple[float, float]:
        """One update of the generator after `discriminator_steps` of the discriminator; their last losses."""
        self.generator.train()
        self.discriminator.train().requires_grad_(True)
        for substep in range(self.config.discriminator_steps):
            discriminator_loss = self._update_discriminator(substep)
        self.discriminator.requires_grad_(False)
        generator_loss = self._update_generator()
        self._update_average()
        self.step += 1
        return discriminator_loss, generator_loss

    def _update_discriminator(self, substep: int) -> float:
        real_images, real_labels = self._real_batch(substep)
        with torch.no_grad(), autocast(self.device, self.config.precision):
            latents, labels = self._latent_batch(substep)
            synthetic_images = self.generator(latents, labels).float()
        images = self._augmented(torch.cat([real_images, synthetic_images]), substep)
        with autocast(self.device, self.config.precision):
            scores = self.discriminator(images, torch.cat([real_labels, labels]))
        loss = discriminator_hinge(*scores.chunk(2))
        _minimize(loss, self.discriminator_optimizer)
        return loss.item()

    def _update_generator(self) -> float:
        latents, labels = self._latent_batch(self.config.discriminator_steps)
        with autocast(self.device, self.config.precision):
            images = self.generator(latents, labels).float()
            scores = self.discriminator(self._augmented(images, self.config.discriminator_steps), labels)
        loss = generator_hinge(scores)
        _minimize(loss, self.generator_optimizer)
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for average, current in zip(_tensors(self.average), _tensors(self.generator), strict=True):
            average.lerp_(current, 1 - decay)

    def _draw_indices(self, substep: int, count: int) -> tuple[int, torch.Tensor]:
        """The position of this (step, substep) in the run, and the row numbers of its draws."""
        position = self.step * (self.config.discriminator_steps + 1) + substep
        return position, torch.arange(count, device=self.device)

    def _real_batch(self, substep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next signed real images of a pass over the data in random order."""
        config, count = self.config, len(self.real_images)
        first = (self.step * config.discriminator_steps + substep) * config.batch_size
        places = torch.arange(first, first + config.batch_size)
        order = torch.cat(
            [
                draws.permutation(config.seed, int(epoch), count, stream=_ORDER)
                for epoch in torch.unique(places // count)
            ]
        )
        indices = order[places - first // count * count].to(self.device)
        images = unit_to_signed(uint8_to_unit(self.real_images.images[indices]))
        if config.flips:
            position, rows = self._draw_indices(substep, config.batch_size)
            uniforms = draws.uniform(config.seed, position, rows, 3, stream=_FLIP)
            images = CropFlip(padding=0)(images, uniforms)
        return images, self.real_images.labels[indices]

    def _latent_batch(self, substep: int) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        position, rows = self._draw_indices(substep, config.batch_size)
        latents = draws.normal(config.seed, position, rows, config.generator.latent_dim, stream=_LATENTS)
        uniforms = draws.uniform(config.seed, position, rows, 1, stream=_LABELS).squeeze(1)
        return latents, (uniforms * config.generator.num_classes).long()

    def _augmented(self, images: torch.Tensor, substep: int) -> torch.Tensor:
        position, rows = self._draw_indices(substep, len(images))
        uniforms = draws.uniform(self.config.seed, position, rows, self.augment.num_draws, stream=_AUGMENT)
        return self.augment(images, uniforms).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def save_samples(self) -> None:
        """Write ten images a class of the moving average, the same latents each time, to `samples/`."""
        num_classes = self.config.generator.num_classes
        labels = torch.arange(num_classes, device=self.device).repeat_interleave(10)
        rows = torch.arange(len(labels), device=self.device)
        latents = draws.normal(self.config.seed, -1, rows, self.config.generator.latent_dim)
        images = torch.cat(
            [self.average(*pair) for pair in zip(torch.split(latents, 100), torch.split(labels, 100), strict=True)]
        )
        with write_atomically(self.workdir / "samples" / f"{self.step:07d}.png") as path:
            image_grid(signed_to_unit(images), columns=10).save(path)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        save_checkpoint(self.workdir / "checkpoint", self._state_tensors(), step=self.step, config=self._work)

    def _resume(self) -> None:
        found = load_checkpoint(self.workdir / "checkpoint", config=self._work, may_differ=_MAY_DIFFER)
        if found is None:
            return
        for name, tensor in self._state_tensors().items():
            tensor.copy_(found.tensors[name])
        if found.step > self.config.steps:
            raise ValueError(f"{self.workdir} is at step {found.step}, beyond steps={self.config.steps}; raise steps")
        self.step = found.step

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the run by name; they share memory with it."""
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


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _minimize(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _make_state(optimizer: torch.optim.Adam) -> None:
    """Give an Adam that has not stepped yet the tensors of its state, so that a checkpoint can fill them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
