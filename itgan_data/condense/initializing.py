"""The initial latents: normal draws, the generator's own encoder, or inversion with checkpoints."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..config import marked
from ..images import LabeledImages
from ..pretraining.encoder import Encoder, train_encoder
from ..running.checkpoint import Checkpointer, State
from ..running.shards import Team
from .config import CondenserConfig, OfMatching
from .inversion import Embedding, Images, invert, starting_latents
from .work import MAY_DIFFER, identity


@dataclass(kw_only=True, eq=False)
class Initializer:
    """Finds initial latents for real images.

    Inversion keeps its encoder in `workdir/encoder`, the encoder's predictions in `workdir/inversion/start`, and each
    chunk of inverted images in a folder next to that. Chunks are independent, so the team divides them.
    """

    generator: nn.Module
    """Frozen."""
    generate: Images
    """Calls the generator in the configured precision."""
    features: Callable[[], Embedding]
    """Returns the embedding in which inversion compares images; called only if that is needed."""
    real_images: LabeledImages
    config: CondenserConfig
    work: Mapping[str, Any]
    workdir: Path
    team: Team

    def __post_init__(self) -> None:
        matching = marked(CondenserConfig, OfMatching)  # these may change while the initial latents are kept
        self.work = {name: value for name, value in self.work.items() if name not in matching}

    def latents(self, indices: torch.Tensor) -> torch.Tensor:
        """`[N, latent_dim]` on the CPU for the real images at `indices` `[N]`."""
        if self.config.initialize == "normal":
            return self._predicted(None, indices)
        if hasattr(self.generator, "encode"):
            return self._encoded(indices)
        embed = self.features() if self.config.inversion.steps else None
        (start,) = self.team.gather([self._piece("start")], 0, lambda _: self._start(indices))
        return start["latents"] if embed is None else self._inverted(indices, start["latents"], embed)

    @torch.no_grad()
    def _encoded(self, indices: torch.Tensor) -> torch.Tensor:
        parts = torch.split(indices, self.config.inversion.batch_size)
        encode: Callable[..., torch.Tensor] = self.generator.encode  # type: ignore[assignment]
        return torch.cat([encode(*self.real_images.unit_batch(part)).cpu() for part in parts])

    def _start(self, indices: torch.Tensor) -> State:
        encoder = self._encoder() if self.config.inversion.encoder_steps else None
        start = {"latents": self._predicted(encoder, indices)}
        self._piece("start").save(start, 0)  # from here on the encoder is not needed again
        shutil.rmtree(self.workdir / "encoder", ignore_errors=True)
        return start

    def _encoder(self) -> Encoder:
        config, seed = self.config.inversion, self.config.seed
        names = ("encoder_steps", "encoder_batch_size", "lr_encoder")
        work = {**{name: getattr(config, name) for name in names}, **identity(self.generator), "seed": seed}
        minutes, time_limit = self.config.checkpoint_minutes, self.team.time_limit
        checkpointer = Checkpointer(self.workdir / "encoder", work, minutes=minutes, time_limit=time_limit)
        return train_encoder(
            self.generator,
            steps=config.encoder_steps,
            batch_size=config.encoder_batch_size,
            lr=config.lr_encoder,
            seed=seed,
            device=self.real_images.images.device,
            checkpointer=checkpointer,
        )

    def _predicted(self, encoder: Encoder | None, indices: torch.Tensor) -> torch.Tensor:
        chosen = self._images(indices)
        return starting_latents(self.generator, encoder, chosen, self.config.inversion, seed=self.config.seed).cpu()

    def _inverted(self, indices: torch.Tensor, start: torch.Tensor, embed: Embedding) -> torch.Tensor:
        config = self.config.inversion
        chunks = torch.split(torch.arange(len(indices)), config.batch_size)
        pieces = [self._piece(f"chunk-{number:05d}") for number in range(len(chunks))]
        done = sum(len(chunk) for chunk, piece in zip(chunks, pieces, strict=True) if piece.is_finished(config.steps))

        def make(number: int) -> State:
            rows = chunks[number]
            latents, losses = invert(
                self.generate,
                embed,
                self._images(indices[rows]),
                start[rows].to(self.real_images.images.device),
                config,
                normalization=self.config.normalization,
                checkpointer=pieces[number],
            )
            bar.update(len(rows))
            bar.set_postfix_str(f"loss {float(losses.mean()):.4f}")
            return {"latents": latents.cpu()}

        with tqdm(total=len(indices), initial=done, desc="inversion", unit="image") as bar:
            return torch.cat([piece["latents"] for piece in self.team.gather(pieces, config.steps, make)])

    def _images(self, indices: torch.Tensor) -> LabeledImages:
        return self.real_images.select(indices.to(self.real_images.images.device))

    def _piece(self, name: str) -> Checkpointer:
        return Checkpointer(
            self.workdir / "inversion" / name,
            self.work,
            minutes=self.config.checkpoint_minutes,
            time_limit=self.team.time_limit,
            may_differ=MAY_DIFFER,
        )
