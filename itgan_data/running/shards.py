"""Condensation by several processes: who makes which pieces of a stage, and how they wait for each other.

They are the ranks of torchrun, or the jobs of an array (`prepare()`, `run_shard("3/16")` sixteen times, `merge()`), and
learn, on the CPU bit for bit, the latents of one process. They share nothing but the workdir. The pieces of a stage
(networks of the pool, chunks of images to invert, units of latents) are dealt out in turn, each is kept in a folder of
its own, and who needs another's piece waits until its checkpoint is there. No collective operation can time out while a
stage takes hours, or hang when a process is started again: it finds its pieces as it left them, even if the processes
are fewer or more than before.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import distributed

from .checkpointer import saved_step
from .stopping import TimeLimit

_POLL_SECONDS = 0.5  # a look costs one small read, also for hundreds of processes on a shared file system

logger = logging.getLogger(__name__)
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Shard:
    """One of `count` equal shares of the work, counted from 1: `Shard(3, 16)`, written "3/16", is the third of sixteen.

    Raises:
        ValueError: a number outside 1..count.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"shards are counted from 1/{self.count} to {self.count}/{self.count}, got {self}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @staticmethod
    def parse(text: str) -> "Shard":
        """The shard that is written "3/16".

        Raises:
            ValueError: it is written otherwise, or there is no such share.
        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise ValueError(f"a shard is written NUMBER/COUNT, such as 3/16 for the third of sixteen, got {text!r}")
        return Shard(int(match[1]), int(match[2]))

    @staticmethod
    def of_this_rank() -> "Shard":
        """That of rank k among n, k + 1 of n, in the default process group or else as torchrun says; 1/1 without them.

        A process group is not needed, and better not made where torchrun may restart the ranks: some versions of torch
        cannot make a gloo group a second time (https://github.com/pytorch/pytorch/issues/135712).
        """
        if distributed.is_available() and distributed.is_initialized():
            return Shard(distributed.get_rank() + 1, distributed.get_world_size())
        if distributed.is_available() and distributed.is_torchelastic_launched():
            return Shard(int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]))
        return Shard(1, 1)

    def places(self, num_pieces: int) -> range:
        """Which of the pieces of a stage are of this share: every `count`-th."""
        return range(self.number - 1, num_pieces, self.count)


class Team:
    """The processes that work in one workdir, as one of them sees them.

    Args:
        shard: whose pieces are made here, those of the others being waited for; None to make none and wait for none.
        time_limit: how long the others are waited for.
    """

    def __init__(self, shard: Shard | None, time_limit: TimeLimit) -> None:
        self.shard = shard
        self.time_limit = time_limit

    @property
    def leads(self) -> bool:
        """Whether this process writes what is there once for all: of ranks the first; a job knows of no others."""
        return self.shard is None or self.shard.number == 1

    def gather(self, folders: Sequence[Path], step: int, make: Callable[[int], Piece]) -> list[Piece]:
        """All pieces of a stage in their order: first those that are made here, then the others as they are finished.

        Args:
            folders: where the checkpoint of each piece is kept.
            step: what it says when the piece is finished.
            make: makes and keeps piece k, or reads it where it is finished.

        Raises:
            OutOfTimeError: the time ran out while waiting.
            ValueError: another's piece is missing and nobody is waited for.
        """
        made = {} if self.shard is None else {place: make(place) for place in self.shard.places(len(folders))}
        for place, folder in enumerate(folders):
            if place not in made:
                self._wait(folder, step)
                made[place] = make(place)
        return [made[place] for place in range(len(folders))]

    def _wait(self, folder: Path, step: int) -> None:
        if _is_finished(folder, step):
            return
        if self.shard is None:
            raise ValueError(f"{folder} is not finished; run Condenser.prepare in this workdir before its shards")
        logger.info("waiting for %s", folder)
        while not _is_finished(folder, step):
            self.time_limit.check()
            time.sleep(_POLL_SECONDS)


def _is_finished(folder: Path, step: int) -> bool:
    done = saved_step(folder)
    return done is not None and done >= step
