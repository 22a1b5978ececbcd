"""How integers become bits and come back: asymmetric numeral systems in whole numbers, many lanes at a time.

A stream is decoded alike on every machine, since nothing in it depends on floating point. What is read may come from
anyone: a stream that is damaged, or was written with other tables, is refused with a ValueError.

Source: Duda, "Asymmetric numeral systems", 2013; interleaved as by Giesen, "Interleaved entropy coders", 2014.
"""

import numpy as np
import numpy.typing as npt

PRECISION = 12
"""Bits of a probability: the frequencies of a table sum to `2**PRECISION`."""

Symbols = npt.NDArray[np.integer]
Whole = npt.NDArray[np.int64]
States = npt.NDArray[np.uint64]

_TOTAL = 1 << PRECISION
_WORD = 16  # bits that a lane gives or takes at a time
_LOWEST = 1 << _WORD  # of a state between two symbols; the highest is below 2**32
_MAX_SYMBOLS = 256
_MAX_LANES = 1 << 14
_SYMBOLS_A_LANE = 12_000  # even at half a bit each, the four bytes of a state are below one per cent of their share


class FrequencyTables:
    """Distributions over symbols `0..S-1`, in units of `2**-PRECISION`.

    Args:
        frequencies: integers `[T, S]`, not negative, each row with the sum `2**PRECISION`; a symbol of frequency 0
            cannot be coded.

    Raises:
        ValueError: another shape, or a row that is no distribution.
    """

    def __init__(self, frequencies: Symbols) -> None:
        if frequencies.ndim != 2 or not 0 < frequencies.shape[1] <= _MAX_SYMBOLS or len(frequencies) == 0:
            raise ValueError(f"frequencies must be [T, 1 to {_MAX_SYMBOLS} symbols], got {list(frequencies.shape)}")
        whole = frequencies.astype(np.int64)
        invalid = (whole.min(axis=1) < 0) | (whole.sum(axis=1) != _TOTAL)
        if invalid.any():
            row = int(np.flatnonzero(invalid)[0])
            raise ValueError(
                f"frequencies must not be negative and sum to {_TOTAL} in every table, got a lowest of "
                f"{int(whole[row].min())} and a sum of {int(whole[row].sum())} in table {row}; the tables are damaged"
            )
        self.frequencies = whole
        self._starts = np.cumsum(whole, axis=1) - whole
        self._symbol_at = np.repeat(
            np.tile(np.arange(whole.shape[1], dtype=np.uint8), len(whole)), whole.ravel()
        )  # of table t and slot s, at t * 2**PRECISION + s

    @staticmethod
    def from_counts(counts: Symbols) -> "FrequencyTables":
        """The tables `[T, S]` nearest to counts; a symbol that was counted keeps at least one unit.

        The last symbol keeps one in any case, so that what was never counted can be told by it.
        """
        weights = counts.astype(np.int64)
        weights[:, -1] = np.maximum(weights[:, -1], 1)
        rows = [_apportion(row) for row in weights]
        return FrequencyTables(np.stack(rows))

    @property
    def shape(self) -> tuple[int, int]:
        return self.frequencies.shape[0], self.frequencies.shape[1]

    def bits(self, symbols: Symbols, tables: Symbols) -> float:
        """Length of the code of `symbols` `[n]` under `tables` `[n]`, in bits."""
        return float((PRECISION - np.log2(self.frequencies[tables, symbols])).sum())


def _apportion(weights: Whole) -> Whole:
    """Whole frequencies in proportion to weights; rounding is made up for where it costs least."""
    used = weights > 0
    frequencies = np.where(used, np.maximum(weights * _TOTAL // weights.sum(), 1), 0)
    surplus = int(frequencies.sum()) - _TOTAL
    while surplus:
        change = -1 if surplus > 0 else 1
        able = used & ((frequencies > 1) | (change > 0))
        cost = np.where(able, -change * weights / np.maximum(frequencies, 1), np.inf)
        frequencies[np.argmin(cost)] += change
        surplus += change
    return frequencies


class SymbolWriter:
    """Collects symbols in the order in which a `SymbolReader` will give them back.

    Args:
        tables: the distributions.
    """

    def __init__(self, tables: FrequencyTables) -> None:
        self._tables = tables
        self._symbols: list[npt.NDArray[np.uint8]] = []
        self._places: list[npt.NDArray[np.uint16]] = []

    def write(self, symbols: Symbols, tables: Symbols) -> None:
        """Add symbols `[n]`, each under the table of its number in `tables` `[n]`.

        Raises:
            ValueError: a symbol without a frequency in its table.
        """
        if len(symbols) and not self._tables.frequencies[tables, symbols].all():
            place = int(np.flatnonzero(self._tables.frequencies[tables, symbols] == 0)[0])
            raise ValueError(f"symbol {int(symbols[place])} has no frequency in table {int(tables[place])}")
        self._symbols.append(symbols.astype(np.uint8))
        self._places.append(tables.astype(np.uint16))

    def finish(self) -> bytes:
        """The stream: number of lanes, their states, then words of 16 bits in the order of reading."""
        count = sum(map(len, self._symbols))
        lanes = min(max(count // _SYMBOLS_A_LANE, 1), _MAX_LANES)
        states = np.full(lanes, _LOWEST, dtype=np.uint64)
        words: list[npt.NDArray[np.uint16]] = []
        for symbols, tables in zip(reversed(self._symbols), reversed(self._places), strict=True):
            frequencies = self._tables.frequencies[tables, symbols].astype(np.uint64)
            starts = self._tables._starts[tables, symbols].astype(np.uint64)
            for first in reversed(range(0, len(symbols), lanes)):
                words.append(_push(states, frequencies[first : first + lanes], starts[first : first + lanes]))
        stream = np.concatenate([*reversed(words), np.empty(0, dtype=np.uint16)])
        header = np.array([lanes], dtype="<u2").tobytes()
        return header + states.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def _push(states: States, frequencies: States, starts: States) -> npt.NDArray[np.uint16]:
    """Add one symbol to each of the first lanes, in place; the words that had to make room, in order of lanes."""
    lanes = states[: len(frequencies)]
    full = lanes >= frequencies << np.uint64(2 * _WORD - PRECISION)
    words = lanes[full].astype(np.uint16)
    lanes[full] >>= np.uint64(_WORD)
    lanes[:] = ((lanes // frequencies) << np.uint64(PRECISION)) + lanes % frequencies + starts
    return words


class SymbolReader:
    """Reads what a `SymbolWriter` with the same tables has written.

    Args:
        stream: what `finish` gave.
        tables: the distributions.

    Raises:
        ValueError: the stream is too short for its lanes.
    """

    def __init__(self, stream: bytes, tables: FrequencyTables) -> None:
        lanes = int(np.frombuffer(stream[:2].ljust(2, b"\0"), dtype="<u2")[0])
        words_at = 2 + 4 * lanes
        if not 0 < lanes <= _MAX_LANES or len(stream) < words_at or len(stream) % 2:
            raise ValueError(
                f"a stream of {len(stream)} bytes cannot hold the states of {lanes} lanes (1 to {_MAX_LANES}) "
                "and whole words; it is damaged"
            )
        self._states = np.frombuffer(stream, dtype="<u4", count=lanes, offset=2).astype(np.uint64)
        self._words = np.frombuffer(stream, dtype="<u2", offset=words_at).astype(np.uint64)
        self._next = 0
        self._symbol_at = tables._symbol_at
        self._num_symbols = tables.shape[1]
        frequencies, starts = tables.frequencies.astype(np.uint64), tables._starts.astype(np.uint64)
        self._spans = (frequencies << np.uint64(_WORD) | starts).ravel()

    def read(self, tables: Symbols) -> npt.NDArray[np.uint8]:
        """The next symbols `[n]`, each under the table of its number in `tables` `[n]`.

        Raises:
            ValueError: the stream ends before.
        """
        symbols = np.empty(len(tables), dtype=np.uint8)
        numbers = tables.astype(np.int64)
        lanes = len(self._states)
        for first in range(0, len(numbers), lanes):
            symbols[first : first + lanes] = self._pop(numbers[first : first + lanes])
        return symbols

    def _pop(self, tables: Whole) -> npt.NDArray[np.uint8]:
        """One symbol of each of the first lanes."""
        lanes = self._states[: len(tables)]
        slots = lanes & np.uint64(_TOTAL - 1)
        symbols: npt.NDArray[np.uint8] = self._symbol_at[(tables << PRECISION) + slots.astype(np.int64)]
        spans = self._spans[tables * self._num_symbols + symbols]
        lanes >>= np.uint64(PRECISION)
        lanes *= spans >> np.uint64(_WORD)
        lanes += slots
        lanes -= spans & np.uint64(_LOWEST - 1)
        low = np.flatnonzero(lanes < _LOWEST)
        if self._next + len(low) > len(self._words):
            raise ValueError("the stream ends before its symbols do; it is damaged")
        lanes[low] = lanes[low] << np.uint64(_WORD) | self._words[self._next : self._next + len(low)]
        self._next += len(low)
        return symbols

    def finish(self) -> None:
        """Check that everything was read, and that it was what was written.

        Raises:
            ValueError: words are left over, or the lanes do not end where writing began.
        """
        if self._next != len(self._words) or (self._states != _LOWEST).any():
            raise ValueError(
                f"{len(self._words) - self._next} words of the stream are left over, or its symbols are not those that "
                "were written; it is damaged, or of other tables"
            )
