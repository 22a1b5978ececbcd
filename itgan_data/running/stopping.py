"""When long work stops: a time limit, Ctrl-C, and SIGTERM."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_DEFAULTS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class OutOfTimeError(RuntimeError):
    """`max_minutes` are over; the work so far is in the workdir."""


class TimeLimit:
    """How long a run may take.

    Args:
        max_minutes: from now; None for no limit.
        workdir: where the work is, for the message.
    """

    def __init__(self, max_minutes: float | None, workdir: Path) -> None:
        self.deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.workdir = workdir

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.deadline

    def check(self) -> None:
        """Raise `OutOfTimeError` if the time is over."""
        if self.is_over():
            raise OutOfTimeError(f"out of time; the work so far is in {self.workdir}, run again to go on")


@contextmanager
def signals_held() -> Iterator[Callable[[], int]]:
    """Hold Ctrl-C and SIGTERM back, so that a step can be finished and saved; a second one comes through at once.

    SIGTERM is what `docker stop`, Slurm and torchrun send some seconds before they kill. Yields a function that gives
    the number of the signal that came, or 0; the end of the block raises what `stop_by` says. A signal that is handled
    otherwise already is left alone, and so are all in other threads than the main one, where Python allows no handlers.
    """
    main = threading.current_thread() is threading.main_thread()
    held = [number for number, default in _DEFAULTS.items() if main and signal.getsignal(number) == default]
    came: list[int] = []

    def release() -> None:
        for number in held:
            signal.signal(number, _DEFAULTS[number])

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        release()

    for number in held:
        signal.signal(number, hold)
    try:
        yield lambda: came[0] if came else 0
    finally:
        release()
    if came:  # after the last look; who has seen it has raised by now
        raise stop_by(came[0])


def stop_by(number: int) -> BaseException:
    """What to raise for a signal when all is saved: for SIGTERM an end with the exit status that shells give it."""
    return SystemExit(128 + number) if number == signal.SIGTERM else KeyboardInterrupt()
