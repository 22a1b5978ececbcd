"""The Condenser: from a frozen generator and a real data set to a set of learned latents.

Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Algorithm 1.
"""

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..augmentation import DSA, Compose
from ..config import computing
from ..datasets import class_names_of, load_images
from ..generators.contract import probe_images
from ..latents.stored import LatentSet
from ..running.checkpoint import Checkpointer, State
from ..running.lock import workdir_lock
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
from .work import MAY_DIFFER, WorkUnit, check_folders, check_real_images, choose, frozen, identity, more_units, units_of

__all__ = ["Condenser", "OutOfTimeError", "Shard", "WorkUnit"]


class Condenser:
    """Learns latents whose images teach networks what the real images would.

    It combines four parts: latents, a generator that turns them into images, an objective, and a source of embedding
    networks. The methods of the literature are choices of these (see `methods`).

    The work has stages: a pool of trained networks, the latents to start from, then units of latents that are learned
    independently. `workdir` keeps every finished stage, and every few minutes the one that is being worked on. Random
    numbers depend only on (seed, group, class, step). So a run that was killed goes on when it is started again, and
    ends with the same latents as one that was not.

    Args:
        generator: any module called as `generator(latents, labels) -> signed images`, with `latent_dim`, `num_classes`
            and `image_shape`; it is left as it is. If it has `encode(unit_images, labels) -> latents`, inversion is
            that, else an encoder is trained and Adam does the rest.
        real_dataset: anything torchvision-like; read into memory once.
        config: how to condense.
        workdir: where the stages are kept; without one they are lost with the object. One run works there at a time,
            alone or with its ranks or shards.
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
        self._team = self._team_of(Shard.of_this_process(), None)

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
            KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; in the middle of a stage, its last step is saved.
            RuntimeError: another run is at work in `workdir`.
        """
        if self.config.steps:
            self._warn_if_idle(Shard.of_this_process())
        with self._working(max_minutes):
            self._prepared()
            return self._join(self._learned())

    def prepare(self, max_minutes: float | None = None) -> LatentSet:
        """Do what is left of the stages before matching: the pool of networks, and the latents to start from.

        What `run` begins with, and what has to be done before `run_shard`. Arguments and errors as for `run`; ranks
        share this work too.

        Returns:
            The latents that matching starts from, class after class; also in `workdir/inversion.safetensors`.
        """
        with self._working(max_minutes):
            return self._prepared()

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
        self._warn_if_idle(shard)
        with self._working(max_minutes, shard):
            units = self._pieces()
            Team(shard, self._team.time_limit).make_own(units, self.config.steps, lambda k: self._learn(k, units[k]))

    def merge(self) -> LatentSet:
        """Join what all shards have learned; returned and kept as by `run`.

        Raises:
            ValueError: units are not finished, and which; or `workdir` holds work of another configuration.
        """
        self._team = self._team_of(None, None)
        return self._join(self._learned())

    @property
    def work_units(self) -> list[WorkUnit]:
        """The work after the start in the order in which `run` joins it: the blocks of a group one after the other."""
        return units_of(self.config, *self.chosen.shape)

    @contextmanager
    def _working(self, max_minutes: float | None, shard: Shard | None = None) -> Iterator[None]:
        """Around a call that works in the workdir, as one of a team or, with `shard`, as a job that waits for none."""
        own = shard or Shard.of_this_process()
        self._team = self._team_of(None if shard else own, max_minutes)
        with workdir_lock(self.workdir, own):
            yield

    def _team_of(self, shard: Shard | None, max_minutes: float | None) -> Team:
        if self._is_temporary and shard is not None and shard.count > 1:
            raise ValueError("ranks share their work through the workdir; give one that all of them see")
        return Team(shard, TimeLimit(max_minutes, self.workdir))

    def _prepared(self) -> LatentSet:
        """The start, but first the networks: an empty band is an error that is better known before inversion."""
        if self.config.steps:
            _ = self._networks
        return self._start

    # The stages are cached over several calls, although each call has a team of its own: what a stage holds is the
    # same, bit for bit, whichever process made a part of it, and none keeps the team. One that failed is not cached.

    @cached_property
    def _start(self) -> LatentSet:
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
            checkpoint_minutes=self.config.checkpoint_minutes,
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

    def _rows(self, unit: WorkUnit) -> torch.Tensor:
        """`[num_classes, n]`: where the latents of a unit lie in the start."""
        rows = torch.arange(self.chosen.numel()).view(self.chosen.shape)
        return rows[unit.classes.start : unit.classes.stop, unit.columns.start : unit.columns.stop]

    def _pieces(self) -> list[Checkpointer]:
        """The checkpoint of each unit."""
        minutes, time_limit = self.config.checkpoint_minutes, self._team.time_limit
        piece = partial(Checkpointer, work=self._work, minutes=minutes, time_limit=time_limit, may_differ=MAY_DIFFER)
        return [piece(self.workdir / unit.name) for unit in self.work_units]

    def _learned(self) -> list[torch.Tensor]:
        """The latents of all units, each `[num_classes * n, latent_dim]`."""
        if self.config.steps == 0:
            return [self._start.latents[self._rows(unit).flatten()] for unit in self.work_units]
        pieces = self._pieces()
        units = self._team.gather(pieces, self.config.steps, lambda k: self._learn(k, pieces[k]))
        return [unit["latents"].flatten(end_dim=-2).cpu() for unit in units]

    def _learn(self, number: int, checkpointer: Checkpointer) -> State:
        unit = self.work_units[number]
        rows, networks = self._rows(unit), self._networks
        latents = self._start.latents[rows].to(self.device)
        learner = Learner(
            Batch(latents, self.chosen.flatten()[rows], torch.tensor(unit.classes)),
            unit.group,
            objective=self._objective,
            networks=networks,
            generate=self._generate,
            config=self.config,
            checkpointer=checkpointer,
            class_names=self.real_images.class_names,
        )
        return {"latents": learner.run()}

    def _join(self, learned: list[torch.Tensor]) -> LatentSet:
        """The latents of all units as the result of the run, which the leader keeps."""
        rows = torch.cat([self._rows(unit).flatten() for unit in self.work_units])
        labels = rows // self.chosen.shape[1]
        joined = LatentSet(torch.cat(learned), labels, source_index=self.chosen.flatten()[rows])
        joined = joined.shuffled()  # here alone: units are learned and kept in class order
        if self._team.leads:
            joined.save(self.workdir / "latents.safetensors", dtype=torch.float32)
        return joined

    def _warn_if_idle(self, shard: Shard) -> None:
        if not shard.deal(len(self.work_units)):
            remedy = more_units(self.config)
            message = f"share {shard} has nothing to match, as there are {len(self.work_units)} units of work; {remedy}"
            warnings.warn(message, stacklevel=3)
