import numpy as np
import pytest
import torch

from itgan_data.generators.context import ContextModel, ContextShape
from itgan_data.pretraining.context_fit import ContextFit, _ContextNetwork, _inputs, fit_context

SHAPE = ContextShape(map_size=(2, 2), groups=(2, 4), num_classes=2, hidden=8, group_hidden=8, first_flag=1)
LABELS = torch.arange(400) % 2


def drawn_codes() -> torch.Tensor:
    """Maps whose level is the same everywhere, and whose spread follows the class."""
    rng = torch.Generator().manual_seed(0)
    level = 6 * torch.randn(len(LABELS), 1, 1, 1, generator=rng)
    noise = torch.randn(len(LABELS), SHAPE.channels, 2, 2, generator=rng) * (0.2 + LABELS[:, None, None, None])
    noise[:, :1] += level
    return noise.round().clamp(-128, 127).to(torch.int8)


def fitted(steps: int, seed: int = 0) -> ContextModel:
    return fit_context(SHAPE, drawn_codes(), LABELS, ContextFit(steps=steps, batch_size=64, lr=0.02), seed=seed)


def length(model: ContextModel) -> int:
    return len(model.encode(drawn_codes().numpy(), LABELS.numpy()))


def test_a_fit_learns_from_neighbours_and_labels() -> None:
    codes = drawn_codes().numpy()
    counts = [np.unique(codes[:, channel], return_counts=True)[1] / codes[:, channel].size for channel in range(6)]
    by_channel = sum(-(share * np.log2(share)).sum() * codes[:, 0].size / 8 for share in counts)
    assert length(fitted(200)) < 0.8 * by_channel


def test_the_float_twin_knows_the_length_of_the_code() -> None:
    lengths: list[float] = []
    codes = drawn_codes()
    model = fit_context(
        SHAPE,
        codes,
        LABELS,
        ContextFit(steps=300, batch_size=400, lr=0.02),
        progress=lambda _, loss: lengths.append(float(loss)),
    )
    assert len(model.encode(codes.numpy(), LABELS.numpy())) / len(codes) == pytest.approx(lengths[-1], rel=0.1)


def test_the_float_twin_names_the_tables_of_the_integers() -> None:
    torch.manual_seed(0)
    network = _ContextNetwork(SHAPE, drawn_codes())
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    seen: list[np.ndarray] = []
    codes = drawn_codes()
    model = ContextModel.counted(SHAPE, network.integers(), codes.numpy(), LABELS.numpy())
    model._walk(codes.numpy().copy(), LABELS.numpy(), lambda tables, symbols: (seen.append(tables), symbols)[1])
    summary = network._summary(_inputs(codes), LABELS).view(len(codes), 4, SHAPE.hidden)[:, 0]
    hidden = (torch.relu(network.hidden[0](summary)).clamp(max=255 / 32) * 32).floor() / 32
    scale = ((network.outputs[0](hidden)[:, 2:4] * 8).floor() + 24).clamp(0, 44)
    assert np.array_equal(seen[0].reshape(-1, 2) // 4, scale.detach().numpy())


def test_a_fit_is_a_function_of_its_seed() -> None:
    first, again, other = fitted(50), fitted(50), fitted(50, seed=1)
    codes, labels = drawn_codes().numpy(), LABELS.numpy()
    assert first.encode(codes, labels) == again.encode(codes, labels)
    assert first.encode(codes, labels) != other.encode(codes, labels)


def test_codes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="codes must be int8"):
        fit_context(SHAPE, drawn_codes()[:, :-1], LABELS, ContextFit(steps=1))
    with pytest.raises(ValueError, match="codes must be int8"):
        fit_context(SHAPE, drawn_codes().float(), LABELS, ContextFit(steps=1))
