"""The Condenser: from a frozen generator and a real data set to a set of learned latents.

Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Algorithm 1.
"""

import logging
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import draws
from ..checkpoint import load_checkpoint, save_checkpoint
from ..files import fingerprint
from ..images import LabeledImages, load_images
from ..latents import LatentSet
from ..precision import autocast
from .config import CondenserConfig
from .embedding import EmbeddingPool, build_pool
from .inversion import Embedding, Images, invert, starting_latents, train_encoder
from .objective import MatchingObjective

logger = logging.getLogger(__name__)

_CHOICE = 12  # stream of `draws` that chooses the real images
# A run may be prolonged, and saved more or less often; its steps stay the same.
_MAY_DIFFER = ("steps", "checkpoint_minutes")
# What inversion does not depend on: matching can be tried with other values in the same workdir, its groups removed.
_AFTER_INVERSION = (
    "group_size",
    "lr_latents",
    "regularizer_weight",
    "real_batch_size",
    "strategy",
)


class OutOfTimeError(RuntimeError):
    """`max_minutes` are over; the work so far is in the workdir."""


class Condenser:
    """Learns one latent per chosen real image: inversion (Eq. 1), then distribution matching (Eq. 2-4).

    The stages (pool of embedding networks, inversion, each group of latents) are kept in `workdir` as they are
    finished, a group also every few minutes. Every random number is a function of (seed, group, step), so running
    again after a kill goes on where it was and ends with the latents of an uninterrupted run.

    Args:
        generator: any frozen module called as `generator(latents, labels) -> signed images`, with `latent_dim`,
            `num_classes` and `image_shape`.
        real_dataset: anything torchvision-like; read into memory once.
        config: how to condense.
        workdir: where the stages are kept; without one they are lost with the object.
        device: by default CUDA where there is one.

    Raises:
        ValueError: images or classes that do not fit the generator, or too few images in a class.
    """

    def __init__(
        self,
        generator: nn.Module,
        real_dataset: Dataset[Any],
        config: CondenserConfig,
        *,
        workdir: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.config = config
        if workdir is None:
            workdir = tempfile.mkdtemp(prefix="condenser-")
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)
        self.workdir = Path(workdir)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = generator.to(self.device).eval().requires_grad_(False)
        real_images = load_images(real_dataset, image_shape=tuple(generator.image_shape))  # type: ignore[arg-type]
        if real_images.num_classes != generator.num_classes:
            raise ValueError(
                f"the data set has {real_images.num_classes} classes and the generator {generator.num_classes}; "
                "use a generator that was trained on these classes"
            )
        self.real_images = real_images.to(self.device)
        self.by_class = _indices_by_class(real_images)
        self.chosen = _choose(self.by_class, config.images_per_class, config.seed)
        weights = fingerprint(generator.state_dict())
        self._work = {**asdict(config), "generator": weights, "data": self.real_images.fingerprint}
        self._deadline = math.inf

    def run(self, max_minutes: float | None = None) -> LatentSet:
        """Do what is left to do.

        Args:
            max_minutes: raise `OutOfTimeError` about then, with the work saved.

        Returns:
            The learned latents on the CPU, class after class within each group, with the real image each stands
            for in `source_index`. They are also in `workdir/latents.safetensors`, and what inversion gave in
            `workdir/inversion.safetensors`, both in float32.

        Raises:
            OutOfTimeError: `max_minutes` are over; run again to go on.
            ValueError: `workdir` holds work of another configuration.
            FloatingPointError: the loss is not finite.
        """
        self._deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        pool = build_pool(
            self.real_images,
            self.config.pool,
            normalization=self.config.normalization,
            seed=self.config.seed,
            workdir=self.workdir / "pool",
        )
        self._check_time(time.monotonic())
        generate, embed = self._computing(self.generator), self._computing(pool.network.embed)
        start = self._invert(generate, embed, pool)
        start.save(self.workdir / "inversion.safetensors", dtype=torch.float32)
        objective = MatchingObjective(generate, embed, pool, self.real_images, self.by_class, self.config)
        groups = [self._learn(group, start.select(rows), objective) for group, rows in enumerate(self._groups())]
        learned = LatentSet.concatenate(groups)
        learned.save(self.workdir / "latents.safetensors", dtype=torch.float32)
        return learned

    def _computing(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`function` in the configured precision, compiled if that is asked for, with float32 results."""
        compute = torch.compile(function) if self.config.compile else function

        def call(*arguments: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, self.config.precision):
                return compute(*arguments).float()

        return call

    def _invert(self, generate: Images, embed: Embedding, pool: EmbeddingPool) -> LatentSet:
        """Invert the chosen images, in chunks that are kept as they are finished."""
        config, folder = self.config, self.workdir / "inversion"
        indices = self.chosen.flatten()
        found = load_checkpoint(folder, config=self._work, may_differ=(*_MAY_DIFFER, *_AFTER_INVERSION))
        if found is None:
            start = self._starting_latents(indices)
            latents = start[:0]
            save_checkpoint(folder, {"start": start, "latents": latents}, step=0, config=self._work)
        else:
            start, latents = found.tensors["start"], found.tensors["latents"]
        pool.load_best()
        done, loss = len(latents), 0.0
        with tqdm(total=len(indices), initial=done, desc="inversion", unit="image") as bar:
            for first in range(done, len(indices), config.inversion.batch_size):
                places = slice(first, first + config.inversion.batch_size)
                inverted, losses = invert(
                    generate,
                    embed,
                    self.real_images.select(indices[places].to(self.device)),
                    start[places].to(self.device),
                    config.inversion,
                    normalization=config.normalization,
                )
                loss += float(losses.sum())
                latents = torch.cat([latents, inverted.cpu()])
                save_checkpoint(folder, {"start": start, "latents": latents}, step=len(latents), config=self._work)
                bar.update(len(inverted))
                bar.set_postfix_str(f"loss {loss / (len(latents) - done):.4f}")
                self._check_time(time.monotonic())
        labels = torch.arange(len(self.chosen)).repeat_interleave(self.chosen.shape[1])
        return LatentSet(latents, labels, source_index=indices)

    def _starting_latents(self, indices: torch.Tensor) -> torch.Tensor:
        config = self.config.inversion
        encoder = None
        if config.encoder_steps:
            encoder = train_encoder(self.generator, config, seed=self.config.seed, device=self.device)
        chosen = self.real_images.select(indices.to(self.device))
        return starting_latents(self.generator, encoder, chosen, config, seed=self.config.seed).cpu()

    def _groups(self) -> list[torch.Tensor]:
        """For each group, its rows of the inverted set: the same places of every class."""
        num_classes, count = self.chosen.shape
        rows = torch.arange(num_classes * count).view(num_classes, count)
        return [part.flatten() for part in torch.split(rows, self.config.group_size or count, dim=1)]

    def _learn(self, group: int, start: LatentSet, objective: MatchingObjective) -> LatentSet:
        """Learn the latents of one group from their inverted start."""
        config, folder = self.config, self.workdir / f"group-{group:04d}"
        latents = start.latents.to(self.device).clone().requires_grad_(True)
        optimizer = torch.optim.Adam([latents], lr=config.lr_latents)
        step = self._restore(folder, latents, optimizer)
        saved = time.monotonic()
        with tqdm(total=config.steps, initial=step, desc=f"group {group}", unit="step") as bar:
            while step < config.steps:
                loss, latents.grad = objective.gradient(latents, start, group=group, step=step)
                if not loss.isfinite():
                    raise FloatingPointError(
                        f"the loss is {float(loss)} at step {step} of group {group}; "
                        f"the last good state is in {folder}, lower lr_latents"
                    )
                optimizer.step()
                step += 1
                bar.update()
                bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
                now = time.monotonic()
                if step == config.steps or now > min(saved + 60 * config.checkpoint_minutes, self._deadline):
                    self._keep(folder, latents, optimizer, step)
                    saved = now
                self._check_time(now)
        return LatentSet(latents.detach().cpu(), start.labels, source_index=start.source_index)

    def _keep(self, folder: Path, latents: torch.Tensor, optimizer: torch.optim.Adam, step: int) -> None:
        state = optimizer.state[latents]
        tensors = {"latents": latents, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        save_checkpoint(folder, tensors, step=step, config=self._work)

    def _restore(self, folder: Path, latents: torch.Tensor, optimizer: torch.optim.Adam) -> int:
        """Fill `latents` and the optimiser from the checkpoint, if there is one; the steps done."""
        found = load_checkpoint(folder, config=self._work, may_differ=_MAY_DIFFER)
        if found is None:
            return 0
        if found.step > self.config.steps:
            raise ValueError(f"{folder} is at step {found.step}, beyond steps={self.config.steps}; raise steps")
        with torch.no_grad():
            latents.copy_(found.tensors["latents"])
        optimizer.state[latents] = {
            "step": torch.tensor(float(found.step)),
            "exp_avg": found.tensors["exp_avg"].to(self.device),
            "exp_avg_sq": found.tensors["exp_avg_sq"].to(self.device),
        }
        return found.step

    def _check_time(self, now: float) -> None:
        if now > self._deadline:
            raise OutOfTimeError(f"out of time; the work so far is in {self.workdir}, run again to go on")


def _indices_by_class(real_images: LabeledImages) -> list[torch.Tensor]:
    """The places of each class's images.

    Raises:
        ValueError: a class without images.
    """
    indices = [(real_images.labels == label).nonzero().squeeze(1).cpu() for label in range(real_images.num_classes)]
    for name, places in zip(real_images.class_names, indices, strict=True):
        if len(places) == 0:
            raise ValueError(f"class {name!r} has no images; expected at least one for each of the classes")
    return indices


def _choose(by_class: list[torch.Tensor], images_per_class: int | None, seed: int) -> torch.Tensor:
    """`[num_classes, images_per_class]` real images drawn without replacement.

    Raises:
        ValueError: a class has fewer.
    """
    smallest = min(len(indices) for indices in by_class)
    count = images_per_class or smallest
    if count > smallest:
        label = min(range(len(by_class)), key=lambda label: len(by_class[label]))
        raise ValueError(
            f"class {label} has {smallest} images, fewer than images_per_class={count}; lower images_per_class"
        )
    return torch.stack(
        [
            indices[draws.permutation(seed, label, len(indices), stream=_CHOICE)[:count]]
            for label, indices in enumerate(by_class)
        ]
    )
