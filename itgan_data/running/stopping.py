"""When long work stops: a time limit, and Ctrl-C."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class OutOfTimeError(RuntimeError):
    """`max_minutes` are over; the work so far is in the workdir."""


class TimeLimit:
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
