"""Which distribution each integer of a code is expected to have, given what was decoded before it.

A small network of whole numbers reads the codes of neighbouring patches and of earlier channels, and names a table of
frequencies. Its sums stay below 2**24, where float32 holds every integer, so matrix products are exact in any order:
every machine names the same tables, which decoding depends on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import numpy as np
import numpy.typing as npt

from ..config import AtLeast, Between, check
from .codes import PRECISION, FrequencyTables, SymbolReader, Symbols, SymbolWriter, Whole

Codes = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

NUM_SCALES = 45
"""Tables of values differ in their spread, an eighth of a natural logarithm from one to the next ..."""
NUM_PHASES = 4
"""... and in where between two integers, in quarters, the expected value lies."""
NUM_FLAG_TABLES = 64
NUM_SYMBOLS = 64
"""Differences of -31 to 31 from the expected value, and a sign that another one follows in two halves of four bits."""
LARGEST = 31
"""Of the differences that have a symbol of their own."""
UNITS = 32
"""Steps of one in hidden values and in the codes that a group reads of its own patch."""
INPUT_UNITS = 8
WEIGHT_UNITS = 64
MAX_HIDDEN = 255

_ESCAPE = NUM_SYMBOLS - 1
_FLAG_TABLES_AT = NUM_SCALES * NUM_PHASES
_HALF_TABLE = _FLAG_TABLES_AT + NUM_FLAG_TABLES
_MAX_INPUT = 15  # codes beyond it are read as it
_EXACT = 1 << 24  # float32 holds all integers up to here
_ROWS = 1 << 13  # images at a time: enough for long vectors, few enough for the cache
_CAUSAL = ((0, -1), (-1, 0), (-1, -1), (-1, 1))  # rows and columns to the left, above, above left, above right

_MAX_GROUPS = 64

Size = Annotated[int, Between(1, 1024)]
Exchange = Callable[[Whole, Symbols], Symbols]
"""Takes tables `[n]` and, when encoding, the symbols `[n]` they are for; gives the symbols."""


@dataclass(frozen=True, kw_only=True)
class ContextShape:
    """What a context model is made for."""

    map_size: tuple[Size, Size]
    """Rows and columns of patches."""
    groups: tuple[Size, ...]
    """Channels that are coded at a time; a later group sees the earlier ones."""
    num_classes: Annotated[int, Between(1, 1 << 16)]
    hidden: Size = 48
    """Numbers that sum up the neighbours of a patch."""
    group_hidden: Size = 32
    """Hidden numbers of each group."""
    neighbor_channels: Size = 44
    """How many of the first channels of a neighbour are read."""
    own_channels: Size = 64
    """How many of the first channels of the patch itself."""
    first_flag: Annotated[int, AtLeast(0)] = 3
    """From this group on a flag says whether the group has any code but 0."""

    def __post_init__(self) -> None:
        check(self)
        if not 0 < len(self.groups) <= _MAX_GROUPS:
            raise ValueError(f"groups must be 1 to {_MAX_GROUPS}, got {len(self.groups)}")

    @property
    def channels(self) -> int:
        return sum(self.groups)

    @property
    def starts(self) -> list[int]:
        """The first channel of each group."""
        return [0, *accumulate(self.groups)][:-1]

    def seen(self, group: int) -> int:
        """How many channels of its own patch a group reads."""
        return min(self.starts[group], self.own_channels)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a model's weights (int8) and biases (int32)."""
        neighbors = min(self.neighbor_channels, self.channels)
        shapes: dict[str, tuple[int, ...]] = {
            "neighbors.weight": (self.hidden, 2 * len(_CAUSAL) * neighbors),
            "neighbors.bias": (self.hidden,),
            "labels.bias": (self.num_classes, self.hidden),
            "positions.bias": (self.map_size[0] * self.map_size[1], self.hidden),
        }
        for number, width in enumerate(self.groups):
            shapes |= {
                f"groups.{number}.hidden.weight": (self.group_hidden, self.hidden + 2 * self.seen(number)),
                f"groups.{number}.hidden.bias": (self.group_hidden,),
                f"groups.{number}.output.weight": (2 * width + 1, self.group_hidden),
                f"groups.{number}.output.bias": (2 * width + 1,),
            }
        return shapes


def _reads() -> Floats:
    """What the network reads of a code, `[2, 256]`, in the order of its byte: the code, and the root of its size."""
    codes = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
    values = np.clip(codes, -_MAX_INPUT, _MAX_INPUT) * INPUT_UNITS
    roots = [round(INPUT_UNITS * abs(int(code)) ** 0.5) for code in codes]
    return np.stack([values, roots]).astype(np.float32)


_READS = _reads()
_MAX_READ = int(np.abs(_READS).max())


def read_inputs(codes: Codes) -> Floats:
    """What the network reads of codes `[..., K]`: `[2, ..., K]`, the codes and the roots of their sizes."""
    return _READS[:, codes.view(np.uint8)]


class ContextModel:
    """Codes integers of -128 to 127 in `[N, K, H, W]`, and decodes them, knowing their labels.

    Args:
        shape: of the codes and of the network.
        weights: int8 and int32 arrays by the names and of the shapes of `ContextShape.tensor_shapes`.
        value_tables: frequencies `[NUM_SCALES * NUM_PHASES, NUM_SYMBOLS]` of differences from the expected value.
        flag_tables: frequencies `[NUM_FLAG_TABLES, 2]` of a group that has none or some codes but 0.

    Raises:
        ValueError: tensors that do not fit, sums that could be inexact, or tables that are no distributions.
    """

    def __init__(
        self,
        shape: ContextShape,
        weights: Mapping[str, npt.NDArray[np.integer]],
        value_tables: Symbols,
        flag_tables: Symbols,
    ) -> None:
        _check_weights(shape, weights)
        self.shape = shape
        self.weights = weights
        self.tables = _join_tables(value_tables, flag_tables)
        self._layers = {name: array.astype(np.float32) for name, array in weights.items()}
        self._starts = shape.starts
        channels = min(shape.neighbor_channels, shape.channels)
        by_neighbor = self._layers["neighbors.weight"].reshape(shape.hidden, len(_CAUSAL), 2, channels)
        self._by_neighbor = np.ascontiguousarray(by_neighbor.transpose(1, 2, 3, 0))
        self._by_group = [self._group_weights(number) for number in range(len(shape.groups))]

    def _group_weights(self, number: int) -> tuple[Floats, Floats, Floats]:
        """Weights of a group by the summary of neighbours and, `[2, channels, outputs]`, by its own patch; biases."""
        weight, hidden = self._layers[f"groups.{number}.hidden.weight"], self.shape.hidden
        by_own = weight[:, hidden:].reshape(self.shape.group_hidden, 2, self.shape.seen(number)).transpose(1, 2, 0)
        by_own = np.ascontiguousarray(by_own) * np.float32(UNITS // INPUT_UNITS)
        return weight[:, :hidden].T, by_own, self._layers[f"groups.{number}.hidden.bias"]

    def encode(self, codes: Codes, labels: Whole) -> bytes:
        """The stream of codes `[N, K, H, W]` with labels `[N]`.

        Raises:
            ValueError: codes or labels of another shape or range.
        """
        self._check_labels(labels)
        expected = (len(labels), self.shape.channels, *self.shape.map_size)
        if codes.dtype != np.int8 or codes.shape != expected:
            raise ValueError(f"codes must be int8 {list(expected)}, got {codes.dtype} {list(codes.shape)}")
        writer = SymbolWriter(self.tables)

        def write(tables: Whole, symbols: Symbols) -> Symbols:
            symbols = np.where(self.tables.frequencies[tables, symbols] > 0, symbols, _ESCAPE)
            writer.write(symbols, tables)
            return symbols

        for part in _parts(len(labels)):
            self._walk(codes[part].copy(), labels[part], write)
        return writer.finish()

    def decode(self, stream: bytes, labels: Whole) -> Codes:
        """The codes `[N, K, H, W]` of a stream, given the labels `[N]`.

        Raises:
            ValueError: a damaged stream, or one of other labels or another model.
        """
        self._check_labels(labels)
        reader = SymbolReader(stream, self.tables)
        codes = np.zeros((len(labels), self.shape.channels, *self.shape.map_size), dtype=np.int8)
        for part in _parts(len(labels)):
            self._walk(codes[part], labels[part], lambda tables, _: reader.read(tables))
        reader.finish()
        return codes

    @staticmethod
    def counted(
        shape: ContextShape, weights: Mapping[str, npt.NDArray[np.integer]], codes: Codes, labels: Whole
    ) -> "ContextModel":
        """The model whose tables fit codes `[N, K, H, W]` best, given the network."""
        counts = np.zeros((_HALF_TABLE + 1) * NUM_SYMBOLS, dtype=np.int64)

        def count(tables: Whole, symbols: Symbols) -> Symbols:
            counts[:] += np.bincount(tables * NUM_SYMBOLS + symbols, minlength=len(counts))
            return symbols

        even = np.full((_FLAG_TABLES_AT, NUM_SYMBOLS), (1 << PRECISION) // NUM_SYMBOLS)
        model = ContextModel(shape, weights, even, np.full((NUM_FLAG_TABLES, 2), (1 << PRECISION) // 2))
        for part in _parts(len(labels)):
            model._walk(codes[part].copy(), labels[part], count)
        by_table = counts.reshape(-1, NUM_SYMBOLS)
        values = FrequencyTables.from_counts(by_table[:_FLAG_TABLES_AT])
        flags = FrequencyTables.from_counts(np.maximum(by_table[_FLAG_TABLES_AT:_HALF_TABLE, :2], 1))
        return ContextModel(shape, weights, values.frequencies, flags.frequencies)

    @property
    def value_tables(self) -> Whole:
        """Frequencies `[NUM_SCALES * NUM_PHASES, NUM_SYMBOLS]`."""
        return self.tables.frequencies[:_FLAG_TABLES_AT]

    @property
    def flag_tables(self) -> Whole:
        """Frequencies `[NUM_FLAG_TABLES, 2]`."""
        return self.tables.frequencies[_FLAG_TABLES_AT:_HALF_TABLE, :2]

    def _check_labels(self, labels: Whole) -> None:
        if labels.ndim != 1 or (len(labels) and not 0 <= labels.min() <= labels.max() < self.shape.num_classes):
            raise ValueError(f"labels must be [N] in 0..{self.shape.num_classes - 1}, got {list(labels.shape)}")

    def _walk(self, codes: Codes, labels: Whole, exchange: Exchange) -> None:
        """Pass over all codes in the order of coding; what is exchanged is written to `codes`, in place.

        Encoding and decoding are this one loop, so both see the same contexts.
        """
        rows, columns = self.shape.map_size
        decoded: dict[tuple[int, int], Floats] = {}
        by_label = self._layers["labels.bias"][labels] + self._layers["neighbors.bias"]
        for row in range(rows):
            for column in range(columns):
                sums = by_label + self._layers["positions.bias"][row * columns + column]
                for (down, right), weights in zip(_CAUSAL, self._by_neighbor, strict=True):
                    if (reads := decoded.get((row + down, column + right))) is not None:
                        sums += _products(reads, weights)
                patch = np.ascontiguousarray(codes[:, :, row, column])
                decoded[row, column] = self._walk_patch(patch, _hidden(sums, INPUT_UNITS), exchange)
                codes[:, :, row, column] = patch

    def _walk_patch(self, patch: Codes, hidden: Floats, exchange: Exchange) -> Floats:
        """Pass over the groups of a patch `[N, K]`; what the network reads of it, `[2, N, K]`."""
        reads = np.zeros((2, *patch.shape), dtype=np.float32)
        for number, (start, width) in enumerate(zip(self._starts, self.shape.groups, strict=True)):
            by_hidden, by_own, bias = self._by_group[number]
            inner = _hidden(hidden @ by_hidden + _products(reads, by_own) + bias, UNITS)
            group = patch[:, start : start + width]
            weight, bias = self._layers[f"groups.{number}.output.weight"], self._layers[f"groups.{number}.output.bias"]
            chosen = np.arange(len(patch))
            if number >= self.shape.first_flag:
                nonzero = (group != 0).any(axis=1).astype(np.int64)
                flags = exchange(_flag_tables(inner @ weight[-1] + bias[-1]), nonzero)
                chosen = np.flatnonzero(flags)
            outputs = inner[chosen] @ weight[:-1].T + bias[:-1]
            group[chosen] = _exchange_values(group[chosen], outputs, exchange)
            reads[:, chosen, start : start + width] = read_inputs(group[chosen])
        return reads


def _products(reads: Floats, weights: Floats) -> Floats:
    """Products of the first channels of `reads` `[2, N, K]` with `weights` `[2, channels, outputs]`, summed."""
    seen = weights.shape[1]
    sums: Floats = reads[0, :, :seen] @ weights[0] + reads[1, :, :seen] @ weights[1]
    return sums


def _exchange_values(group: Codes, outputs: Floats, exchange: Exchange) -> Codes:
    """Exchange codes `[n, width]` by what the network says of them, `[n, 2 * width]`."""
    sums = outputs.astype(np.int32)
    width = group.shape[1]
    quarters = np.clip((sums[:, :width] + WEIGHT_UNITS * UNITS // 8) >> 9, -4 * 127, 4 * 127)
    expected = (quarters + 2) >> 2
    phase = quarters - 4 * expected + 2
    scale = np.clip((sums[:, width:] >> 8) + 24, 0, NUM_SCALES - 1)
    differences = (group - expected).ravel()
    symbols = np.where(np.abs(differences) > LARGEST, _ESCAPE, differences + LARGEST)
    symbols = exchange((scale * NUM_PHASES + phase).ravel(), symbols).astype(np.int64)
    received = symbols - LARGEST
    escaped = np.flatnonzero(symbols == _ESCAPE)
    if len(escaped):
        table = np.full(len(escaped), _HALF_TABLE)
        low = exchange(table, differences[escaped] & 15).astype(np.int64)
        high = exchange(table, differences[escaped] >> 4 & 15).astype(np.int64)
        received[escaped] = high << 4 | low
    codes: Codes = (expected.ravel() + received).astype(np.int8).reshape(group.shape)
    return codes


def _hidden(sums: Floats, units: int) -> Floats:
    """Rectified hidden values from sums of inputs of `units` to one."""
    values: Floats = np.clip(np.floor(sums * np.float32(UNITS / (units * WEIGHT_UNITS))), 0, MAX_HIDDEN)
    return values


def _flag_tables(sums: Floats) -> Whole:
    numbers: Whole = np.clip((sums.astype(np.int64) >> 9) + NUM_FLAG_TABLES // 2, 0, NUM_FLAG_TABLES - 1)
    return numbers + _FLAG_TABLES_AT


def _parts(count: int) -> list[slice]:
    return [slice(first, first + _ROWS) for first in range(0, count, _ROWS)]


def _join_tables(value_tables: Symbols, flag_tables: Symbols) -> FrequencyTables:
    expected = ((_FLAG_TABLES_AT, NUM_SYMBOLS), (NUM_FLAG_TABLES, 2))
    if (value_tables.shape, flag_tables.shape) != expected:
        raise ValueError(f"tables must be {expected}, got {value_tables.shape} and {flag_tables.shape}")
    joined = np.zeros((_HALF_TABLE + 1, NUM_SYMBOLS), dtype=np.int64)
    joined[:_FLAG_TABLES_AT] = value_tables
    joined[_FLAG_TABLES_AT:_HALF_TABLE, :2] = flag_tables
    joined[_HALF_TABLE, :16] = (1 << PRECISION) // 16
    return FrequencyTables(joined)


def _check_weights(shape: ContextShape, weights: Mapping[str, npt.NDArray[np.integer]]) -> None:
    expected = shape.tensor_shapes()
    got = {name: array.shape for name, array in weights.items()}
    if got != expected:
        name = next(name for name in sorted(expected.keys() | got.keys()) if expected.get(name) != got.get(name))
        raise ValueError(f"context tensor {name[:80]!r}: expected shape {expected.get(name)}, got {got.get(name)}")
    extra = max(int(np.abs(weights[name].astype(np.int64)).max()) for name in ("labels.bias", "positions.bias"))
    for name in expected:
        if not name.endswith(".weight"):
            continue
        highest = _MAX_READ if name == "neighbors.weight" else max(MAX_HIDDEN, _MAX_READ * UNITS // INPUT_UNITS)
        bias = np.abs(weights[name.replace("weight", "bias")].astype(np.int64)) + 2 * extra
        if (np.abs(weights[name].astype(np.int64)).sum(axis=1) * highest + bias).max() >= _EXACT:
            raise ValueError(f"context tensor {name!r} allows sums above {_EXACT}, which are inexact; it is damaged")
