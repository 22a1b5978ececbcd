"""Checkpoints of long work: what is on disk, and when it is written.

A checkpoint is a folder of safetensors files and a manifest, `checkpoint.json`, with the step, the configuration, the
SHA-256 of each file and the shape of each tensor. The manifest is renamed into place last, so a kill at any moment
leaves the previous checkpoint readable.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch

from ..storage.files import differences, fingerprint, load_tensors, read_json, save_tensors, sha256_of, write_json
from .stopping import NO_LIMIT, TimeLimit, signals_held, stop_by

MANIFEST = "checkpoint.json"
PIECE_BYTES = 15 << 20  # below 16 MB, a common limit of stores and transfers for one file

State = Mapping[str, torch.Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved."""

    tensors: dict[str, torch.Tensor]
    step: int


@dataclass(eq=False)
class Checkpointer:
    """Saves and loads the checkpoint of one piece of work, and knows when the next one is due."""

    folder: Path
    """Holds nothing else; made by the first save."""
    work: Mapping[str, Any]
    """JSON values that determine the work."""
    _: KW_ONLY
    minutes: float = 5.0
    """Between two checkpoints."""
    time_limit: TimeLimit = NO_LIMIT
    """When the work has to stop."""
    may_differ: Collection[str] = ()
    """Keys of `work` that do not change its result, such as how often it is saved."""
    piece_bytes: int = PIECE_BYTES
    """The most tensor data in one file."""

    def __post_init__(self) -> None:
        self.saved = time.monotonic()
        self.saved_step: int | None = None

    def save(self, tensors: State, step: int) -> None:
        """Replace the checkpoint with `tensors`, of any shapes and dtypes, after `step` steps."""
        pieces = {}
        for number, piece in enumerate(_pieces(tensors, self.piece_bytes)):
            # The name depends on the contents, so saving again at this step never overwrites a file of the last save.
            name = f"step-{step:08d}-{number:03d}-{fingerprint(piece)[:8]}.safetensors"
            save_tensors(self.folder / name, piece)
            pieces[name] = sha256_of(self.folder / name)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        manifest = {"step": step, "config": dict(self.work), "pieces": pieces, "shapes": shapes}
        write_json(self.folder / MANIFEST, manifest)
        for file in self.folder.iterdir():  # those of the last checkpoint and of interrupted writes
            if file.name not in pieces and file.name != MANIFEST:
                file.unlink(missing_ok=True)
        self.saved, self.saved_step = time.monotonic(), step

    def load(self, steps: int | None = None) -> Checkpoint | None:
        """The last checkpoint, or None.

        Raises:
            ValueError: it belongs to other work, is damaged, or is beyond `steps`, the total number.
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
        """The manifest, or None if there is no checkpoint. Reads no tensors.

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
        """Whether all `steps` steps are done and saved. Reads no tensors."""
        done = saved_step(self.folder)
        return done is not None and done >= steps

    def due(self) -> bool:
        """Whether it is time for the next save."""
        return time.monotonic() > self.saved + 60 * self.minutes

    def describe_saved(self) -> str:
        """Which work is not lost, for error messages."""
        if self.saved_step is None:
            return "nothing was saved yet"
        return f"the last good state, step {self.saved_step}, is in {self.folder}"


def saved_step(folder: Path) -> int | None:
    """The steps done by the checkpoint in `folder`, or None; another process may be writing it."""
    manifest = folder / MANIFEST
    return int(read_json(manifest)["step"]) if manifest.is_file() else None


@contextmanager
def checkpointing(
    checkpointer: Checkpointer | None, steps: int, *, remedy: str
) -> Iterator[Callable[[int, Callable[[], State]], None]]:
    """Save the work of a loop. Yields a function to call after every step, with the step's number and its state.

    The function saves when a checkpoint is due, after the last step, and when the work has to stop: when the time is
    over, and at Ctrl-C or SIGTERM, which wait for the end of the step.

    Args:
        checkpointer: None to do nothing.
        steps: the number of the last step.
        remedy: what to do about values that are not finite, for the message.

    Raises:
        OutOfTimeError: the time is over; all is saved.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; all is saved.
        FloatingPointError: the state is not finite; it is not saved.
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
            if over:  # not is_over() again: it may have become over since then, with nothing saved
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
