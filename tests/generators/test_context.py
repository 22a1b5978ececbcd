import numpy as np
import pytest

from itgan_data.generators.codes import FrequencyTables
from itgan_data.generators.context import (
    NUM_FLAG_TABLES,
    NUM_PHASES,
    NUM_SCALES,
    NUM_SYMBOLS,
    ContextModel,
    ContextShape,
)

SHAPE = ContextShape(map_size=(2, 3), groups=(2, 3, 4), num_classes=3, hidden=6, group_hidden=5, first_flag=1)
LABELS = np.arange(50) % 3


def drawn_weights(shape: ContextShape = SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(-40, 41, size).astype(np.int8)
        if name.endswith("weight")
        else rng.integers(-3000, 3001, size).astype(np.int32)
        for name, size in shape.tensor_shapes().items()
    }


def drawn_tables(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distributions of which no two are alike."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 1000, (NUM_SCALES * NUM_PHASES, NUM_SYMBOLS))
    flags = rng.integers(1, 1000, (NUM_FLAG_TABLES, 2))
    return FrequencyTables.from_counts(values).frequencies, FrequencyTables.from_counts(flags).frequencies


def drawn_codes(spread: float, seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).normal(0, spread, (len(LABELS), SHAPE.channels, *SHAPE.map_size))
    return np.clip(codes.round(), -128, 127).astype(np.int8)


MODEL = ContextModel(SHAPE, drawn_weights(), *drawn_tables())


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 60.0, 500.0])
def test_codes_of_any_spread_come_back(spread: float) -> None:
    codes = drawn_codes(spread)
    assert np.array_equal(MODEL.decode(MODEL.encode(codes, LABELS), LABELS), codes)


def test_encoding_leaves_its_input_alone() -> None:
    codes = drawn_codes(3.0)
    MODEL.encode(codes, LABELS)
    assert np.array_equal(codes, drawn_codes(3.0))


def test_no_images_have_a_stream_too() -> None:
    none = np.zeros((0, SHAPE.channels, *SHAPE.map_size), dtype=np.int8)
    assert MODEL.decode(MODEL.encode(none, LABELS[:0]), LABELS[:0]).shape == none.shape


def test_a_group_without_codes_costs_one_flag() -> None:
    empty = np.zeros((len(LABELS), SHAPE.channels, *SHAPE.map_size), dtype=np.int8)
    full = empty.copy()
    full[:, SHAPE.groups[0] :] = 1
    assert len(MODEL.encode(empty, LABELS)) < len(MODEL.encode(full, LABELS)) / 2


def test_a_code_changes_no_table_before_it_and_some_after_it() -> None:
    seen: list[np.ndarray] = []

    def tables_of(codes: np.ndarray) -> np.ndarray:
        seen.clear()
        MODEL._walk(codes, LABELS, lambda tables, symbols: (seen.append(tables), symbols)[1])
        return np.concatenate([piece[:1] for piece in seen[: len(seen)]])

    codes = drawn_codes(3.0)
    codes[codes == 0] = 1  # so that no flag leaves a group out
    changed = codes.copy()
    changed[:, 2, 0, 1] += 1  # the second group of the second patch
    before, after = tables_of(codes.copy()), tables_of(changed)
    exchanges = [1, 2, 2] * 6  # values of the first group; a flag and values of each other group
    place = sum(exchanges[:3]) + exchanges[0] + 2
    assert np.array_equal(before[:place], after[:place])
    assert not np.array_equal(before[place:], after[place:])


def test_a_stream_needs_its_labels() -> None:
    stream = MODEL.encode(drawn_codes(3.0), LABELS)
    with pytest.raises(ValueError, match="damaged"):
        MODEL.decode(stream, (LABELS + 1) % 3)


def test_a_damaged_stream_is_refused() -> None:
    stream = MODEL.encode(drawn_codes(3.0), LABELS)
    for damaged in (stream[:-2], stream + b"\0\0", stream[:20] + b"\xff\xff" + stream[22:], b""):
        with pytest.raises(ValueError, match="damaged"):
            MODEL.decode(damaged, LABELS)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("neighbors.weight", None),
        ("neighbors.weight", np.zeros((6, 9), dtype=np.int8)),
        ("unknown.weight", np.zeros((6, 9), dtype=np.int8)),
        ("groups.0.output.bias", np.full(5, 2**30, dtype=np.int32)),
        ("labels.bias", np.full((3, 6), 2**23, dtype=np.int32)),
    ],
)
def test_weights_that_do_not_fit_or_could_be_inexact_are_refused(name: str, change: np.ndarray | None) -> None:
    weights = drawn_weights()
    weights.pop(name, None)
    if change is not None:
        weights[name] = change
    with pytest.raises(ValueError, match="context tensor"):
        ContextModel(SHAPE, weights, *drawn_tables())


def test_tables_of_another_shape_are_refused() -> None:
    values, flags = drawn_tables()
    with pytest.raises(ValueError, match="tables must be"):
        ContextModel(SHAPE, drawn_weights(), values[:-1], flags)


def test_codes_and_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="codes must be int8"):
        MODEL.encode(drawn_codes(3.0)[:, :-1], LABELS)
    with pytest.raises(ValueError, match="labels must be"):
        MODEL.encode(drawn_codes(3.0), LABELS + 1)
