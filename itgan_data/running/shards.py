"""Work that several processes share: who makes which pieces, and how they wait for each other.

The processes are the ranks of torchrun, or the jobs of an array (`prepare()`, `run_shard("1/16")` to
`run_shard("16/16")`, `merge()`). The latents are those that a single process learns, on the CPU bit for bit.
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

_POLL_SECONDS = 0.5  # each time one small file is read: cheap even for hundreds of processes on a shared file system

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
        """(rank + 1)/(world size) of the default process group, or else of torchrun; 1/1 without either."""
        # Condensation makes no process group, so that torchrun can restart its ranks: some versions of torch cannot
        # make a gloo group a second time (https://github.com/pytorch/pytorch/issues/135712).
        if distributed.is_available() and distributed.is_initialized():
            return Shard(distributed.get_rank() + 1, distributed.get_world_size())
        if under_torchrun():
            return Shard(int(os.environ["RANK"]) + 1, int(os.environ["WORLD_SIZE"]))
        return Shard(1, 1)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages for all: the first, or the only one."""
        return self.number == 1

    def deal(self, num_pieces: int) -> range:
        """The numbers of this shard's pieces: every `count`-th one."""
        return range(self.number - 1, num_pieces, self.count)


class Team:
    """The processes that work in one workdir.

    Args:
        shard: this process, which makes its own pieces and waits for the others. None for one that makes nothing and
            waits for nobody, such as a job of an array.
        time_limit: how long to wait for the others.
    """

    def __init__(self, shard: Shard | None, time_limit: TimeLimit) -> None:
        self.shard = shard
        self.time_limit = time_limit

    @property
    def leads(self) -> bool:
        """Whether this process writes joint results. Every job of an array does: all would write the same bytes."""
        return self.shard is None or self.shard.leads

    def make_own(self, pieces: Sequence[Checkpointer], steps: int, make: Callable[[int], State]) -> dict[int, State]:
        """The tensors of this shard's pieces: read if they are finished, else made.

        Args:
            pieces: the checkpoint of each piece of the stage.
            steps: of a finished piece.
            make: makes and saves piece k, starting from its checkpoint.
        """
        own = [] if self.shard is None else self.shard.deal(len(pieces))
        return {k: _read(pieces[k], steps) if pieces[k].is_finished(steps) else make(k) for k in own}

    def gather(self, pieces: Sequence[Checkpointer], steps: int, make: Callable[[int], State]) -> list[State]:
        """The tensors of all pieces of a stage, in order; for arguments see `make_own`.

        Raises:
            OutOfTimeError: the time was over before the other processes had finished.
            ValueError: a piece is not finished, and this process waits for nobody.
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
        # Not with a collective operation: that would time out when a stage takes hours, and hang when a process is
        # restarted. With files, a restarted process goes on, even if there are fewer or more processes than before.
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
    # Without the optimiser's state, which is not needed any more and is large for all pieces together.
    return {name: tensor for name, tensor in found.tensors.items() if not name.startswith("state.")}
