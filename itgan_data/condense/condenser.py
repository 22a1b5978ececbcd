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
    """Learns latents whose images train networks as well as the real images do.

    Four parts work together: latents, a generator that turns them into images, an objective, and a source of embedding
    networks. The published methods are choices of these (see `methods`).

    There are three stages: a pool of networks is trained, initial latents are found, and units of latents are learned
    independently. `workdir` keeps finished stages, and the current one is saved every few minutes. Random numbers
    depend only on (seed, group, class, step), so a run that was killed ends, when it is started again, with the
    latents of an uninterrupted run.

    Args:
        generator: any module called as `generator(latents, labels) -> signed images`, with attributes `latent_dim`,
            `num_classes` and `image_shape`; it is not changed. Its `encode(unit_images, labels) -> latents` is used
            for inversion if there is one; otherwise an encoder is trained, and Adam refines what it predicts.
        real_dataset: a torchvision-like data set; read into memory once.
        config: how to condense.
        workdir: folder of checkpoints and results; by default a temporary one, removed with this object. One run works
            there at a time, alone or with its ranks or shards.
        device: by default CUDA where there is one.

    Raises:
        ValueError: the generator's images are not finite or do not depend on its latents, the data set does not fit
            the generator, a class has too few images, or `workdir` holds units of another configuration.
        RuntimeError: `config.tensorboard` is set, but TensorBoard is not installed.
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
        """Condense the data set, starting from what `workdir` holds already.

        Under torchrun, or in a process group, rank k % WORLD_SIZE learns unit k; the networks of the pool and the
        chunks of images to invert are divided in the same way. Ranks wait for each other's files in `workdir`, so all
        must see the same folder. A rank that dies is restarted with the others (`torchrun --max-restarts 3`), and each
        goes on from its own checkpoints::

            device = f"cuda:{os.environ['LOCAL_RANK']}"
            latents = Condenser(generator, real_images, config, workdir="runs/work", device=device).run()

        Args:
            max_minutes: after about this time, save and raise `OutOfTimeError`. Under torchrun catch it and end with
                exit status 0: at any other status torchrun stops or restarts the other ranks.

        Returns:
            The learned latents on the CPU, in a fixed random order, the same on every rank; `source_index` is the real
            image that each stands for. Rank 0 also writes them to `workdir/latents.safetensors`, and the initial
            latents to `workdir/inversion.safetensors`, both in float32.

        Raises:
            OutOfTimeError: `max_minutes` are over; run again to go on.
            ValueError: `workdir` holds work of another configuration, or no network lies in `band`.
            FloatingPointError: a loss, latent or weight is not finite, or a loss exploded.
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; the last step is saved.
            RuntimeError: another run works in `workdir`.
        """
        if self.config.steps:
            self._warn_if_idle(Shard.of_this_process())
        with self._working(max_minutes):
            self._prepared()
            return self._join(self._learned())

    def prepare(self, max_minutes: float | None = None) -> LatentSet:
        """Do the stages before matching: train the pool of networks, and find the initial latents.

        `run` begins with this, and `run_shard` requires it. For arguments and errors see `run`.

        Returns:
            The initial latents, sorted by class; also written to `workdir/inversion.safetensors`.
        """
        with self._working(max_minutes):
            return self._prepared()

    def run_shard(self, shard: Shard | str, max_minutes: float | None = None) -> None:
        """Learn one share of the units, as one job of an array; `merge` joins what the jobs have learned.

        Jobs may run at the same time or one after the other, in any order; none waits for another::

            Condenser(..., workdir="runs/work").prepare()             # one job, before the others
            Condenser(..., workdir="runs/work").run_shard("3/16")     # sixteen jobs, from 1/16 to 16/16
            latents = Condenser(..., workdir="runs/work").merge()     # one job, after them

        Args:
            shard: such as "3/16", counted from 1.
            max_minutes: see `run`.

        Raises:
            ValueError: there is no such shard, or `prepare` was not run before. For other errors see `run`.
        """
        # Preparing is a job of its own: a job that waited for another one could hold the very node which that one
        # needs, and not every shared file system has locks that end with their job.
        shard = Shard.parse(shard) if isinstance(shard, str) else shard
        self._warn_if_idle(shard)
        with self._working(max_minutes, shard):
            units = self._pieces()
            Team(shard, self._team.time_limit).make_own(units, self.config.steps, lambda k: self._learn(k, units[k]))

    def merge(self) -> LatentSet:
        """Join what all shards have learned; returns and writes what `run` does.

        Raises:
            ValueError: some units are not finished, or `workdir` holds work of another configuration.
        """
        self._team = self._team_of(None, None)
        return self._join(self._learned())

    @property
    def work_units(self) -> list[WorkUnit]:
        """The units that are learned independently, in order: all blocks of the first group, then of the second."""
        return units_of(self.config, *self.chosen.shape)

    @contextmanager
    def _working(self, max_minutes: float | None, shard: Shard | None = None) -> Iterator[None]:
        """Lock the workdir for a call: as one rank of a team or, with `shard`, as a job that waits for nobody."""
        own = shard or Shard.of_this_process()
        self._team = self._team_of(None if shard else own, max_minutes)
        with workdir_lock(self.workdir, own):
            yield

    def _team_of(self, shard: Shard | None, max_minutes: float | None) -> Team:
        if self._is_temporary and shard is not None and shard.count > 1:
            raise ValueError("ranks share their work through the workdir; give one that all of them see")
        return Team(shard, TimeLimit(max_minutes, self.workdir))

    def _prepared(self) -> LatentSet:
        if self.config.steps:
            _ = self._networks  # an empty band is an error, which is better known before inversion than after it
        return self._start

    # Cached over calls with different teams: a stage has the same bits whichever process made its parts, and does not
    # keep its team. A stage that failed is not cached.

    @cached_property
    def _start(self) -> LatentSet:
        indices = self.chosen.flatten()
        initializer = Initializer(
            generator=self.generator,
            generate=self._generate,
            features=self._best_features,
            real_images=self.real_images,
            config=self.config,
            work=self._work,
            workdir=self.workdir,
            team=self._team,
        )
        labels = torch.arange(len(self.chosen)).repeat_interleave(self.chosen.shape[1])
        start = LatentSet(initializer.latents(indices), labels, source_index=indices)
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
        return computing(function, self.device, self.config.precision, compiled=self.config.compile and compiled)

    def _rows(self, unit: WorkUnit) -> torch.Tensor:
        """`[num_classes, n]`: the rows of a unit's latents in `_start`."""
        rows = torch.arange(self.chosen.numel()).view(self.chosen.shape)
        return rows[unit.classes.start : unit.classes.stop, unit.columns.start : unit.columns.stop]

    def _pieces(self) -> list[Checkpointer]:
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
        rows = self._rows(unit)
        latents = self._start.latents[rows].to(self.device)
        learner = Learner(
            start=Batch(latents, self.chosen.flatten()[rows], torch.tensor(unit.classes)),
            group=unit.group,
            objective=self._objective,
            networks=self._networks,
            generate=self._generate,
            config=self.config,
            checkpointer=checkpointer,
            class_names=self.real_images.class_names,
        )
        return {"latents": learner.run()}

    def _join(self, learned: list[torch.Tensor]) -> LatentSet:
        rows = torch.cat([self._rows(unit).flatten() for unit in self.work_units])
        labels = rows // self.chosen.shape[1]
        joined = LatentSet(torch.cat(learned), labels, source_index=self.chosen.flatten()[rows])
        joined = joined.shuffled()  # only here: units are learned and saved in class order
        if self._team.leads:
            joined.save(self.workdir / "latents.safetensors", dtype=torch.float32)
        return joined

    def _warn_if_idle(self, shard: Shard) -> None:
        if not shard.deal(len(self.work_units)):
            count, remedy = len(self.work_units), more_units(self.config)
            warnings.warn(
                f"share {shard} has nothing to match: there are {count} units of work; {remedy}", stacklevel=3
            )
