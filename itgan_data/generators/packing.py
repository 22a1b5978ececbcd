"""Arrays of small integers in few bytes: each array entropy-coded by how often its own values occur."""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .codes import FrequencyTables, SymbolReader, Symbols, SymbolWriter, Whole

Int8s = npt.NDArray[np.int8]

_NUM_VALUES = 256  # of int8
_MAX_TABLES = 1024


def pack_tables(frequencies: Symbols) -> bytes:
    """Tables of frequencies `[T, S]` below 2**16, compressed; most of them are 0."""
    low, high = frequencies & 255, frequencies >> 8
    return zlib.compress(np.stack([low, high]).astype(np.uint8).tobytes(), 9)


def unpack_tables(data: bytes, shape: tuple[int, int]) -> Whole:
    """What `pack_tables` packed.

    Raises:
        ValueError: damaged data, or tables of another shape.
    """
    expected = 2 * shape[0] * shape[1]
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data, expected + 1)
    except zlib.error as error:
        raise ValueError(f"tables cannot be decompressed ({error}); they are damaged") from error
    if len(content) != expected or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"tables must be of shape {list(shape)} and nothing more; they are damaged")
    low, high = np.frombuffer(content, dtype=np.uint8).astype(np.int64).reshape(2, *shape)
    return low | high << 8


def pack_arrays(arrays: Sequence[Int8s]) -> tuple[bytes, bytes]:
    """The values of int8 arrays as a stream, and the tables, one for each array, that it is read with."""
    counts = np.stack([np.bincount(_symbols(array), minlength=_NUM_VALUES) for array in arrays])
    tables = FrequencyTables.from_counts(counts)
    writer = SymbolWriter(tables)
    for number, array in enumerate(arrays):
        writer.write(_symbols(array), np.full(array.size, number))
    return writer.finish(), pack_tables(tables.frequencies)


def unpack_arrays(stream: bytes, tables: bytes, shapes: Sequence[tuple[int, ...]]) -> list[Int8s]:
    """What `pack_arrays` packed, of these shapes.

    Raises:
        ValueError: a damaged stream or tables, or more or less than these shapes hold.
    """
    if len(shapes) > _MAX_TABLES:
        raise ValueError(f"at most {_MAX_TABLES} arrays are packed together, got {len(shapes)}")
    reader = SymbolReader(stream, FrequencyTables(unpack_tables(tables, (len(shapes), _NUM_VALUES))))
    arrays = []
    for number, shape in enumerate(shapes):
        symbols = reader.read(np.full(int(np.prod(shape)), number))
        arrays.append((symbols.astype(np.int16) - _NUM_VALUES // 2).astype(np.int8).reshape(shape))
    reader.finish()
    return arrays


def _symbols(array: Int8s) -> Whole:
    return array.astype(np.int64).ravel() + _NUM_VALUES // 2
