"""GAN inversion: the latent whose image is closest to a given real image.

An encoder, trained on the generator's own samples, predicts initial latents; Adam refines each of them.
Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import nn

from .. import draws
from ..config import Above, AtLeast, check
from ..draws import Stream
from ..images import LabeledImages, Normalization, signed_to_unit, unit_to_signed
from ..pretraining.encoder import Encoder
from ..running.checkpoint import Checkpointer, checkpointing
from ..running.training import Fit
from .matching import reconstruction

Images = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps latents `[N, latent_dim]` and labels `[N]` to signed images `[N, C, H, W]`."""
Embedding = Callable[[torch.Tensor], torch.Tensor]
"""Maps standardized images `[N, C, H, W]` to features `[N, dim]`."""


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How real images are inverted."""

    encoder_steps: Annotated[int, AtLeast(0)] = 3000
    """Updates of the encoder; 0 starts from normal draws instead."""
    encoder_batch_size: Annotated[int, AtLeast(1)] = 64
    lr_encoder: Annotated[float, Above(0)] = 1e-3
    steps: Annotated[int, AtLeast(0)] = 60
    """Adam updates of each latent."""
    lr_latents: Annotated[float, Above(0)] = 0.1
    """Initial learning rate of these; decays to zero along a cosine."""
    pixel_weight: Annotated[float, AtLeast(0)] = 1.0
    """lambda_pixel of Eq. 1."""
    batch_size: Annotated[int, AtLeast(1)] = 250
    """Images per chunk, which is inverted and saved as one. Limits memory, does not change the result."""

    def __post_init__(self) -> None:
        check(self)


def starting_latents(
    generator: nn.Module,
    encoder: Encoder | None,
    real_images: LabeledImages,
    config: InversionConfig,
    *,
    seed: int,
) -> torch.Tensor:
    """Initial latents `[N, latent_dim]`: the encoder's prediction, or normal draws without one."""
    if encoder is None:
        rows = torch.arange(len(real_images), device=real_images.images.device)
        return draws.normal(seed, 0, rows, int(generator.latent_dim), stream=Stream.INVERSION)  # type: ignore[arg-type]
    parts = []
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(real_images)), config.batch_size):
            images, labels = real_images.unit_batch(indices)
            parts.append(encoder(unit_to_signed(images), labels))
    return torch.cat(parts)


def invert(
    generate: Images,
    embed: Embedding,
    real_images: LabeledImages,
    start: torch.Tensor,
    config: InversionConfig,
    *,
    normalization: Normalization,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
    checkpointer: Checkpointer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimise the latents of a batch of real images (Eq. 1).

    Args:
        generate: the frozen generator.
        embed: a trained feature extractor.
        real_images: the images to reproduce, with the labels that condition the generator.
        start: `[N, latent_dim]`.
        config: steps, learning rate, pixel weight.
        normalization: applied to unit images before `embed`.
        on_step: called before each step with its number and the loss of each image.
        checkpointer: of these latents; None to save nothing.

    Returns:
        Latents `[N, latent_dim]` and the last loss of each image `[N]`.

    Raises: see `running.checkpoint.checkpointing`.
    """
    unit, labels = real_images.unit_batch(torch.arange(len(real_images)))
    signed = unit_to_signed(unit)
    with torch.no_grad():
        features = embed(normalization.standardize(unit))
    inverted = nn.ParameterDict({"latents": start.clone()})
    latents = inverted["latents"]
    optimizer = torch.optim.Adam([latents], lr=config.lr_latents)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps))
    fit = Fit(inverted, optimizer, schedule)
    first = fit.restore(None if checkpointer is None else checkpointer.load(config.steps))

    def state(losses: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**fit.state(), "losses": losses}

    with checkpointing(checkpointer, config.steps, remedy="lower lr_latents of the inversion") as done:
        for step in range(first, config.steps + 1):
            with torch.set_grad_enabled(step < config.steps):
                images = generate(latents, labels)
                synthetic_features = embed(normalization.standardize(signed_to_unit(images)))
                losses = reconstruction(synthetic_features, features, images, signed, config.pixel_weight)
            if on_step is not None:
                on_step(step, losses.detach())
            if step > first:
                done(step, partial(state, losses))
            if step < config.steps:
                (latents.grad,) = torch.autograd.grad(losses.sum(), latents)
                optimizer.step()
                schedule.step()
    return latents.detach(), losses.detach()
