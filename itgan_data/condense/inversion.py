"""GAN inversion: the latent whose image is closest to a given real image.

An encoder, trained on the generator's own samples, gives the start; Adam on each latent does the rest.
Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 1.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

from .. import draws
from ..images import LabeledImages, Normalization, signed_to_unit, unit_to_signed
from ..keeping import Keeper
from .matching import reconstruction

logger = logging.getLogger(__name__)

# Streams of `draws`, one a use, so that no two share numbers.
_SAMPLES, _SAMPLE_LABELS, _STARTS = range(11, 14)

Images = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes latents `[N, latent_dim]` and labels `[N]` to signed images `[N, C, H, W]`."""
Embedding = Callable[[torch.Tensor], torch.Tensor]
"""Takes standardized images `[N, C, H, W]` to features `[N, dim]`."""


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How real images are inverted."""

    encoder_steps: int = 3000
    """Updates of the encoder; 0 starts from normal draws in its place."""
    encoder_batch_size: int = 64
    lr_encoder: float = 1e-3
    steps: int = 60
    """Adam updates of each latent."""
    lr_latents: float = 0.1
    """At the start; falls to zero along a cosine."""
    pixel_weight: float = 1.0
    """lambda_pixel of Eq. 1."""
    batch_size: int = 250
    """Latents optimised, kept and shared out together; bounds memory, does not change the result."""

    def __post_init__(self) -> None:
        for name in ("encoder_steps", "steps", "pixel_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("encoder_batch_size", "lr_encoder", "lr_latents", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class Encoder(nn.Module):
    """Predicts the latents `[N, latent_dim]` of signed images `[N, C, H, W]` with labels `[N]`."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, latent_dim: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = image_shape[0], image_shape[1]
        while side > 4:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)]
            layers += [nn.GroupNorm(8, width), nn.ReLU()]
            channels, side, width = width, (side + 1) // 2, width * 2
        self.maps = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(channels * side**2, 512)
        self.label = nn.Embedding(num_classes, 512)
        self.latent = nn.Linear(512, latent_dim)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.latent(F.relu(self.hidden(self.maps(images)) + self.label(labels)))
        return latents


def train_encoder(
    generator: nn.Module,
    config: InversionConfig,
    *,
    seed: int,
    device: torch.device,
    keeper: Keeper | None = None,
) -> Encoder:
    """Train an encoder to recover the latents of the generator's own samples.

    Args:
        generator: frozen; its samples and their latents are the training pairs, new ones every step.
        config: steps, batch size and peak learning rate (one cycle).
        seed: of the weights and the samples.
        device: where the generator is.
        keeper: where to go on from, and when to save; without one all is done anew.

    Raises:
        OutOfTimeError: the keeper's budget is used up; the encoder so far is saved.
    """
    latent_dim, num_classes = int(generator.latent_dim), int(generator.num_classes)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        encoder = Encoder(generator.image_shape, num_classes, latent_dim)  # type: ignore[arg-type]
    encoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(encoder.parameters(), lr=config.lr_encoder)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr_encoder, total_steps=config.encoder_steps, cycle_momentum=False
    )
    first = 0 if keeper is None else _restore(keeper, encoder, optimizer, schedule)
    rows = torch.arange(config.encoder_batch_size, device=device)
    for step in (bar := trange(first, config.encoder_steps, desc="encoder", unit="step")):
        latents = draws.normal(seed, step, rows, latent_dim, stream=_SAMPLES)
        labels = (draws.uniform(seed, step, rows, 1, stream=_SAMPLE_LABELS).squeeze(1) * num_classes).long()
        with torch.no_grad():
            images = generator(latents, labels).float()
        loss = F.mse_loss(encoder(images, labels), latents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"latent error {loss.item():.3f}")
        if keeper is not None:
            over = keeper.budget.is_over()
            if over or step + 1 == config.encoder_steps or keeper.due():
                rate = optimizer.param_groups[0]["lr"]
                keeper.save(_encoder_tensors(encoder, optimizer), step + 1, results={"lr": rate})
            if over:
                raise keeper.budget.out_of_time()
    return encoder.eval().requires_grad_(False)


def _encoder_tensors(encoder: Encoder, optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
    """Weights and moments by name."""
    moments = {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in encoder.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    return {**encoder.state_dict(), **moments}


def _restore(
    keeper: Keeper,
    encoder: Encoder,
    optimizer: torch.optim.Adam,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> int:
    """Go on from the checkpoint, if there is one; the steps done."""
    found = keeper.load()
    if found is None:
        return 0
    for parameter in encoder.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(found.step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    with torch.no_grad():
        for name, tensor in _encoder_tensors(encoder, optimizer).items():
            tensor.copy_(found.tensors[name])
    optimizer.param_groups[0]["lr"] = found.results["lr"]
    schedule.last_epoch = found.step
    return found.step


def starting_latents(
    generator: nn.Module,
    encoder: Encoder | None,
    real_images: LabeledImages,
    config: InversionConfig,
    *,
    seed: int,
) -> torch.Tensor:
    """What inversion starts from `[N, latent_dim]`: the encoder's prediction, or normal draws without one."""
    if encoder is None:
        rows = torch.arange(len(real_images), device=real_images.images.device)
        return draws.normal(seed, 0, rows, int(generator.latent_dim), stream=_STARTS)  # type: ignore[arg-type]
    parts = []
    with torch.no_grad():
        for places in torch.split(torch.arange(len(real_images)), config.batch_size):
            images, labels = real_images.unit_batch(places)
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimise the latents of a batch of real images (Eq. 1).

    Args:
        generate: the frozen generator.
        embed: a trained feature extractor.
        real_images: the images to reproduce, with the labels that condition the generator.
        start: `[N, latent_dim]`.
        config: steps, learning rate, pixel weight.
        normalization: takes unit images to what `embed` expects.
        on_step: called with the step and the loss of each image before it.

    Returns:
        Latents `[N, latent_dim]` and the last loss of each image `[N]`.
    """
    unit, labels = real_images.unit_batch(torch.arange(len(real_images)))
    signed = unit_to_signed(unit)
    with torch.no_grad():
        features = embed(normalization.standardize(unit))
    latents = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=config.lr_latents)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps))
    for step in range(config.steps + 1):
        with torch.set_grad_enabled(step < config.steps):
            images = generate(latents, labels)
            synthetic_features = embed(normalization.standardize(signed_to_unit(images)))
            losses = reconstruction(synthetic_features, features, images, signed, config.pixel_weight)
        if on_step is not None:
            on_step(step, losses.detach())
        if step < config.steps:
            (latents.grad,) = torch.autograd.grad(losses.sum(), latents)
            optimizer.step()
            schedule.step()
    return latents.detach(), losses.detach()
