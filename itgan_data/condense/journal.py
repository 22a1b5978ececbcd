"""The records of a run: log lines, grids of images, TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import needs_extra
from ..images import image_grid, signed_to_unit
from ..running.step_log import StepLog
from ..storage.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Writes the log of one unit of work, `logs/NAME.jsonl`, and its pictures, `previews/NAME-STEP.png`.

    A line is `{"step", "loss", "seconds", "steps_per_second"}`; `seconds` is the total over all runs of the unit.

    Args:
        workdir: holds the folders `logs`, `previews` and `tensorboard`.
        name: of the unit.
        step: the steps done; lines of later steps, which will be done again, are removed.
        tensorboard: also write the loss for TensorBoard.
    """

    def __init__(self, workdir: Path, name: str, *, step: int, tensorboard: bool) -> None:
        self.log = StepLog(workdir / "logs" / f"{name}.jsonl", step=step)
        self.previews = workdir / "previews"
        self.name = name
        self.seconds_before = float(self.log.found[-1]["seconds"]) if self.log.found else 0.0
        self.writer: SummaryWriter | None = None
        if tensorboard:
            self.writer = summary_writer()(str(workdir / "tensorboard" / name), purge_step=step + 1)

    def write(self, step: int, loss: float, *, seconds: float, steps_per_second: float) -> None:
        """Add a line; `seconds` counts from the start of this run."""
        self.log.write(
            step,
            loss=loss,
            seconds=round(self.seconds_before + seconds, 3),
            steps_per_second=round(steps_per_second, 3),
        )
        if self.writer is not None:
            self.writer.add_scalar("loss", loss, step)
            self.writer.add_scalar("steps per second", steps_per_second, step)

    def preview(self, step: int, images: torch.Tensor) -> None:
        """Save signed images `[rows, columns, C, H, W]` as a grid."""
        with write_atomically(self.previews / f"{self.name}-{step:07d}.png") as path:
            image_grid(signed_to_unit(images.flatten(0, 1)), columns=images.shape[1]).save(path)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def summary_writer() -> "type[SummaryWriter]":
    """TensorBoard's writer; a RuntimeError that names the extra where TensorBoard is not installed."""
    with needs_extra("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter
