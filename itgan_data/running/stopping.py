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
        return time.monotonic() > self.deadline

    def check(self) -> None:
        """Raise `OutOfTimeError` if the time is over."""
        if self.is_over():
            raise OutOfTimeError(f"out of time; the work so far is in {self.workdir}, run again to go on")


NO_LIMIT = TimeLimit(None, Path())


@contextmanager
def signals_held() -> Iterator[Callable[[], int]]:
    """Hold back Ctrl-C and SIGTERM, so that a step can be finished and saved; a second signal acts at once.

    `docker stop`, Slurm and torchrun send SIGTERM some seconds before they kill. Yields a function that returns the
    number of the signal that came, or 0; the end of the block raises it (see `stop_by`).
    """
    # Python allows handlers in the main thread only, and those that others have set are left alone.
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
    if came:  # after the caller looked for the last time, or the caller would have raised
        raise stop_by(came[0])


def stop_by(number: int) -> BaseException:
    """The exception to raise for a signal: for SIGTERM, an exit with the status that shells use."""
    return SystemExit(128 + number) if number == signal.SIGTERM else KeyboardInterrupt()
