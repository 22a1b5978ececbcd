"""Train a codec: distance to real images and in the maps of trained networks, against the bits of the codes."""

import copy
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import draws
from ..config import autocast
from ..datasets import load_images
from ..draws import Stream
from ..evaluation.protocol import measure_normalization
from ..generators.codec import Codec, quantize, quantize_straight_through
from ..generators.store import save_generator
from ..images import image_grid, signed_to_unit, unit_to_signed
from ..running.checkpoint import Checkpointer
from ..running.lock import workdir_lock
from ..running.shards import Shard
from ..running.step_log import StepLog
from ..running.stopping import TimeLimit, signals_held, stop_by
from ..running.training import fill
from ..storage.files import write_atomically
from .codec_config import MAY_DIFFER, CodecTrainerConfig
from .codec_state import CodecState
from .feature_maps import Blocks, feature_distance, feature_networks
from .rate import bits

logger = logging.getLogger(__name__)

_MEASURED_IMAGES = 1000
_PREVIEW_COLUMNS = 10
_LARGEST_GRADIENT = 1.0  # norm of an update's


class CodecTrainer:
    """Trains a `Codec` on a real data set, and can be killed and run again at any moment.

    Every random number is a function of (seed, step), so a resumed run ends with the weights of an uninterrupted one.
    `workdir` receives `features/` (the networks whose maps are compared), `checkpoint/`, `log.jsonl`, `pairs/*.png`
    (real images above decoded ones) and in the end `generator/`, which `load_generator` reads.

    Args:
        config: how to train.
        real_dataset: anything torchvision-like; read into memory once.
        workdir: where all of it goes.
        device: `cpu`, `cuda`, ...; by default CUDA where there is one.
        flips: whether mirror images of the data belong to their class; for the training of the feature networks.

    Raises:
        ValueError: images or classes that do not fit, or a `workdir` that holds a run of another configuration.
    """

    def __init__(
        self,
        config: CodecTrainerConfig,
        real_dataset: Dataset[Any],
        *,
        workdir: str | os.PathLike[str],
        device: str | torch.device | None = None,
        flips: bool = True,
    ) -> None:
        self.config = config
        self.workdir = Path(workdir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.images = load_images(real_dataset, image_shape=config.codec.image_shape).to(self.device)
        if self.images.num_classes != config.codec.num_classes:
            raise ValueError(
                f"the data set has {self.images.num_classes} classes and the codec is configured for "
                f"{config.codec.num_classes}; let its num_classes be {self.images.num_classes}"
            )
        self._flips = flips
        self._normalization = measure_normalization(self.images)
        work = {**asdict(config), "data": self.images.fingerprint, "flips": flips}
        self._checkpointer = Checkpointer(
            self.workdir / "checkpoint", work, minutes=config.checkpoint_minutes, may_differ=MAY_DIFFER
        )
        self.state = CodecState(config, self.images, self.device)
        with workdir_lock(self.workdir, Shard(1, 1)):  # the log of a run that goes on loses the lines after it
            self.step = self._resume()
            self._log = StepLog(self.workdir / "log.jsonl", step=self.step)
        self._features: list[Blocks] = []
        self._losses: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None

    def run(self, max_minutes: float | None = None) -> Codec:
        """Train until `config.steps`, or for about `max_minutes`, then write a checkpoint. So do Ctrl-C and SIGTERM.

        Returns:
            The moving average of the codec with its encoder, its weights rounded, at a step of 1.

        Raises:
            FloatingPointError: a loss is not finite; nothing is saved since the last checkpoint.
            KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; all is saved.
            RuntimeError: another run is at work in `workdir`; so does the constructor.
        """
        time_limit = TimeLimit(max_minutes, self.workdir)
        with workdir_lock(self.workdir, Shard(1, 1)):
            if self.config.feature_weight and not self._features:
                self._features = self._feature_networks()
            with signals_held() as signal_that_came:
                self._train(lambda: time_limit.is_over() or signal_that_came() > 0)
                self.save()  # not after an error: the step it broke off would be saved half done
                if number := signal_that_came():
                    raise stop_by(number)
            if self.step < self.config.steps:
                logger.info("out of time at step %d of %d; run again to go on", self.step, self.config.steps)
            return self.result()

    def _train(self, is_over: Callable[[], bool]) -> None:
        with tqdm(total=self.config.steps, initial=self.step, desc="codec", unit="step", smoothing=0.02) as bar:
            while self.step < self.config.steps and not is_over():
                self._report(self.train_step(), bar)
                bar.update()
                if self._checkpointer.due():
                    self.save()

    def _feature_networks(self) -> list[Blocks]:
        return feature_networks(
            self.config,
            self.images,
            self._normalization,
            self.workdir / "features",
            device=self.device,
            flips=self._flips,
        )

    def result(self) -> Codec:
        """The moving average as it is now, its weights rounded; written to `generator/` too."""
        codec = copy.deepcopy(self.state.average_codec).eval().requires_grad_(False)
        if self.step <= self.config.joint_steps:
            codec.round_weights(self.config.steps_per_deviation)
        save_generator(self.workdir / "generator", codec)
        return codec

    def train_step(self) -> torch.Tensor:
        """One update; mean squared error, feature distance and bytes an image before it."""
        config, state, step = self.config, self.state, self.step
        joint = step < config.joint_steps
        if step == config.joint_steps:
            state.freeze_encoder()
        if self._losses is None:
            self._losses = torch.compile(self._compute, dynamic=False) if config.compile else self._compute
        indices, log_step, noise = self._draw(step)
        images, labels = self.images.unit_batch(indices, 0)
        features = self._features[step % len(self._features)] if self._features else None
        loss, parts = self._losses(images, labels, log_step, noise, features, joint)
        if not loss.isfinite():
            kept = self._checkpointer.describe_saved()
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; {kept}; lower lr")
        state.optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.learned(), _LARGEST_GRADIENT)
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate(step) * group["share"]
        state.optimizer.step()
        state.update_average(step)
        self.step += 1
        return parts

    def _draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The images of a step, the logarithm of the step each is coded with, and noise of the width of rounding."""
        config, size = self.config, len(self.images)
        rows = torch.arange(config.batch_size)
        chances = draws.uniform(config.seed, step, rows, 1, stream=Stream.CODEC_ORDER).squeeze(1)
        indices = (chances.double() * size).long().clamp(max=size - 1)
        numbers = draws.uniform(config.seed, step, rows, 1 + config.codec.latent_dim, stream=Stream.CODEC_NOISE)
        low, high = math.log(config.lowest_step), math.log(config.highest_step)
        noise = numbers[:, 1:].view(-1, config.codec.channels, *config.codec.map_size) - 0.5
        return indices, (low + numbers[:, 0] * (high - low)).to(self.device), noise.to(self.device)

    def _compute(
        self,
        unit_images: torch.Tensor,
        labels: torch.Tensor,
        log_step: torch.Tensor,
        noise: torch.Tensor,
        features: Blocks | None,
        joint: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch, and its parts: mean squared error, feature distance, bytes an image."""
        config, codec = self.config, self.state.codec
        assert codec.encoder is not None
        images, step = unit_to_signed(unit_images), log_step.exp()[:, None, None, None]
        distance = images.new_zeros(())
        with autocast(self.device, config.precision):
            values = codec.encoder(images, log_step).float() / step
            values = values if joint else values.detach()
            rounded = quantize_straight_through(values, config.codec.dead_zone)
            decoded = codec.decoder(rounded * step, log_step).float()
            mean, log_scale = self.state.prior((rounded * step).detach(), labels, log_step)
            if features is not None:
                standardize = self._normalization.standardize
                distance = feature_distance(features, standardize(unit_images), standardize(signed_to_unit(decoded)))
        seen = values + noise if joint else rounded.detach()  # noise gives rounding a gradient
        rate = bits(seen, mean, log_scale).sum(dim=(1, 2, 3))
        errors = (decoded - images).square().mean(dim=(1, 2, 3))
        weights = (-log_step).exp()
        weights = weights / weights.mean()  # or images at the widest steps would count most
        fidelity = (weights * errors).mean() + config.feature_weight * distance
        loss = fidelity + config.rate_weight * (weights * (2 * log_step).exp() * rate).mean()
        return loss, torch.stack([errors.mean(), distance, rate.mean() / 8]).detach()

    def _report(self, parts: torch.Tensor, bar: "tqdm[Any]") -> None:
        """Losses, pictures and measurements for whoever looks on, where they are due."""
        config = self.config
        if self.step % config.log_steps == 0:
            error, distance, rate = parts.tolist()
            fidelity = _decibels(error)
            self._log.write(self.step, psnr=fidelity, feature_distance=distance, bytes_an_image=rate)
            bar.set_postfix_str(f"{fidelity:.2f} dB {rate:.1f} bytes", refresh=False)
        if self.step % config.preview_steps == 0:
            self.save_pairs()
        if self.step % config.measure_steps == 0:
            for step in (config.lowest_step, 1.0, config.highest_step):
                fidelity, rate = self.measure(step)
                self._log.write(self.step, width=step, average_psnr=fidelity, average_bytes=rate)

    @torch.no_grad()
    def measure(self, step: float) -> tuple[float, float]:
        """Decibels and bytes an image, by the prior, of the moving average on some training images."""
        codec, prior = self.state.average_codec, self.state.average_prior
        assert codec.encoder is not None
        every = max(len(self.images) // _MEASURED_IMAGES, 1)
        error, total, indices = 0.0, 0.0, torch.arange(0, len(self.images), every)
        for part in torch.split(indices, 250):
            unit_images, labels = self.images.unit_batch(part, 0)
            images, log_step = unit_to_signed(unit_images), torch.full((len(part),), math.log(step), device=self.device)
            with autocast(self.device, self.config.precision):
                codes = quantize(codec.encoder(images, log_step).float() / step, self.config.codec.dead_zone)
                decoded = codec.decoder(codes * step, log_step).float().clamp(-1, 1)
                mean, log_scale = prior(codes * step, labels, log_step)
            total += float(bits(codes, mean, log_scale).sum()) / 8
            error += float((decoded - images).square().mean(dim=(1, 2, 3)).sum())
        return _decibels(error / len(indices)), total / len(indices)

    @torch.no_grad()
    def save_pairs(self) -> None:
        """Write rows of real images, each above what it decodes to at a step of 1, to `pairs/`."""
        every = max(len(self.images) // (5 * _PREVIEW_COLUMNS), 1)
        indices = torch.arange(0, len(self.images), every)[: 5 * _PREVIEW_COLUMNS]
        images, labels = self.images.unit_batch(indices, 0)
        codec = self.state.average_codec
        decoded = signed_to_unit(codec(codec.encode(images, labels), labels))
        rows = [
            row
            for pair in zip(torch.split(images, _PREVIEW_COLUMNS), torch.split(decoded, _PREVIEW_COLUMNS), strict=True)
            for row in pair
        ]
        with write_atomically(self.workdir / "pairs" / f"{self.step:07d}.png") as path:
            image_grid(torch.cat(rows), columns=_PREVIEW_COLUMNS).save(path)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self._checkpointer.save(self.state.tensors(), self.step)

    def _resume(self) -> int:
        """Take the state from the checkpoint, if there is one; the steps done."""
        found = self._checkpointer.load(self.config.steps)
        if found is None:
            return 0
        if found.step > self.config.joint_steps:
            self.state.freeze_encoder()
        fill(self.state.tensors(), found.tensors)
        return found.step


def _decibels(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error of signed images."""
    return 10 * math.log10(4 / max(error, 1e-12))
