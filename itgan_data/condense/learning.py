"""The loop that learns the latents of one unit of work."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from .. import draws
from ..draws import Stream
from ..images import signed_to_unit
from ..running.checkpoint import Checkpointer, checkpointing
from ..running.training import fill, training_tensors
from .config import CondenserConfig
from .inversion import Images
from .journal import Journal
from .network_source import NetworkSource
from .objective import Batch, Objective

_REMEDY = "lower lr_latents"
_EXPLODED = 1e6  # times the first loss: networks and augmentations change the loss far less than that
_SMALLEST = 1e-3  # the first loss counts as at least this, because it may be zero
_PREVIEW_SIDE = 10  # at most ten classes, ten images each


class LossWatch:
    """Remembers the first step at which the loss of a class was not finite or exploded.

    It works on the device: reading the loss at every step would make the host wait for the device each time.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.first_bad = torch.full((num_classes,), -1, device=device)
        self.limit: torch.Tensor | None = None

    def note(self, step: int, losses: torch.Tensor) -> None:
        if self.limit is None:
            self.limit = _EXPLODED * losses.max().clamp(min=_SMALLEST)
        good = losses.isfinite() & (losses <= self.limit)
        self.first_bad = torch.where(good | (self.first_bad >= 0), self.first_bad, step)

    def found(self) -> tuple[int, int] | None:
        """The first such step and its class."""
        bad = [(step, row) for row, step in enumerate(self.first_bad.tolist()) if step >= 0]
        return min(bad, default=None)


@dataclass(kw_only=True, eq=False)
class Learner:
    """Learns the latents of one unit, starting from their checkpoint if there is one."""

    start: Batch
    """The initial latents."""
    group: int
    """Of the unit; selects its random numbers."""
    objective: Objective
    networks: NetworkSource
    """Source of the objective's network."""
    generate: Images
    config: CondenserConfig
    checkpointer: Checkpointer
    class_names: Sequence[str]
    """For messages."""

    def __post_init__(self) -> None:
        self.learned = nn.ParameterDict({"latents": self.start.latents.clone()})
        self.latents: torch.Tensor = self.learned["latents"]
        self.optimizer = _optimizer(self.latents, self.config)
        self.watch = LossWatch(len(self.start.classes), self.latents.device)
        self.step = self._restore()

    def run(self) -> torch.Tensor:
        """Learn until `config.steps`; returns the latents `[num_classes, n, latent_dim]`.

        Raises:
            FloatingPointError: a loss is not finite or exploded; nothing is saved since the last checkpoint.
        """
        config, checkpointer = self.config, self.checkpointer
        name = checkpointer.folder.name
        started, first = time.monotonic(), self.step
        with (
            closing(Journal(checkpointer.folder.parent, name, step=first, tensorboard=config.tensorboard)) as journal,
            tqdm(total=config.steps, initial=first, desc=name, unit="step") as bar,
            checkpointing(checkpointer, config.steps, remedy=_REMEDY) as done,
        ):
            while self.step < config.steps:
                losses = self._update()
                bar.update()
                if self.step == config.steps or self.step % config.log_steps == 0:
                    self._check(losses)
                    seconds = time.monotonic() - started
                    loss, rate = float(losses.sum()), (self.step - first) / max(seconds, 1e-9)
                    journal.write(self.step, loss, seconds=seconds, steps_per_second=rate)
                    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                if config.preview_steps is not None and self.step % config.preview_steps == 0:
                    journal.preview(self.step, self._preview())
                done(self.step, partial(self._good_state, losses))
        return self.latents.detach()

    def _update(self) -> torch.Tensor:
        """Do one step; returns the loss of each class before it."""
        losses, self.latents.grad = self._gradient()
        self.watch.note(self.step, losses)
        self.optimizer.step()
        self.networks.train_along(self._standardized, self.group, self.step)
        self.step += 1
        return losses

    def _gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        batch = Batch(self.latents.detach(), self.start.sources, self.start.classes)
        if not self.config.regroup:
            return self.objective.gradient(batch, group=self.group, step=self.step)
        count = batch.latents.shape[1]
        chances = draws.uniform(self.config.seed, self.step, batch.classes, count, stream=Stream.PARTITION)
        order = chances.argsort(dim=1, stable=True)
        parts = torch.split(order, self.config.group_size or count, dim=1)
        rows = torch.arange(len(batch.classes)).unsqueeze(1)
        gradient, losses = torch.empty_like(batch.latents), []
        for group, columns in enumerate(parts):
            loss, gradient[rows, columns] = self.objective.gradient(batch.select(columns), group=group, step=self.step)
            losses.append(loss)
        return torch.stack(losses).mean(dim=0), gradient

    @torch.no_grad()
    def _standardized(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The synthetic images of this step, on which a network is trained along."""
        labels = self.start.labels.to(self.latents.device)
        size = len(self.start.classes) * (self.config.chunk_size or self.latents.shape[1])
        pairs = zip(torch.split(self.latents.flatten(0, 1), size), torch.split(labels, size), strict=True)
        unit = torch.cat([signed_to_unit(self.generate(latents, own)) for latents, own in pairs])
        return self.config.normalization.standardize(unit), labels

    @torch.no_grad()
    def _preview(self) -> torch.Tensor:
        shown = self.latents[:_PREVIEW_SIDE, :_PREVIEW_SIDE]
        labels = self.start.classes[: len(shown)].repeat_interleave(shown.shape[1]).to(shown.device)
        images = self.generate(shown.flatten(0, 1), labels)
        return images.reshape(*shown.shape[:2], *images.shape[1:])

    def _check(self, losses: torch.Tensor) -> None:
        """Raise FloatingPointError if a loss or a latent has gone wrong so far."""
        found = self.watch.found()
        if found is None:
            lost = (~self.latents.detach().isfinite().flatten(1).all(dim=1)).nonzero()
            if len(lost) == 0:
                return
            found = self.step - 1, int(lost[0])
        step, row = found
        raise FloatingPointError(
            f"the loss of class {self.class_names[int(self.start.classes[row])]!r} exploded or is not finite at step "
            f"{step} of {self.checkpointer.folder.name} (last read: {float(losses[row]):.4g}); "
            f"{self.checkpointer.describe_saved()}; {_REMEDY}"
        )

    def _good_state(self, losses: torch.Tensor) -> dict[str, torch.Tensor]:
        self._check(losses)  # a state that has gone wrong is never saved
        tensors = training_tensors(self.learned, self.optimizer)
        if self.watch.limit is not None:
            tensors["loss_limit"] = self.watch.limit
        return tensors | self.networks.state(self.step)

    def _restore(self) -> int:
        found = self.checkpointer.load(self.config.steps)
        if found is None:
            return 0
        fill(training_tensors(self.learned, self.optimizer), found.tensors)
        if "loss_limit" in found.tensors:
            self.watch.limit = found.tensors["loss_limit"].to(self.latents.device)
        self.networks.restore(found.tensors)
        return found.step


def _optimizer(latents: torch.Tensor, config: CondenserConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam([latents], lr=config.lr_latents)
    return torch.optim.SGD([latents], lr=config.lr_latents, momentum=config.momentum)
