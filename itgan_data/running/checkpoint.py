"""Checkpoints of long work: tensors, counters and the configuration, whole or not at all, in bounded pieces.

A checkpoint is a folder with `checkpoint.json`, which names the piece files, their SHA-256 and the shape of every
tensor. The manifest is renamed into place last, so a kill at any moment leaves the previous checkpoint readable.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..storage.files import differences, fingerprint, load_tensors, read_json, save_tensors, sha256_of, write_json

MANIFEST = "checkpoint.json"
PIECE_BYTES = 15 << 20  # below the 16 MB that many stores and transfers take as the limit of one file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved."""

    tensors: dict[str, torch.Tensor]
    step: int
    results: dict[str, Any]


def save_checkpoint(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    step: int,
    config: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Replace the checkpoint in `folder`.

    Args:
        folder: made if needed; holds nothing but the checkpoint.
        tensors: any shapes and dtypes.
        step: how far the work is; part of the piece files' names.
        config: JSON values that determine the work; `load_checkpoint` compares them.
        results: JSON values to keep beside the tensors.
        piece_bytes: no piece file holds more bytes of tensor data than this.
    """
    folder = Path(folder)
    pieces = {}
    for number, piece in enumerate(_pieces(tensors, piece_bytes)):
        # Other contents have another name, so the pieces of the last save at this step stay whole.
        name = f"step-{step:08d}-{number:03d}-{fingerprint(piece)[:8]}.safetensors"
        save_tensors(folder / name, piece)
        pieces[name] = sha256_of(folder / name)
    manifest = {
        "step": step,
        "config": dict(config),
        "results": dict(results or {}),
        "pieces": pieces,
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    write_json(folder / MANIFEST, manifest)
    for file in folder.iterdir():  # what the last checkpoint and interrupted writes left
        if file.name not in pieces and file.name != MANIFEST:
            file.unlink(missing_ok=True)


def load_checkpoint(
    folder: str | os.PathLike[str], *, config: Mapping[str, Any], may_differ: Collection[str] = ()
) -> Checkpoint | None:
    """Read the checkpoint in `folder`; None when there is none.

    Args:
        folder: what `save_checkpoint` wrote to.
        config: what would determine the work now.
        may_differ: keys of it that do not change the work, such as how often it is saved.

    Raises:
        ValueError: it belongs to another configuration, or a piece is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, config=config, may_differ=may_differ)
    if manifest is None:
        return None
    chunks: dict[str, list[torch.Tensor]] = {name: [] for name in manifest["shapes"]}
    for file, checksum in manifest["pieces"].items():
        if not (folder / file).is_file() or sha256_of(folder / file) != checksum:
            raise ValueError(f"{folder / file} is missing or damaged; remove {folder} to start over")
        for key, chunk in sorted(load_tensors(folder / file).items()):
            chunks[key.rpartition(":")[0]].append(chunk)
    tensors = {name: torch.cat(chunks[name]).view(shape) for name, shape in manifest["shapes"].items()}
    logger.debug("going on from step %d of %s", manifest["step"], folder)
    return Checkpoint(tensors, manifest["step"], manifest["results"])


def read_manifest(
    folder: Path, *, config: Mapping[str, Any], may_differ: Collection[str] = ()
) -> dict[str, Any] | None:
    """What `save_checkpoint` has noted in `folder`; None when there is no checkpoint. Reads no tensors.

    Raises:
        ValueError: it belongs to another configuration.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_json(folder / MANIFEST)
    for field, stored, wanted in differences(manifest["config"], json.loads(json.dumps(config))):
        if field not in may_differ:
            raise ValueError(
                f"{folder} holds work with {field}={stored!r}, not {wanted!r}; "
                "use that configuration again or another folder"
            )
    return manifest


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
