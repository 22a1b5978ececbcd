"""When long work is saved and when it stops: checkpoints every few minutes, a time limit, Ctrl-C."""

import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from .files import read_json

State = Mapping[str, torch.Tensor]


class OutOfTimeError(RuntimeError):
    """`max_minutes` are over; the work so far is in the workdir."""


class Budget:
    """How long a run may take.

    Args:
        max_minutes: from now; None for no limit.
        checkpoint_minutes: between two checkpoints of the same work.
        workdir: where the work is, for the message.
    """

    def __init__(self, max_minutes: float | None, *, checkpoint_minutes: float, workdir: Path) -> None:
        self.deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.checkpoint_minutes = checkpoint_minutes
        self.workdir = workdir

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def out_of_time(self) -> OutOfTimeError:
        """What to raise when it is, and all is saved."""
        return OutOfTimeError(f"out of time; the work so far is in {self.workdir}, run again to go on")

    def check(self) -> None:
        """Stop if the time is over.

        Raises:
            OutOfTimeError: it is.
        """
        if self.is_over():
            raise self.out_of_time()


class Keeper:
    """The checkpoint of one piece of work.

    Args:
        folder: holds nothing else.
        work: JSON values that determine it.
        budget: how often it is saved.
        may_differ: keys of `work` that do not change it.
    """

    def __init__(
        self, folder: Path, work: Mapping[str, Any], budget: Budget, *, may_differ: Collection[str] = ()
    ) -> None:
        self.folder = folder
        self.work = work
        self.budget = budget
        self.may_differ = may_differ
        self.saved = time.monotonic()
        self.saved_step: int | None = None

    def load(self) -> Checkpoint | None:
        """The last checkpoint, if there is one.

        Raises:
            ValueError: it is of other work, or damaged.
        """
        found = load_checkpoint(self.folder, config=self.work, may_differ=self.may_differ)
        self.saved_step = None if found is None else found.step
        return found

    def due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() > self.saved + 60 * self.budget.checkpoint_minutes

    def save(self, tensors: State, step: int) -> None:
        """Replace the checkpoint."""
        save_checkpoint(self.folder, tensors, step=step, config=self.work)
        self.saved, self.saved_step = time.monotonic(), step

    def describe_saved(self) -> str:
        """What an error says of the work that is not lost."""
        if self.saved_step is None:
            return "nothing was saved yet"
        return f"the last good state, step {self.saved_step}, is in {self.folder}"


def saved_step(folder: Path) -> int | None:
    """How far the checkpoint in `folder` is; None where there is none. Reads no tensors, so others may be writing."""
    manifest = folder / MANIFEST
    return int(read_json(manifest)["step"]) if manifest.is_file() else None


@contextmanager
def saving(keeper: Keeper | None, steps: int, *, remedy: str) -> Iterator[Callable[[int, Callable[[], State]], None]]:
    """Work of `steps` steps that is not lost. Yields what is to be called after each, with its number and its state.

    The state is saved every few minutes, after the last step, when the time is over, and at Ctrl-C, which is held back
    until then. What is yielded raises `OutOfTimeError`, `KeyboardInterrupt` or, in place of saving a state that is not
    finite, `FloatingPointError`.

    Args:
        keeper: saves; None to do nothing.
        steps: the number of the last one.
        remedy: what to do about values that are not finite.
    """
    if keeper is None:
        yield lambda step, state: None
        return
    with interrupt_held() as interrupted:

        def done(step: int, state: Callable[[], State]) -> None:
            stop, over = interrupted(), keeper.budget.is_over()
            if step == steps or stop or over or keeper.due():
                tensors = state()
                if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
                    raise FloatingPointError(
                        f"{lost[0]} of {keeper.folder.name} is not finite at step {step}; {keeper.describe_saved()}; "
                        f"{remedy}"
                    )
                keeper.save(tensors, step)
            if stop:
                raise KeyboardInterrupt
            if over:
                raise keeper.budget.out_of_time()

        yield done


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back, so that a step can be finished and saved; a second one comes through at once.

    Yields a function that says whether there was one. Where Ctrl-C is handled otherwise already, or in another thread
    than the main one, nothing is held back.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(held)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
