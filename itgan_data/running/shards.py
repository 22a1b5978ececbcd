"""Work that several processes share: which of them this one is, who makes which pieces, and how they wait.

They are the ranks of torchrun, or the jobs of an array (`prepare()`, `run_shard("3/16")` sixteen times, `merge()`).
Condensation shared out so learns, on the CPU bit for bit, the latents of one process.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import distributed

from .checkpoint import Checkpointer, State, saved_step
from .stopping import TimeLimit

_POLL_SECONDS = 0.5  # a look costs one small read, also for hundreds of processes on a shared file system

logger = logging.getLogger(__name__)


def under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


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
    def of_this_process() -> "Shard":
        """That of rank k among n, k + 1 of n, in the default process group or else as torchrun says; 1/1 without them.

        Condensation needs no process group, and had better not make one where torchrun may restart the ranks: some
        versions of torch cannot make a gloo group a second time (https://github.com/pytorch/pytorch/issues/135712).
        """
        if distributed.is_available() and distributed.is_initialized():
            return Shard(distributed.get_rank() + 1, distributed.get_world_size())
        if under_torchrun():
            return Shard(int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]))
        return Shard(1, 1)

    @property
    def leads(self) -> bool:
        """Whether this process writes, and speaks, where one has to: the first, or the only one."""
        return self.number == 1

    def deal(self, num_pieces: int) -> range:
        """The pieces of a stage that are dealt to this shard: every `count`-th."""
        return range(self.number - 1, num_pieces, self.count)


class Team:
    """The processes that work in one workdir, as one of them sees them.

    Args:
        shard: whose pieces are made here, while the others' are waited for; None to make none and wait for none, as a
            job of an array does, which knows of no others.
        time_limit: how long the others are waited for.
    """

    def __init__(self, shard: Shard | None, time_limit: TimeLimit) -> None:
        self.shard = shard
        self.time_limit = time_limit

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have made together. Jobs of an array all do, each the same bytes."""
        return self.shard is None or self.shard.leads

    def make_own(self, pieces: Sequence[Checkpointer], steps: int, make: Callable[[int], State]) -> dict[int, State]:
        """The tensors of this shard's pieces of a stage: read where they are finished, else made.

        Args:
            pieces: the checkpoint of each piece of the stage.
            steps: how many a finished one has.
            make: makes and keeps piece k, from where its checkpoint is.
        """
        own = [] if self.shard is None else self.shard.deal(len(pieces))
        return {k: _read(pieces[k], steps) if pieces[k].is_finished(steps) else make(k) for k in own}

    def gather(self, pieces: Sequence[Checkpointer], steps: int, make: Callable[[int], State]) -> list[State]:
        """The tensors of all pieces of a stage, in order; arguments as for `make_own`.

        Raises:
            OutOfTimeError: the time ran out while waiting.
            ValueError: pieces are not finished and nobody is waited for.
        """
        if self.shard is None:
            _check_finished(pieces, steps)
        made = self.make_own(pieces, steps, make)
        for k, piece in enumerate(pieces):
            if k not in made:
                self._wait(piece, steps)
                made[k] = _read(piece, steps)
        return [made[k] for k in range(len(pieces))]

    def _wait(self, piece: Checkpointer, steps: int) -> None:
        # Not by a collective operation: it would time out where a stage takes hours, and hang where a process is
        # started again. That one finds its pieces as it left them, even if the processes are fewer or more than before.
        if not piece.is_finished(steps):
            logger.info("waiting for %s", piece.folder)
        while not piece.is_finished(steps):
            self.time_limit.check()
            time.sleep(_POLL_SECONDS)


def _check_finished(pieces: Sequence[Checkpointer], steps: int) -> None:
    missing = [piece.folder for piece in pieces if not piece.is_finished(steps)]
    if missing:
        names = ", ".join(f"{folder.name} (step {saved_step(folder) or 0})" for folder in missing)
        raise ValueError(
            f"{len(missing)} of {len(pieces)} pieces in {missing[0].parent} are not finished: {names}; run first "
            "Condenser.prepare, then all shards, then Condenser.merge"
        )


def _read(piece: Checkpointer, steps: int) -> State:
    found = piece.load(steps)
    assert found is not None, f"{piece.folder} is finished"
    # Without the moments, which nobody asks for any more: those of all pieces together may be large.
    return {name: tensor for name, tensor in found.tensors.items() if not name.startswith("state.")}
