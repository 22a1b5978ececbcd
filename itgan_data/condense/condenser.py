"""The Condenser: from a frozen generator and a real data set to a set of learned latents.

Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Algorithm 1.
"""

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..augmentation import DSA, Compose
from ..config import computing
from ..datasets import load_images
from ..generators.contract import probe_images
from ..images import class_names_of
from ..latents.stored import LatentSet
from ..running.checkpointer import Checkpointer, saved_step
from ..running.shards import Shard, Team
from ..running.stopping import OutOfTimeError, TimeLimit
from .config import CondenserConfig
from .initializing import Initializer
from .inversion import Embedding, Images
from .journal import summary_writer
from .learning import Learner
from .network_source import FreshSource, NetworkSource, PoolSource
from .objective import Batch, DistributionObjective, GradientObjective, Matching, Objective
from .pool import EmbeddingPool, build_pool
from .selection import indices_by_class
from .units import MAY_DIFFER, Unit, check_folders, check_real_images, choose, frozen, identity, more_units, units_of

__all__ = ["Condenser", "OutOfTimeError", "Shard", "Unit"]


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
        workdir: where the stages are kept; without one they are lost with the object. For one run at a time, or the
            ranks or shards of one.
        device: by default CUDA where there is one.

    Raises:
        ValueError: a generator whose images are not finite or do not depend on its latents, images or classes that do
            not fit it, too few images in a class, or a workdir with units of work of another run.
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
        probe_images(self.generator)
        real_images = load_images(real_dataset, image_shape=tuple(generator.image_shape))  # type: ignore[arg-type]
        names = getattr(generator, "class_names", None)  # of a generator that was saved with them
        if names is not None and class_names_of(real_dataset) is not None:
            real_images = real_images.in_order_of(names)
        check_real_images(real_images, generator, config)
        self.by_class = indices_by_class(real_images)
        self.chosen = choose(real_images, config.images_per_class, config.seed)
        if config.tensorboard:
            summary_writer()  # known to be there before any work
        self._is_temporary = workdir is None
        if workdir is None:
            workdir = tempfile.mkdtemp(prefix="condenser-")
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)
        self.workdir = Path(workdir)
        self.real_images = real_images.to(self.device)
        self._work = {**asdict(config), **identity(generator), "data": self.real_images.fingerprint}
        check_folders(self.workdir, self._work)
        self._begin(Shard.of_this_rank(), None)

    def run(self, max_minutes: float | None = None) -> LatentSet:
        """Do what is left to do.

        Under torchrun, or in a process group, the ranks share the work out: unit k is learned by rank k % WORLD_SIZE,
        and so are the networks of the pool and the chunks of images to invert. They wait for each other by looking
        into `workdir`, so all have to see the same one. A rank that dies is started again with the others
        (`torchrun --max-restarts 3`), and each goes on from its own checkpoints::

            device = f"cuda:{os.environ['LOCAL_RANK']}"
            latents = Condenser(generator, real_images, config, workdir="runs/work", device=device).run()

        Args:
            max_minutes: raise `OutOfTimeError` about then, with the work saved. Under torchrun catch it and end with
                exit status 0: another one makes it stop or restart the other ranks.

        Returns:
            The learned latents on the CPU, in a fixed random order of classes, with the real image each stands
            for in `source_index`, the same on every rank. They are also in `workdir/latents.safetensors`, and those
            that matching started from in `workdir/inversion.safetensors`, both in float32 and written by rank 0.

        Raises:
            OutOfTimeError: `max_minutes` are over; run again to go on.
            ValueError: `workdir` holds work of another configuration, or `band` holds no network.
            FloatingPointError: a loss, a latent or a network is not finite, or a loss exploded.
        """
        units = self.units
        if self.config.steps:
            self._warn_if_idle(Shard.of_this_rank())
        self.prepare(max_minutes)
        if self.config.steps == 0:
            return self._join([self._learn(unit) for unit in units])
        folders = [self.workdir / unit.name for unit in units]
        return self._join(self._team.gather(folders, self.config.steps, lambda place: self._learn(units[place])))

    def prepare(self, max_minutes: float | None = None) -> LatentSet:
        """Do what is left of the stages before matching: the pool of networks, and the latents to start from.

        What `run` begins with, and what has to be done before `run_shard`. Arguments and errors as for `run`; ranks
        share this work too.

        Returns:
            The `start`.
        """
        self._begin(Shard.of_this_rank(), max_minutes)
        if self.config.steps:
            _ = self._networks  # so that a band without networks is known before inversion
        return self.start

    def run_shard(self, shard: Shard | str, max_minutes: float | None = None) -> None:
        """Learn one of several shares of the units, for the jobs of an array; `merge` joins what they have learned.

        The jobs run at the same time or one after the other, in any order, and wait for nothing::

            Condenser(..., workdir="runs/work").prepare()             # one job, before the others
            Condenser(..., workdir="runs/work").run_shard("3/16")     # sixteen jobs, from 1/16 to 16/16
            latents = Condenser(..., workdir="runs/work").merge()     # one job, after them

        The preparation has a job of its own: jobs of an array cannot agree on which of them does it. One that waited
        might hold the place of the one it waits for, and not every shared file system has locks that end with a job.

        Args:
            shard: which, such as "3/16", counted from 1.
            max_minutes: as for `run`.

        Raises:
            OutOfTimeError, FloatingPointError: as for `run`.
            ValueError: as for `run`; there is no such shard; or `prepare` was not run before.
        """
        shard = Shard.parse(shard) if isinstance(shard, str) else shard
        self._begin(None, max_minutes)
        self._warn_if_idle(shard)
        for place in shard.places(len(self.units)):
            self._learn(self.units[place])

    def merge(self) -> LatentSet:
        """Join what all shards have learned; returned and kept as by `run`.

        Raises:
            ValueError: units are not finished, and which; or `workdir` holds work of another configuration.
        """
        self._begin(None, None)
        steps = {unit.name: saved_step(self.workdir / unit.name) or 0 for unit in self.units}
        missing = [f"{name} (step {step})" for name, step in steps.items() if step != self.config.steps]
        if missing and self.config.steps:
            raise ValueError(
                f"{len(missing)} of {len(steps)} units in {self.workdir} are not at step {self.config.steps}: "
                f"{', '.join(missing)}; run their shards again"
            )
        return self._join([self._learn(unit) for unit in self.units])

    @property
    def units(self) -> list[Unit]:
        """The work after the start in the order in which `run` joins it: the blocks of a group one after the other."""
        return units_of(self.config, *self.chosen.shape)

    @cached_property
    def start(self) -> LatentSet:
        """The latents that matching starts from, class after class; also in `workdir/inversion.safetensors`."""
        indices, config = self.chosen.flatten(), self.config
        initializer = Initializer(
            self.generator,
            self._generate,
            self._best_features,
            self.real_images,
            config,
            work=self._work,
            workdir=self.workdir,
            team=self._team,
        )
        latents = initializer.latents(indices)
        labels = torch.arange(len(self.chosen)).repeat_interleave(self.chosen.shape[1])
        start = LatentSet(latents, labels, source_index=indices)
        if self._team.leads:
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
            team=self._team,
        )

    @cached_property
    def _generate(self) -> Images:
        return self._computing(self.generator)

    @cached_property
    def _pool_embed(self) -> Embedding:
        return self._computing(self._pool.network.embed)

    def _best_features(self) -> Embedding:
        self._pool.load_best()
        return self._pool_embed

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
        config = self.config
        return computing(function, self.device, config.precision, compiled=config.compile and compiled)

    def _learn(self, unit: Unit) -> LatentSet:
        """Learn a unit, or read it where it is finished."""
        num_classes, count = self.chosen.shape
        rows = torch.arange(num_classes * count).view(num_classes, count)
        rows = rows[unit.classes.start : unit.classes.stop, unit.places.start : unit.places.stop]
        if self.config.steps == 0:
            return self.start.select(rows.flatten())
        sources, classes = self.chosen.flatten()[rows], torch.tensor(unit.classes)
        checkpointer = Checkpointer(self.workdir / unit.name, self._work, self._team.time_limit, may_differ=MAY_DIFFER)
        found = checkpointer.load() if saved_step(checkpointer.folder) == self.config.steps else None
        if found is not None:
            learned = found.tensors["latents"].flatten(0, 1)
        else:
            networks, latents = self._networks, self.start.latents[rows].to(self.device)
            learner = Learner(
                Batch(latents, sources, classes),
                unit.group,
                objective=self._objective,
                networks=networks,
                generate=self._generate,
                config=self.config,
                checkpointer=checkpointer,
                class_names=self.real_images.class_names,
            )
            learned = learner.run().flatten(0, 1).cpu()
        return LatentSet(learned, classes.repeat_interleave(len(unit.places)), source_index=sources.flatten())

    def _join(self, parts: list[LatentSet]) -> LatentSet:
        joined = LatentSet.concatenate(parts).shuffled()  # here alone: units are learned and kept in class order
        if self._team.leads:
            joined.save(self.workdir / "latents.safetensors", dtype=torch.float32)
        return joined

    def _warn_if_idle(self, shard: Shard) -> None:
        if not shard.places(len(self.units)):
            remedy = more_units(self.config)
            message = f"share {shard} has nothing to match, as there are {len(self.units)} units of work; {remedy}"
            warnings.warn(message, stacklevel=3)

    def _begin(self, shard: Shard | None, max_minutes: float | None) -> None:
        if self._is_temporary and shard is not None and shard.count > 1:
            raise ValueError("ranks share their work through the workdir; give one that all of them see")
        time_limit = TimeLimit(max_minutes, checkpoint_minutes=self.config.checkpoint_minutes, workdir=self.workdir)
        self._team = Team(shard, time_limit)
