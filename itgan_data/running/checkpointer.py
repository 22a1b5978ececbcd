"""When long work is saved and when it stops: checkpoints every few minutes, a time limit, Ctrl-C."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..storage.files import read_json
from .checkpoint import MANIFEST, Checkpoint, load_checkpoint, save_checkpoint
from .stopping import TimeLimit, interrupt_held

State = Mapping[str, torch.Tensor]


class Checkpointer:
    """The checkpoint of one piece of work.

    Args:
        folder: holds nothing else.
        work: JSON values that determine it.
        time_limit: when to stop, and how often to save.
        may_differ: keys of `work` that do not change it.
    """

    def __init__(
        self, folder: Path, work: Mapping[str, Any], time_limit: TimeLimit, *, may_differ: Collection[str] = ()
    ) -> None:
        self.folder = folder
        self.work = work
        self.time_limit = time_limit
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
        return time.monotonic() > self.saved + 60 * self.time_limit.checkpoint_minutes

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
def checkpointing(
    checkpointer: Checkpointer | None, steps: int, *, remedy: str
) -> Iterator[Callable[[int, Callable[[], State]], None]]:
    """Work of `steps` steps that is not lost. Yields what is to be called after each, with its number and its state.

    The state is saved every few minutes, after the last step, when the time is over, and at Ctrl-C, which is held back
    until then. What is yielded raises `OutOfTimeError`, `KeyboardInterrupt` or, in place of saving a state that is not
    finite, `FloatingPointError`.

    Args:
        checkpointer: saves; None to do nothing.
        steps: the number of the last one.
        remedy: what to do about values that are not finite.
    """
    if checkpointer is None:
        yield lambda step, state: None
        return
    with interrupt_held() as interrupted:

        def done(step: int, state: Callable[[], State]) -> None:
            stop, over = interrupted(), checkpointer.time_limit.is_over()
            if step == steps or stop or over or checkpointer.due():
                tensors = state()
                if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
                    raise FloatingPointError(
                        f"{lost[0]} of {checkpointer.folder.name} is not finite at step {step}; "
                        f"{checkpointer.describe_saved()}; {remedy}"
                    )
                checkpointer.save(tensors, step)
            if stop:
                raise KeyboardInterrupt
            if over:
                raise checkpointer.time_limit.out_of_time()

        yield done
