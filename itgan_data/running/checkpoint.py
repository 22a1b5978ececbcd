"""Checkpoints of long work: what is on disk, and when it is written.

A checkpoint holds tensors, counters and the configuration, whole or not at all. It is a folder with
`checkpoint.json`, which names the piece files, their SHA-256 and the shape of every tensor. The manifest is renamed
into place last, so a kill at any moment leaves the previous checkpoint readable.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..storage.files import differences, fingerprint, load_tensors, read_json, save_tensors, sha256_of, write_json
from .stopping import TimeLimit, signals_held, stop_by

MANIFEST = "checkpoint.json"
PIECE_BYTES = 15 << 20  # below the 16 MB that many stores and transfers take as the limit of one file

State = Mapping[str, torch.Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved."""

    tensors: dict[str, torch.Tensor]
    step: int


class Checkpointer:
    """The checkpoint of one piece of work: where it is, what it belongs to, and when the next one is due.

    Args:
        folder: made if needed; holds nothing else.
        work: JSON values that determine the work.
        minutes: between two checkpoints.
        time_limit: when the work stops; by default when it is done.
        may_differ: keys of `work` that do not change it, such as how often it is saved.
        piece_bytes: no file holds more bytes of tensor data than this.
    """

    def __init__(
        self,
        folder: Path,
        work: Mapping[str, Any],
        *,
        minutes: float = 5.0,
        time_limit: TimeLimit | None = None,
        may_differ: Collection[str] = (),
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.folder = folder
        self.work = work
        self.minutes = minutes
        self.time_limit = time_limit or TimeLimit(None, folder)
        self.may_differ = may_differ
        self.piece_bytes = piece_bytes
        self.saved = time.monotonic()
        self.saved_step: int | None = None

    def save(self, tensors: State, step: int) -> None:
        """Replace the checkpoint by one of `tensors`, of any shapes and dtypes, after `step` steps."""
        pieces = {}
        for number, piece in enumerate(_pieces(tensors, self.piece_bytes)):
            # Other contents have another name, so the pieces of the last save at this step stay whole.
            name = f"step-{step:08d}-{number:03d}-{fingerprint(piece)[:8]}.safetensors"
            save_tensors(self.folder / name, piece)
            pieces[name] = sha256_of(self.folder / name)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        manifest = {"step": step, "config": dict(self.work), "pieces": pieces, "shapes": shapes}
        write_json(self.folder / MANIFEST, manifest)
        for file in self.folder.iterdir():  # what the last checkpoint and interrupted writes left
            if file.name not in pieces and file.name != MANIFEST:
                file.unlink(missing_ok=True)
        self.saved, self.saved_step = time.monotonic(), step

    def load(self, steps: int | None = None) -> Checkpoint | None:
        """The last checkpoint, if there is one, of work that has `steps` steps in all.

        Raises:
            ValueError: it is of other work, damaged, or beyond `steps`.
        """
        self.saved = time.monotonic()
        manifest = self.read_manifest()
        if manifest is None:
            return None
        step = self.saved_step = int(manifest["step"])
        if steps is not None and step > steps:
            raise ValueError(f"{self.folder} is at step {step}, beyond steps={steps}; raise steps")
        chunks: dict[str, list[torch.Tensor]] = {name: [] for name in manifest["shapes"]}
        for file, checksum in manifest["pieces"].items():
            path = self.folder / file
            if not path.is_file() or sha256_of(path) != checksum:
                raise ValueError(f"{path} is missing or damaged; remove {self.folder} to start over")
            for key, chunk in sorted(load_tensors(path).items()):
                chunks[key.rpartition(":")[0]].append(chunk)
        tensors = {name: torch.cat(chunks[name]).view(shape) for name, shape in manifest["shapes"].items()}
        logger.debug("going on from step %d of %s", step, self.folder)
        return Checkpoint(tensors, step)

    def read_manifest(self) -> dict[str, Any] | None:
        """What `save` has noted; None when there is no checkpoint. Reads no tensors.

        Raises:
            ValueError: it belongs to other work.
        """
        if not (self.folder / MANIFEST).is_file():
            return None
        manifest = read_json(self.folder / MANIFEST)
        for field, stored, wanted in differences(manifest["config"], json.loads(json.dumps(self.work))):
            if field not in self.may_differ:
                raise ValueError(
                    f"{self.folder} holds work with {field}={stored!r}, not {wanted!r}; "
                    "use that configuration again or another folder"
                )
        return manifest

    def is_finished(self, steps: int) -> bool:
        """Whether the last checkpoint is the one after the last step. Reads no tensors."""
        done = saved_step(self.folder)
        return done is not None and done >= steps

    def due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() > self.saved + 60 * self.minutes

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
    """Save the work of a loop. Yields a function to call after every step, with the step's number and its state.

    It saves when a checkpoint is due, after the last step, and when the work stops: when the time is over, and at
    Ctrl-C or SIGTERM, which wait for the end of the step. Then it raises `OutOfTimeError`, `KeyboardInterrupt` or
    `SystemExit`. A state that is not finite is never saved: it raises `FloatingPointError`.

    Args:
        checkpointer: saves; None to do nothing.
        steps: the number of the last one.
        remedy: what to do about values that are not finite.
    """
    if checkpointer is None:
        yield lambda step, state: None
        return
    with signals_held() as signal_that_came:

        def done(step: int, state: Callable[[], State]) -> None:
            stop, over = signal_that_came(), checkpointer.time_limit.is_over()
            if step == steps or stop or over or checkpointer.due():
                tensors = state()
                if lost := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
                    raise FloatingPointError(
                        f"{lost[0]} of {checkpointer.folder.name} is not finite at step {step}; "
                        f"{checkpointer.describe_saved()}; {remedy}"
                    )
                checkpointer.save(tensors, step)
            if stop:
                raise stop_by(stop)
            if over:  # by now it may be over although nothing was saved
                checkpointer.time_limit.check()

        yield done


def _pieces(tensors: Mapping[str, torch.Tensor], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """Flat chunks `name:number`, packed in order into pieces of at most `limit` bytes."""
    piece: dict[str, torch.Tensor] = {}
    room = limit
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().reshape(-1)
        chunks = torch.split(flat, max(1, limit // flat.element_size())) if len(flat) else (flat,)
        for number, chunk in enumerate(chunks):
            size = chunk.numel() * chunk.element_size()
            if size > room and piece:
                yield piece
                piece, room = {}, limit
            piece[f"{name}:{number:05d}"] = chunk.clone()
            room -= size
    yield piece
