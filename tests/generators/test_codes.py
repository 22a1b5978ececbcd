import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itgan_data.generators.codes import PRECISION, FrequencyTables, SymbolReader, SymbolWriter

SCALES = np.array([0.1, 1.0, 10.0])
COUNTS = (1e5 * np.exp(-np.abs(np.arange(32) - 16) / SCALES[:, None])).astype(np.int64)
TABLES = FrequencyTables.from_counts(COUNTS)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and the tables they were drawn from."""
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, len(SCALES), count)
    ends = TABLES.frequencies.cumsum(axis=1)[tables]
    return (rng.integers(0, 1 << PRECISION, count)[:, None] >= ends).sum(axis=1), tables


def written(pieces: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    writer = SymbolWriter(TABLES)
    for symbols, tables in pieces:
        writer.write(symbols, tables)
    return writer.finish()


def read_all(stream: bytes, tables: np.ndarray) -> np.ndarray:
    reader = SymbolReader(stream, TABLES)
    symbols = reader.read(tables)
    reader.finish()
    return symbols


@pytest.mark.parametrize("lengths", [[], [0], [1], [1, 0, 3], [50_000], [7, 20_000, 1, 9_999]], ids=str)
def test_symbols_come_back_in_the_order_they_were_written(lengths: list[int]) -> None:
    pieces = [drawn(length, seed) for seed, length in enumerate(lengths)]
    reader = SymbolReader(written(pieces), TABLES)
    for symbols, tables in pieces:
        assert np.array_equal(reader.read(tables), symbols)
    reader.finish()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_any_distribution_that_is_allowed_codes_all_its_symbols(weights: list[int], seed: int) -> None:
    tables = FrequencyTables.from_counts(np.array([weights]))
    symbols = np.random.default_rng(seed).integers(0, len(weights), 300)
    writer = SymbolWriter(tables)
    writer.write(symbols, np.zeros(300, dtype=np.int64))
    assert np.array_equal(SymbolReader(writer.finish(), tables).read(np.zeros(300, dtype=np.int64)), symbols)


def test_the_stream_is_as_long_as_the_distributions_say() -> None:
    symbols, tables = drawn(400_000)
    expected = TABLES.bits(symbols, tables) / 8
    assert expected <= len(written([(symbols, tables)])) < 1.01 * expected


def test_a_stream_is_the_same_on_every_machine() -> None:
    writer = SymbolWriter(FrequencyTables(np.array([[4000, 90, 6], [1, 95, 4000]])))
    writer.write(np.array([0, 1, 2, 2, 0, 1, 0, 0]), np.array([0, 0, 0, 1, 0, 1, 1, 0]))
    assert writer.finish().hex() == "01002f680100fd7f0000"


def test_counts_become_the_nearest_frequencies() -> None:
    tables = FrequencyTables.from_counts(np.array([[3000, 1000, 0, 0], [0, 0, 0, 0], [10**9, 1, 0, 0]]))
    assert tables.frequencies.tolist() == [[3071, 1023, 0, 2], [0, 0, 0, 4096], [4094, 1, 0, 1]]


def test_a_symbol_that_cannot_be_coded_is_refused() -> None:
    writer = SymbolWriter(FrequencyTables(np.array([[4096, 0], [0, 4096]])))
    with pytest.raises(ValueError, match="symbol 1 has no frequency in table 0"):
        writer.write(np.array([0, 1]), np.array([0, 0]))


@pytest.mark.parametrize(
    "frequencies",
    [np.full((2, 4), 1000), np.array([[5000, -904]]), np.zeros((0, 4)), np.ones(4096), np.ones((1, 4096))],
)
def test_tables_that_are_no_distributions_are_refused(frequencies: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frequencies must"):
        FrequencyTables(frequencies)


def test_a_damaged_stream_is_refused() -> None:
    symbols, tables = drawn(20_000)
    stream = written([(symbols, tables)])
    flipped = bytearray(stream)
    flipped[len(stream) // 2] ^= 64
    other_lanes = b"\xff\xff" + stream[2:]
    for damaged in (stream[:-2], stream[:-1], stream + b"\0\0", stream[:1], b"", b"\0\0", other_lanes, bytes(flipped)):
        with pytest.raises(ValueError, match="damaged"):
            read_all(damaged, tables)


def test_a_stream_of_other_tables_is_refused() -> None:
    symbols, tables = drawn(20_000)
    stream = written([(symbols, tables)])
    with pytest.raises(ValueError, match="damaged"):
        read_all(stream, (tables + 1) % 3)
