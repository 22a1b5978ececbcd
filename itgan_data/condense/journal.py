"""What a run leaves to look at: a line of numbers every few steps, grids of images, TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..config import needs_extra
from ..images import image_grid, signed_to_unit
from ..running.step_log import StepLog
from ..storage.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_PREVIEW_SIDE = 10  # at most ten classes, ten images each


class Journal:
    """The log of one unit of work, `logs/NAME.jsonl`, and its pictures, `previews/NAME-STEP.png`.

    A line is `{"step", "loss", "seconds", "steps_per_second"}`, the seconds those of all runs of the unit together.
    A run that goes on from a checkpoint first removes the lines after it, so that no step is there twice.

    Args:
        workdir: holds the folders `logs`, `previews` and `tensorboard`.
        name: of the unit.
        step: how far the unit is.
        tensorboard: write the loss for TensorBoard too.
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
        """Add a line. `seconds` are those of this run."""
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


def previewed(latents: torch.Tensor) -> torch.Tensor:
    """What a grid shows of latents `[num_classes, n, latent_dim]`: the first of the first classes."""
    return latents[:_PREVIEW_SIDE, :_PREVIEW_SIDE]


def summary_writer() -> "type[SummaryWriter]":
    """TensorBoard's writer.

    Raises:
        RuntimeError: TensorBoard is not installed; the extra is named.
    """
    with needs_extra("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter
