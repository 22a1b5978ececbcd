"""GAN inversion: the latent whose image is closest to a given real image.

An encoder, trained on the generator's own samples, gives the start; Adam on each latent does the rest.
Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 1.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

from .. import draws
from ..checkpoint import Checkpoint
from ..config_values import check_types
from ..images import LabeledImages, Normalization, signed_to_unit, unit_to_signed
from ..keeping import Keeper, saving
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
        check_types(self)
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
        channels, rows, columns = image_shape
        while max(rows, columns) > 4:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1)]
            layers += [nn.GroupNorm(8, width), nn.ReLU()]
            channels, rows, columns, width = width, (rows + 1) // 2, (columns + 1) // 2, width * 2
        self.maps = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(channels * rows * columns, 512)
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
        FloatingPointError: its weights are not finite.
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
    fit = _Fit(dict(encoder.named_parameters()), optimizer, schedule)
    first = fit.restore(None if keeper is None else keeper.load())
    rows = torch.arange(config.encoder_batch_size, device=device)
    with saving(keeper, config.encoder_steps, remedy="lower lr_encoder of the inversion") as done:
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
            done(step + 1, fit.state)
    return encoder.eval().requires_grad_(False)


class _Fit:
    """Tensors that an Adam fits, with its moments and learning rate: what a checkpoint of a fit holds."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Adam,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.tensors = tensors
        self.optimizer = optimizer
        self.schedule = schedule

    def state(self) -> dict[str, torch.Tensor]:
        """All by name."""
        moments = {
            f"{name}.{key}": self.optimizer.state[tensor][key]
            for name, tensor in self.tensors.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        lr = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        return {**self.tensors, **moments, "lr": lr}

    @torch.no_grad()
    def restore(self, found: Checkpoint | None) -> int:
        """Go on from what `state` gave, if there is such; the steps done."""
        if found is None:
            return 0
        for name, tensor in self.tensors.items():
            tensor.copy_(found.tensors[name])
            moments = {key: found.tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[tensor] = {
                "step": torch.tensor(float(found.step)),
                **{key: torch.empty_like(tensor).copy_(moment) for key, moment in moments.items()},
            }
        self.optimizer.param_groups[0]["lr"] = float(found.tensors["lr"])
        self.schedule.last_epoch = found.step
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
    keeper: Keeper | None = None,
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
        keeper: where to go on from, and when to save; without one all is done anew.

    Returns:
        Latents `[N, latent_dim]` and the last loss of each image `[N]`.

    Raises:
        OutOfTimeError: the keeper's budget is used up; all is saved.
        FloatingPointError: a latent or a loss is not finite.
    """
    unit, labels = real_images.unit_batch(torch.arange(len(real_images)))
    signed = unit_to_signed(unit)
    with torch.no_grad():
        features = embed(normalization.standardize(unit))
    latents = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=config.lr_latents)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps))
    fit = _Fit({"latents": latents}, optimizer, schedule)
    first = fit.restore(None if keeper is None else keeper.load())

    def state(losses: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**fit.state(), "losses": losses}

    with saving(keeper, config.steps, remedy="lower lr_latents of the inversion") as done:
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
