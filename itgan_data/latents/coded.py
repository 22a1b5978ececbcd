"""Latents of integers, entropy-coded on disk: a few bits each, with the context model that they are decoded with."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import torch

from ..config import from_json
from ..generators.codes import Whole
from ..generators.context import (
    NUM_FLAG_TABLES,
    NUM_PHASES,
    NUM_SCALES,
    NUM_SYMBOLS,
    Codes,
    ContextModel,
    ContextShape,
)
from ..generators.packing import pack_arrays, pack_tables, unpack_arrays, unpack_tables
from ..storage.files import TensorInfo

CODES = "codes"
"""What a bundle calls this way to store latents."""
TENSORS = {
    "codes": torch.uint8,
    "class_counts": torch.int64,
    "labels_codes": torch.uint8,
    "labels_tables": torch.uint8,
    "context_sizes": torch.int32,
    "context_weights": torch.uint8,
    "context_tables": torch.uint8,
    "context_biases": torch.int16,
    "value_tables": torch.uint8,
    "flag_tables": torch.uint8,
}
"""The tensors of a file, all of one dimension. Labels are there only where classes do not take turns."""

COLUMNS = {"soft_labels", "source_index"}
"""What a file of codes may hold besides, as any set of latents."""

_OPTIONAL = {"labels_codes", "labels_tables"}
_MAX_CODES = 1 << 28  # of a file, decoded: 256 MiB
_MAX_CLASSES = 127  # whose labels are coded as int8
_VALUE_SHAPE = (NUM_SCALES * NUM_PHASES, NUM_SYMBOLS)
_FLAG_SHAPE = (NUM_FLAG_TABLES, 2)


class CodedRows:
    """Latents of integers in memory, a byte each, with the model that codes them on disk.

    Args:
        codes: int8 `[N, latent_dim]`.
        context: of as many channels and patches.

    Raises:
        ValueError: codes of another type or width.
    """

    def __init__(self, codes: torch.Tensor, context: ContextModel) -> None:
        shape = context.shape
        width = shape.channels * shape.map_size[0] * shape.map_size[1]
        if codes.dtype != torch.int8 or codes.ndim != 2 or codes.shape[1] != width or len(codes) == 0:
            raise ValueError(f"codes must be non-empty int8 [N, {width}], got {codes.dtype} {list(codes.shape)}")
        self.codes = codes
        self.context = context

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows that are read."""
        return torch.float32

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """Rows as float32."""
        return self.codes[indices].to(torch.float32)

    def select(self, indices: torch.Tensor) -> "CodedRows":
        """The rows at `indices`, still as codes."""
        return CodedRows(self.codes[indices], self.context)


def take_turns(class_counts: torch.Tensor) -> torch.Tensor:
    """Labels `[N]` of an order in which every class is spread evenly, from int64 counts `[num_classes]`.

    The order is a function of the counts alone, so that it needs no bytes.
    """
    labels = torch.repeat_interleave(torch.arange(len(class_counts)), class_counts)
    firsts = class_counts.cumsum(0) - class_counts
    within = torch.arange(len(labels)) - firsts[labels]
    places = (2 * within + 1) * len(labels) // class_counts[labels]  # twice the place, in whole numbers
    return labels[torch.argsort(places, stable=True)]


def turns(labels: torch.Tensor) -> torch.Tensor:
    """The permutation after which labels are in the order of `take_turns`; rows of a class keep their order."""
    target = take_turns(torch.bincount(labels))
    order = torch.empty_like(labels)
    order[torch.argsort(target, stable=True)] = torch.argsort(labels, stable=True)
    return order


def coded_tensors(rows: CodedRows, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a file of latents and their labels `[N]`.

    Raises:
        ValueError: labels that the context model does not know.
    """
    context, shape = rows.context, rows.context.shape
    codes = rows.codes.view(-1, shape.channels, *shape.map_size).cpu().numpy()
    weights = [context.weights[name].astype(np.int8) for name in _names(shape, "weight")]
    biases = [context.weights[name].ravel() for name in _names(shape, "bias")]
    packed, tables = pack_arrays(weights)
    contents = {
        "codes": context.encode(codes, labels.cpu().numpy()),
        "context_weights": packed,
        "context_tables": tables,
        "value_tables": pack_tables(context.value_tables),
        "flag_tables": pack_tables(context.flag_tables),
    }
    counts = torch.bincount(labels.cpu(), minlength=shape.num_classes)
    if not torch.equal(labels.cpu(), take_turns(counts)):
        if len(counts) > _MAX_CLASSES:
            raise ValueError(
                f"labels of more than {_MAX_CLASSES} classes must take turns; put rows in the order of turns"
            )
        contents["labels_codes"], contents["labels_tables"] = pack_arrays([labels.cpu().numpy().astype(np.int8)])
    return {
        **{name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in contents.items()},
        "class_counts": counts,
        "context_sizes": torch.tensor(_sizes(shape), dtype=torch.int32),
        "context_biases": torch.from_numpy(np.concatenate(biases).astype(np.int16)),
    }


def check_coded_header(header: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that no file of codes has, before they are read.

    Raises:
        ValueError: a missing or unknown tensor, or one of another type.
    """
    for name in sorted(TENSORS.keys() | (header.keys() - COLUMNS)):
        info = header.get(name)
        if info is None and name in _OPTIONAL:
            continue
        if info is None or name not in TENSORS or info.dtype != TENSORS[name] or len(info.shape) != 1:
            raise ValueError(f"tensor {name[:80]!r} of coded latents must be {TENSORS.get(name)} [n], got {info}")


def read_coded(tensors: Mapping[str, torch.Tensor]) -> tuple[CodedRows, torch.Tensor]:
    """Latents and labels of the tensors of a file.

    Raises:
        ValueError: tensors that are damaged or do not belong together.
    """
    check_coded_header({name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    shape = _shape(tensors["context_sizes"].tolist())
    context = _context(shape, tensors)
    labels = _labels(shape, tensors)
    width = shape.channels * shape.map_size[0] * shape.map_size[1]
    if len(labels) * width > _MAX_CODES:
        raise ValueError(f"{len(labels)} latents of width {width} exceed {_MAX_CODES} bytes; the file is damaged")
    codes: Codes = context.decode(_content(tensors, "codes"), labels.numpy())
    return CodedRows(torch.from_numpy(codes).flatten(1), context), labels


def _names(shape: ContextShape, ending: str) -> list[str]:
    return [name for name in shape.tensor_shapes() if name.endswith(ending)]


def _sizes(shape: ContextShape) -> list[int]:
    values = asdict(shape)
    groups = values.pop("groups")
    return [*values.pop("map_size"), *values.values(), *groups]


def _shape(sizes: list[int]) -> ContextShape:
    names = [
        name
        for name in asdict(ContextShape(map_size=(1, 1), groups=(1,), num_classes=1))
        if name not in ("map_size", "groups")
    ]
    values = dict(zip(names, sizes[2:], strict=False))
    return from_json(ContextShape, {"map_size": sizes[:2], "groups": sizes[2 + len(names) :], **values})


def _context(shape: ContextShape, tensors: Mapping[str, torch.Tensor]) -> ContextModel:
    shapes = shape.tensor_shapes()
    names = _names(shape, "weight")
    unpacked = unpack_arrays(
        _content(tensors, "context_weights"), _content(tensors, "context_tables"), [shapes[name] for name in names]
    )
    weights: dict[str, np.ndarray] = dict(zip(names, unpacked, strict=True))
    biases, used = tensors["context_biases"].numpy().astype(np.int32), 0
    for name in _names(shape, "bias"):
        size = int(np.prod(shapes[name]))
        if used + size > len(biases):
            raise ValueError(
                f"{len(biases)} biases are too few for the sizes of the context model; the file is damaged"
            )
        weights[name] = biases[used : used + size].reshape(shapes[name])
        used += size
    if used != len(biases):
        raise ValueError(f"{len(biases) - used} biases are left over; the file is damaged")
    values: Whole = unpack_tables(_content(tensors, "value_tables"), _VALUE_SHAPE)
    flags: Whole = unpack_tables(_content(tensors, "flag_tables"), _FLAG_SHAPE)
    return ContextModel(shape, {name: weights[name] for name in shapes}, values, flags)


def _labels(shape: ContextShape, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    counts = tensors["class_counts"]
    if len(counts) != shape.num_classes or counts.min() < 0 or not 0 < counts.double().sum() <= _MAX_CODES:
        raise ValueError(f"class_counts must be {shape.num_classes} counts, not all of them 0; the file is damaged")
    if not _OPTIONAL & tensors.keys():
        return take_turns(counts)
    if not tensors.keys() >= _OPTIONAL:
        raise ValueError("coded labels need both their codes and their tables; the file is damaged")
    (labels,) = unpack_arrays(
        _content(tensors, "labels_codes"), _content(tensors, "labels_tables"), [(int(counts.sum()),)]
    )
    read = torch.from_numpy(labels.astype(np.int64))
    if read.min() < 0 or not torch.equal(torch.bincount(read, minlength=len(counts)), counts):
        raise ValueError("labels are not of the classes that were counted; the file is damaged")
    return read


def _content(tensors: Mapping[str, torch.Tensor], name: str) -> bytes:
    return tensors[name].numpy().tobytes()
