import numpy as np
import pytest

from itgan_data.generators.packing import pack_arrays, pack_tables, unpack_arrays, unpack_tables

RNG = np.random.default_rng(0)
ARRAYS = [
    np.clip(RNG.normal(0, spread, shape).round(), -128, 127).astype(np.int8)
    for spread, shape in ((1.0, (40, 30, 3)), (60.0, (500,)), (0.1, (7, 9)), (1.0, (0, 4)))
]
SHAPES = [array.shape for array in ARRAYS]


def test_arrays_come_back() -> None:
    for array, again in zip(ARRAYS, unpack_arrays(*pack_arrays(ARRAYS), SHAPES), strict=True):
        assert again.dtype == np.int8
        assert np.array_equal(again, array)


def test_narrow_arrays_take_few_bytes() -> None:
    stream, tables = pack_arrays(ARRAYS[:1])
    assert len(stream) + len(tables) < 0.3 * ARRAYS[0].size


@pytest.mark.parametrize(
    "shapes", [SHAPES[:-1], [*SHAPES[:-2], (7, 8), (0, 4)], [*SHAPES, (3,)], SHAPES[::-1]], ids=str
)
def test_other_shapes_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="damaged"):
        unpack_arrays(*pack_arrays(ARRAYS), shapes)


def test_tables_come_back_and_damaged_ones_are_refused() -> None:
    frequencies = RNG.integers(0, 4097, (5, 7))
    packed = pack_tables(frequencies)
    assert np.array_equal(unpack_tables(packed, (5, 7)), frequencies)
    for data, shape in (
        (packed[:-1], (5, 7)),
        (packed + b"\0", (5, 7)),
        (b"", (5, 7)),
        (packed, (5, 6)),
        (packed, (6, 7)),
    ):
        with pytest.raises(ValueError, match="damaged"):
            unpack_tables(data, shape)
