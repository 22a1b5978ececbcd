"""Train a class-conditional generator: hinge loss, projection discriminator, DiffAugment, moving average."""

import copy
import enum
import logging
import math
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..config import autocast
from ..datasets import load_images
from ..evaluation.features import FeatureNetwork
from ..generators.biggan import BigGAN
from ..generators.frozen import fold
from ..generators.store import save_generator
from ..images import image_grid, signed_to_unit
from ..running.checkpoint import Checkpointer
from ..running.lock import workdir_lock
from ..running.ranks import Ranks
from ..running.shards import Shard
from ..running.step_log import StepLog
from ..running.stopping import TimeLimit, signals_held, stop_by
from ..running.training import fill
from ..storage.files import fingerprint, write_atomically
from .batches import Batches
from .config import MAY_DIFFER, GeneratorTrainerConfig
from .discriminator import discriminator_hinge, generator_hinge
from .monitoring import Monitor
from .training_state import TrainingState, tensors_of

logger = logging.getLogger(__name__)


class _Stop(enum.IntEnum):
    """Why a run ends before its last step. If ranks have different reasons, the highest number counts."""

    NO = 0
    OUT_OF_TIME = 1
    COLLAPSED = 2
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM


class GeneratorTrainer:
    """Trains a `BigGAN` on a real data set; may be killed and run again at any moment.

    Every random number is a function of (seed, step), so a resumed run ends with the weights of an uninterrupted
    one. `workdir` receives `checkpoint/`, `samples/*.png`, `log.jsonl` with losses and distances, and at the end
    `generator/`, which `load_generator` reads.

    The ranks of the default process group of `torch.distributed`, if there is one, divide every batch. A rank computes
    its rows of the batch that one process would draw, so the number of ranks changes only rounding, and the rows that
    batch norm sees at a time. Only rank 0 reads and writes `workdir`. Under torchrun::

        torch.distributed.init_process_group()
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        generator = GeneratorTrainer(config, real_images, workdir="runs/generator", device=device).run()

    Args:
        config: how to train.
        real_dataset: a torchvision-like data set; read into memory once.
        workdir: where checkpoints and samples go.
        device: `cpu`, `cuda`, ...; by default CUDA where there is one.
        sample_weights: float `[N]`, not negative: draw real images with replacement, with probabilities proportional
            to these (see `metrics.sample_weights`). By default every pass shows each image once.
        feature_network: measure the Fréchet distance in its features every `monitor_steps`, keep the best moving
            average in `generator-best/`, and stop when the training collapses. Use Inception if its weights are at
            hand (see `features.inception`), or a classifier trained on the real data. None to measure nothing.

    Raises:
        ValueError: images, classes or weights that do not fit, a batch that cannot be divided equally, or a `workdir`
            that holds a run of another configuration.
        RuntimeError: another run works in `workdir`.
    """

    def __init__(
        self,
        config: GeneratorTrainerConfig,
        real_dataset: Dataset[Any],
        *,
        workdir: str | os.PathLike[str],
        device: str | torch.device | None = None,
        sample_weights: torch.Tensor | None = None,
        feature_network: FeatureNetwork | None = None,
    ) -> None:
        self.config = config
        self.workdir = Path(workdir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        real_images = load_images(real_dataset, image_shape=config.generator.image_shape)
        if real_images.num_classes != config.generator.num_classes:
            raise ValueError(
                f"the data set has {real_images.num_classes} classes and the generator is configured for "
                f"{config.generator.num_classes}; let its num_classes be {real_images.num_classes}"
            )
        self.ranks = Ranks(self.device)
        self._parts = self.ranks.parts(config.batch_size, config.micro_batches)
        self.batches = Batches(config, real_images.to(self.device), sample_weights)
        self._work = {**asdict(config), "data": real_images.fingerprint}
        if sample_weights is not None:
            self._work["sample_weights"] = fingerprint({"sample_weights": sample_weights})
        self._checkpointer = Checkpointer(
            self.workdir / "checkpoint", self._work, minutes=config.checkpoint_minutes, may_differ=MAY_DIFFER
        )
        self.state = TrainingState(config, self.device)
        self.log: StepLog | None = None
        self.monitor: Monitor | None = None
        with self._lock():  # resuming removes the lines of the log after the checkpoint
            self.step = self._resume()
            if self.ranks.leads:
                self.log = StepLog(self.workdir / "log.jsonl", step=self.step)
        self._generator = self.ranks.replicated(self.state.generator)
        self._discriminator = self.ranks.replicated(self.state.discriminator)
        if self.log is not None and feature_network is not None:
            self.monitor = Monitor(feature_network, self.batches, config, self.workdir, self._work, self.log)

    def run(self, max_minutes: float | None = None) -> BigGAN:
        """Train until `config.steps`, or for about `max_minutes`, and save.

        Returns:
            The moving average of the generator, in evaluation mode, on every rank; `fold` makes a frozen generator of
            it. If the training has collapsed, a warning is logged and the best average that was measured is returned.

        Raises:
            FloatingPointError: a loss is not finite; nothing is saved since the last checkpoint.
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; all is saved.
            RuntimeError: another run works in `workdir`.
        """
        with self._lock():
            with signals_held() as signal_that_came:
                stop = self._train(TimeLimit(max_minutes, self.workdir), signal_that_came)
                self.save()  # not after an error, which may have left a step half done
            if stop >= _Stop.INTERRUPTED:
                raise stop_by(stop - 128)
            self.save_samples()
            result = self._result(stop)
            if self.ranks.leads:
                names = self.batches.real_images.class_names
                save_generator(self.workdir / "generator", fold(result), class_names=names)
        return result

    def _lock(self) -> AbstractContextManager[None]:
        # A lock of rank 0 is enough, as the other ranks do not use the workdir.
        return workdir_lock(self.workdir, Shard(1, 1)) if self.ranks.leads else nullcontext()

    def _train(self, time_limit: TimeLimit, signal_that_came: Callable[[], int]) -> _Stop:
        config, alone = self.config, not self.ranks.leads
        with tqdm(
            total=config.steps, initial=self.step, desc="generator", unit="step", smoothing=0.02, disable=alone
        ) as bar:
            stop = self._agreed(_Stop.COLLAPSED if self._has_collapsed() else _Stop.NO)
            while stop is _Stop.NO and self.step < config.steps:
                losses = self.train_step()
                self._check(losses)
                bar.update()
                self._report(losses, bar)
                if self._checkpointer.due():
                    self.save()
                stop = self._agreed(self._reason(time_limit, signal_that_came()))
        return stop

    def _reason(self, time_limit: TimeLimit, number: int) -> _Stop:
        """Why this rank would stop now; `number` is that of a signal, or 0."""
        if number:
            return _Stop(128 + number)
        if self._has_collapsed():
            return _Stop.COLLAPSED
        return _Stop.OUT_OF_TIME if time_limit.is_over() else _Stop.NO

    def _agreed(self, reason: _Stop) -> _Stop:
        return _Stop(self.ranks.largest(reason))

    def _has_collapsed(self) -> bool:
        return self.monitor is not None and self.monitor.has_collapsed

    def _check(self, losses: tuple[float, float]) -> None:
        if all(map(math.isfinite, losses)):
            return
        kept = self._checkpointer.describe_saved()
        best = "" if self.monitor is None else f"; {self.monitor.describe_best()}"
        raise FloatingPointError(f"the losses are {losses} at step {self.step}; {kept}; lower the learning rates{best}")

    def _report(self, losses: tuple[float, float], bar: "tqdm[Any]") -> None:
        config = self.config
        if self.log is not None and self.step % config.log_steps == 0:
            self.log.write(self.step, discriminator_loss=losses[0], generator_loss=losses[1])
            rate = (bar.format_dict["rate"] or 0) * config.batch_size
            bar.set_postfix_str(f"D {losses[0]:.3f} G {losses[1]:.3f} {rate:.0f} images/s", refresh=False)
        if self.step % config.preview_steps == 0:
            self.save_samples()
        if self.monitor is not None and self.step % config.monitor_steps == 0:
            self.monitor.check(self.state.average, self.step)

    def _result(self, stop: _Stop) -> BigGAN:
        result = self.state.average
        if stop is _Stop.OUT_OF_TIME:
            logger.info("out of time at step %d of %d; run again to go on", self.step, self.config.steps)
        if stop is _Stop.COLLAPSED:
            result = copy.deepcopy(result)
            if self.monitor is not None:
                logger.warning("the training has collapsed by step %d; %s", self.step, self.monitor.describe_best())
                self.monitor.load_best(result)
        self.ranks.spread(tensors_of(result))  # only the first rank has loaded the best one
        return result

    def train_step(self) -> tuple[float, float]:
        """Update the discriminator `discriminator_steps` times, then the generator; returns their last losses."""
        state, substeps = self.state, self.config.discriminator_steps
        state.generator.train()
        state.discriminator.train().requires_grad_(True)
        for substep in range(substeps):
            discriminator_loss = self._minimize(
                partial(self._discriminator_loss, substep), self._discriminator, state.discriminator_optimizer
            )
        state.discriminator.requires_grad_(False)
        generator_loss = self._minimize(
            partial(self._generator_loss, substeps), self._generator, state.generator_optimizer
        )
        state.update_average(self.step)
        self.step += 1
        return self.ranks.mean(discriminator_loss, generator_loss)

    def _minimize(
        self, loss_of: Callable[[torch.Tensor], torch.Tensor], replica: nn.Module, optimizer: torch.optim.Optimizer
    ) -> float:
        """Update once with the mean gradient of all micro-batches; returns the loss before it, on this rank."""
        optimizer.zero_grad(set_to_none=True)
        vectors = self.state.power_iterations() if len(self._parts) > 1 else []
        first = [vector.clone() for vector in vectors]
        total = torch.zeros((), device=self.device)
        for number, rows in enumerate(self._parts):
            for vector, value in zip(vectors, first, strict=True):  # all parts use the same spectral norms
                vector.copy_(value)
            last = number == len(self._parts) - 1
            with nullcontext() if last else self.ranks.gradients_stay(replica):
                loss = loss_of(rows) / len(self._parts)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        optimizer.step()
        return total.item()

    def _discriminator_loss(self, substep: int, rows: torch.Tensor) -> torch.Tensor:
        batches, precision = self.batches, self.config.precision
        real_images, real_labels = batches.real(self.step, substep, rows)
        latents, labels = batches.latents(self.step, substep, rows)
        with torch.no_grad(), autocast(self.device, precision):
            synthetic_images = self.state.generator(latents, labels).float()
        both = torch.cat([rows, rows + self.config.batch_size])
        images = batches.augmented(torch.cat([real_images, synthetic_images]), self.step, substep, both)
        with autocast(self.device, precision):
            scores = self._discriminator(images, torch.cat([real_labels, labels]))
        return discriminator_hinge(*scores.chunk(2))

    def _generator_loss(self, substep: int, rows: torch.Tensor) -> torch.Tensor:
        batches = self.batches
        latents, labels = batches.latents(self.step, substep, rows)
        with autocast(self.device, self.config.precision):
            images = self._generator(latents, labels).float()
            images = batches.augmented(images, self.step, substep, rows)
            scores = self.state.discriminator(images, labels)
        return generator_hinge(scores)

    @torch.no_grad()
    def save_samples(self) -> None:
        """Write ten images per class of the moving average to `samples/`, always of the same latents."""
        if not self.ranks.leads:
            return
        labels = torch.arange(self.config.generator.num_classes, device=self.device).repeat_interleave(10)
        latents = self.batches.fixed_latents(len(labels))
        pairs = zip(torch.split(latents, 100), torch.split(labels, 100), strict=True)
        images = torch.cat([self.state.average(*pair) for pair in pairs])
        with write_atomically(self.workdir / "samples" / f"{self.step:07d}.png") as path:
            image_grid(signed_to_unit(images), columns=10).save(path)

    def save(self) -> None:
        """Write the checkpoint."""
        if self.ranks.leads:
            self._checkpointer.save(self.state.tensors(), self.step)

    def _resume(self) -> int:
        step, tensors = 0, self.state.tensors()
        found = self._checkpointer.load(self.config.steps) if self.ranks.leads else None
        if found is not None:
            fill(tensors, found.tensors)
            step = found.step
        self.ranks.spread(tensors.values())
        return self.ranks.largest(step)
