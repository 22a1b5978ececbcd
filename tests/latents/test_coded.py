import numpy as np
import pytest
import torch

from itgan_data.generators.codes import FrequencyTables
from itgan_data.generators.context import (
    NUM_FLAG_TABLES,
    NUM_PHASES,
    NUM_SCALES,
    NUM_SYMBOLS,
    ContextModel,
    ContextShape,
)
from itgan_data.latents.coded import CodedRows, check_coded_header, coded_tensors, read_coded, take_turns, turns
from itgan_data.storage.files import TensorInfo

SHAPE = ContextShape(map_size=(2, 2), groups=(2, 3), num_classes=4, hidden=6, group_hidden=5, first_flag=1)


@pytest.fixture(scope="module")
def context() -> ContextModel:
    rng = np.random.default_rng(0)
    weights = {
        name: rng.integers(-40, 41, size).astype(np.int8 if name.endswith("weight") else np.int32)
        for name, size in SHAPE.tensor_shapes().items()
    }
    values = FrequencyTables.from_counts(rng.integers(1, 99, (NUM_SCALES * NUM_PHASES, NUM_SYMBOLS))).frequencies
    flags = FrequencyTables.from_counts(rng.integers(1, 99, (NUM_FLAG_TABLES, 2))).frequencies
    return ContextModel(SHAPE, weights, values, flags)


def drawn_rows(context: ContextModel, count: int = 30) -> CodedRows:
    codes = torch.randint(-9, 10, (count, 20), generator=torch.Generator().manual_seed(0))
    return CodedRows(codes.to(torch.int8), context)


def as_info(tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "labels", [take_turns(torch.tensor([7, 3, 0, 20])), torch.arange(30) // 9], ids=["turns", "sorted"]
)
def test_rows_and_labels_come_back(context: ContextModel, labels: torch.Tensor) -> None:
    rows = drawn_rows(context)
    tensors = coded_tensors(rows, labels)
    check_coded_header(as_info(tensors))
    again, again_labels = read_coded(tensors)
    assert torch.equal(again.codes, rows.codes)
    assert torch.equal(again_labels, labels)
    assert coded_tensors(again, labels).keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in coded_tensors(again, labels).items())


def test_classes_that_take_turns_need_no_bytes(context: ContextModel) -> None:
    assert "labels_codes" not in coded_tensors(drawn_rows(context), take_turns(torch.tensor([10, 10, 5, 5])))


def test_every_class_is_spread_evenly() -> None:
    counts = torch.tensor([50, 0, 10, 200])
    labels = take_turns(counts)
    assert torch.equal(torch.bincount(labels, minlength=4), counts)
    for part in labels.split(26):
        assert (torch.bincount(part, minlength=4) - counts / 10).abs().max() <= 1


def test_turns_keep_the_order_within_a_class() -> None:
    labels = torch.tensor([2, 0, 0, 2, 1, 2, 2, 0])
    order = turns(labels)
    assert torch.equal(order.sort().values, torch.arange(8))
    assert torch.equal(labels[order], take_turns(torch.bincount(labels)))
    assert torch.equal(order[labels[order] == 2], torch.tensor([0, 3, 5, 6]))


def test_rows_are_read_as_floats(context: ContextModel) -> None:
    rows = drawn_rows(context)
    picked = rows[torch.tensor([4, 2])]
    assert picked.dtype == torch.float32
    assert torch.equal(picked, rows.codes[[4, 2]].float())
    assert rows.select(torch.tensor([4])).shape == (1, 20)


def test_codes_of_another_width_are_refused(context: ContextModel) -> None:
    with pytest.raises(ValueError, match="codes must be"):
        CodedRows(torch.zeros(3, 19, dtype=torch.int8), context)


@pytest.mark.parametrize(
    "name", ["codes", "class_counts", "context_sizes", "context_weights", "context_biases", "value_tables"]
)
def test_a_file_that_lacks_a_tensor_or_has_another_type_is_refused(context: ContextModel, name: str) -> None:
    info = as_info(coded_tensors(drawn_rows(context), torch.arange(30) % 4))
    for change in (None, TensorInfo(torch.float32, (3,)), TensorInfo(info[name].dtype, (3, 4))):
        damaged = {**info, name: change} if change else {key: value for key, value in info.items() if key != name}
        with pytest.raises(ValueError, match=f"tensor '{name}' of coded latents must be"):
            check_coded_header(damaged)


def test_damaged_tensors_are_refused(context: ContextModel) -> None:
    tensors = coded_tensors(drawn_rows(context), torch.arange(30) // 9)
    for name, tensor in tensors.items():
        for changed in (tensor[:-1], torch.cat([tensor, tensor[:2]]), tensor.clone().fill_(77)):
            with pytest.raises(ValueError):
                read_coded({**tensors, name: changed})
    for change in (
        {"class_counts": torch.tensor([2**40] * 4)},
        {"context_sizes": torch.tensor([-1] * 10, dtype=torch.int32)},
    ):
        with pytest.raises(ValueError):
            read_coded({**tensors, **change})
