"""The Condenser: from a frozen generator and a real data set to a set of learned latents.

Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Algorithm 1.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..augmentation import DSA, Compose
from ..images import load_images
from ..latents import LatentSet
from ..precision import autocast
from .config import CondenserConfig
from .embedding import EmbeddingPool, build_pool
from .inversion import Embedding, Images, invert, starting_latents, train_encoder
from .journal import summary_writer
from .keeping import Budget, Keeper, OutOfTimeError
from .learning import Learner
from .network_source import FreshSource, NetworkSource, PoolSource
from .objective import Batch, DistributionObjective, GradientObjective, Matching, Objective
from .preparation import (
    AFTER_INVERSION,
    MAY_DIFFER,
    check_fit,
    choose,
    determining,
    frozen,
    identity,
    indices_by_class,
)

__all__ = ["Condenser", "OutOfTimeError", "Unit"]


@dataclass(frozen=True)
class Unit:
    """Latents that are learned independently of all others: a group of some classes."""

    name: str
    """Of its folder in the workdir."""
    group: int
    classes: range
    places: range
    """Which of each class's latents."""


class Condenser:
    """Learns latents, and with them images, by which networks learn what the real images would teach them.

    It knows one thing: latents, a generator that renders them, an objective, and a source of embedding networks; the
    methods of the literature are configurations (see `methods`). The stages (pool of embedding networks, starting
    latents, each unit of latents) are kept in `workdir` as they are finished, a unit also every few minutes. Every
    random number is a function of (seed, group, class, step), so running again after a kill goes on where it was and
    ends with the latents of an uninterrupted run.

    Args:
        generator: any module called as `generator(latents, labels) -> signed images`, with `latent_dim`, `num_classes`
            and `image_shape`; it is left as it is. If it has `encode(unit_images, labels) -> latents`, inversion is
            that, else an encoder is trained and Adam does the rest.
        real_dataset: anything torchvision-like; read into memory once.
        config: how to condense.
        workdir: where the stages are kept; without one they are lost with the object.
        device: by default CUDA where there is one.

    Raises:
        ValueError: images or classes that do not fit the generator, or too few images in a class.
        RuntimeError: `tensorboard` without TensorBoard.
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
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = frozen(generator, self.device)
        real_images = load_images(real_dataset, image_shape=tuple(generator.image_shape))  # type: ignore[arg-type]
        check_fit(real_images, generator, config)
        self.by_class = indices_by_class(real_images)
        self.chosen = choose(self.by_class, config.images_per_class, config.seed)
        if config.tensorboard:
            summary_writer()  # known to be there before any work
        if workdir is None:
            workdir = tempfile.mkdtemp(prefix="condenser-")
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)
        self.workdir = Path(workdir)
        self.real_images = real_images.to(self.device)
        self._work = {**determining(config), **identity(generator), "data": self.real_images.fingerprint}
        self._budget = self._new_budget(None)

    def run(self, max_minutes: float | None = None) -> LatentSet:
        """Do what is left to do.

        Args:
            max_minutes: raise `OutOfTimeError` about then, with the work saved.

        Returns:
            The learned latents on the CPU, class after class within each group, with the real image each stands
            for in `source_index`. They are also in `workdir/latents.safetensors`, and those that matching started from
            in `workdir/inversion.safetensors`, both in float32.

        Raises:
            OutOfTimeError: `max_minutes` are over; run again to go on.
            ValueError: `workdir` holds work of another configuration, or `band` holds no network.
            FloatingPointError: a loss is not finite or exploded.
        """
        self._budget = self._new_budget(max_minutes)
        learned = LatentSet.concatenate([self._learn(unit) for unit in self.units])
        learned.save(self.workdir / "latents.safetensors", dtype=torch.float32)
        return learned

    def learn(self, unit: Unit, max_minutes: float | None = None) -> LatentSet:
        """Learn one of `units`, or read it where it is finished; the stages before it too. Arguments as for `run`."""
        self._budget = self._new_budget(max_minutes)
        return self._learn(unit)

    @property
    def units(self) -> list[Unit]:
        """The work after the start in the order in which `run` joins it: the blocks of a group one after the other."""
        config, (num_classes, count) = self.config, self.chosen.shape
        size = count if config.group_size is None or config.regroup else config.group_size
        block = config.class_block or num_classes
        groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
        blocks = [range(first, min(first + block, num_classes)) for first in range(0, num_classes, block)]
        suffixes = [f"-classes-{classes[0]:04d}" if config.class_block else "" for classes in blocks]
        return [
            Unit(f"group-{group:04d}{suffix}", group, classes, places)
            for group, places in enumerate(groups)
            for classes, suffix in zip(blocks, suffixes, strict=True)
        ]

    @cached_property
    def start(self) -> LatentSet:
        """The latents that matching starts from, class after class; also in `workdir/inversion.safetensors`."""
        indices, config = self.chosen.flatten(), self.config
        if config.initialize == "normal":
            latents = self._normal_latents(indices)
        elif hasattr(self.generator, "encode"):
            latents = self._encoded_latents(indices)
        else:
            latents = self._inverted_latents(indices)
        labels = torch.arange(len(self.chosen)).repeat_interleave(self.chosen.shape[1])
        start = LatentSet(latents, labels, source_index=indices)
        start.save(self.workdir / "inversion.safetensors", dtype=torch.float32)
        return start

    @cached_property
    def _pool(self) -> EmbeddingPool:
        return build_pool(
            self.real_images,
            self.config.pool,
            normalization=self.config.normalization,
            seed=self.config.seed,
            workdir=self.workdir / "pool",
            budget=self._budget,
        )

    @cached_property
    def _generate(self) -> Images:
        return self._computing(self.generator)

    @cached_property
    def _pool_embed(self) -> Embedding:
        return self._computing(self._pool.network.embed)

    @cached_property
    def _networks(self) -> NetworkSource:
        config = self.config
        if config.networks is None:
            pool = self._pool if config.band is None else self._pool.within(config.band)
            return PoolSource(pool, config.seed)
        return FreshSource(
            config.networks,
            self.real_images.num_classes,
            self.real_images.image_shape,
            augment=DSA(config.strategy) if config.strategy else Compose(),
            seed=config.seed,
            device=self.device,
        )

    @cached_property
    def _objective(self) -> Objective:
        config, networks = self.config, self._networks
        matching = Matching(self._generate, networks, self.real_images, self.by_class, config)
        if config.objective == "gradient":
            return GradientObjective(matching, self._computing(networks.network, compiled=False))
        embed = self._pool_embed if config.networks is None else self._computing(networks.network.embed)
        return DistributionObjective(matching, embed)

    def _computing(
        self, function: Callable[..., torch.Tensor], *, compiled: bool = True
    ) -> Callable[..., torch.Tensor]:
        """`function` in the configured precision, compiled if that is asked for, with float32 results."""
        compute = torch.compile(function) if self.config.compile and compiled else function

        def call(*arguments: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, self.config.precision):
                return compute(*arguments).float()

        return call

    def _normal_latents(self, indices: torch.Tensor) -> torch.Tensor:
        chosen = self.real_images.select(indices.to(self.device))
        return starting_latents(self.generator, None, chosen, self.config.inversion, seed=self.config.seed).cpu()

    @torch.no_grad()
    def _encoded_latents(self, indices: torch.Tensor) -> torch.Tensor:
        """By the generator's own encoder."""
        parts = torch.split(indices, self.config.inversion.batch_size)
        encode: Callable[..., torch.Tensor] = self.generator.encode  # type: ignore[assignment]
        return torch.cat([encode(*self.real_images.unit_batch(part)).cpu() for part in parts])

    def _inverted_latents(self, indices: torch.Tensor) -> torch.Tensor:
        """Invert the chosen images, in chunks that are kept as they are finished."""
        config = self.config.inversion
        if config.steps:
            self._pool.load_best()
        work = {name: value for name, value in self._work.items() if name not in AFTER_INVERSION}
        folder = self.workdir / "inversion"
        keeper = Keeper(folder, work, self._budget, may_differ=(*MAY_DIFFER, *AFTER_INVERSION))
        found = keeper.load()
        if found is None:
            start = self._starting_latents(indices)
            latents = start[:0]
            keeper.save({"start": start, "latents": latents}, 0)
            shutil.rmtree(self.workdir / "encoder", ignore_errors=True)
        else:
            start, latents = found.tensors["start"], found.tensors["latents"]
        if config.steps == 0:
            return start
        done, loss = len(latents), 0.0
        with tqdm(total=len(indices), initial=done, desc="inversion", unit="image") as bar:
            for first in range(done, len(indices), config.batch_size):
                places = slice(first, first + config.batch_size)
                inverted, losses = invert(
                    self._generate,
                    self._pool_embed,
                    self.real_images.select(indices[places].to(self.device)),
                    start[places].to(self.device),
                    config,
                    normalization=self.config.normalization,
                )
                loss += float(losses.sum())
                latents = torch.cat([latents, inverted.cpu()])
                keeper.save({"start": start, "latents": latents}, len(latents))
                bar.update(len(inverted))
                bar.set_postfix_str(f"loss {loss / (len(latents) - done):.4f}")
                self._budget.check()
        return latents

    def _starting_latents(self, indices: torch.Tensor) -> torch.Tensor:
        config, seed = self.config.inversion, self.config.seed
        encoder = None
        if config.encoder_steps:
            names = ("encoder_steps", "encoder_batch_size", "lr_encoder")
            work = {**{name: getattr(config, name) for name in names}, **identity(self.generator), "seed": seed}
            keeper = Keeper(self.workdir / "encoder", work, self._budget)
            encoder = train_encoder(self.generator, config, seed=seed, device=self.device, keeper=keeper)
        chosen = self.real_images.select(indices.to(self.device))
        return starting_latents(self.generator, encoder, chosen, config, seed=seed).cpu()

    def _learn(self, unit: Unit) -> LatentSet:
        num_classes, count = self.chosen.shape
        rows = torch.arange(num_classes * count).view(num_classes, count)
        rows = rows[unit.classes.start : unit.classes.stop, unit.places.start : unit.places.stop]
        if self.config.steps == 0:
            return self.start.select(rows.flatten())
        networks = self._networks  # before inversion, so that a band without networks is known before it
        start = self.start.select(rows.flatten())
        latents = start.latents.to(self.device).view(*rows.shape, -1)
        learner = Learner(
            Batch(latents, self.chosen.flatten()[rows], torch.tensor(unit.classes)),
            unit.group,
            objective=self._objective,
            networks=networks,
            generate=self._generate,
            config=self.config,
            keeper=Keeper(self.workdir / unit.name, self._work, self._budget, may_differ=MAY_DIFFER),
            class_names=self.real_images.class_names,
        )
        learned = learner.run().flatten(0, 1).cpu()
        return LatentSet(learned, start.labels, source_index=start.source_index)

    def _new_budget(self, max_minutes: float | None) -> Budget:
        return Budget(max_minutes, checkpoint_minutes=self.config.checkpoint_minutes, workdir=self.workdir)
