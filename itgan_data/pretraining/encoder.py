"""An encoder that predicts the latents of images, trained on a generator's own samples."""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import trange

from .. import draws
from ..draws import Stream
from ..running.checkpoint import Checkpointer, checkpointing
from ..running.training import Fit


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
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: torch.device,
    checkpointer: Checkpointer | None = None,
) -> Encoder:
    """Train an encoder to recover the latents of the generator's own samples.

    Args:
        generator: frozen; new samples and their latents are the training pairs of each step.
        steps: updates of the encoder.
        batch_size: samples per update.
        lr: the highest learning rate of the one-cycle schedule.
        seed: of the weights and the samples.
        device: of the generator.
        checkpointer: of the encoder; None to save nothing.

    Raises: see `running.checkpoint.checkpointing`.
    """
    latent_dim, num_classes = int(generator.latent_dim), int(generator.num_classes)  # type: ignore[arg-type]
    with draws.global_rng_seeded(draws.make_seed(seed, stream=Stream.ENCODER_WEIGHTS)):
        encoder = Encoder(generator.image_shape, num_classes, latent_dim)  # type: ignore[arg-type]
    encoder.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(encoder.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    fit = Fit(encoder, optimizer, schedule)
    first = fit.restore(None if checkpointer is None else checkpointer.load(steps))
    rows = torch.arange(batch_size, device=device)
    with checkpointing(checkpointer, steps, remedy="lower lr_encoder of the inversion") as done:
        for step in (bar := trange(first, steps, desc="encoder", unit="step")):
            latents = draws.normal(seed, step, rows, latent_dim, stream=Stream.ENCODER_LATENTS)
            chances = draws.uniform(seed, step, rows, 1, stream=Stream.ENCODER_LABELS).squeeze(1)
            labels = (chances * num_classes).long()
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
