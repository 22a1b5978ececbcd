import math
from collections.abc import Callable

import pytest
import torch

from itgan_data import draws

Draw = Callable[..., torch.Tensor]
INDICES = torch.arange(10_000)
pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.mark.parametrize("draw", [draws.uniform, draws.normal])
class TestCounterBased:
    def test_numbers_do_not_depend_on_the_batch_or_its_order(self, draw: Draw) -> None:
        whole = draw(7, 3, INDICES, 5)
        assert whole.shape == (len(INDICES), 5)
        assert whole.dtype == torch.float32
        chosen = torch.tensor([9_000, 4, 77, 4])
        assert torch.equal(draw(7, 3, chosen, 5), whole[chosen])

    def test_seed_epoch_index_and_stream_each_give_other_numbers(self, draw: Draw) -> None:
        index = torch.tensor([5])
        different = [
            draw(1, 2, index, 4),
            draw(2, 2, index, 4),
            draw(2, 1, index, 4),  # not the sum of the two
            draw(1, 2, index + 1, 4),
            draw(1, 2, index, 4, stream=1),
            draw(-1, 2, index, 4),
        ]
        assert len({tuple(numbers.flatten().tolist()) for numbers in different}) == len(different)

    def test_neighbours_are_uncorrelated(self, draw: Draw) -> None:
        """Columns, the next index, the next epoch, the next seed and the next stream."""
        numbers = torch.stack(
            [
                *draw(0, 0, INDICES, 3).unbind(1),
                draw(0, 0, INDICES + 1, 1)[:, 0],
                draw(0, 1, INDICES, 1)[:, 0],
                draw(1, 0, INDICES, 1)[:, 0],
                draw(0, 0, INDICES, 1, stream=1)[:, 0],
            ]
        )
        correlation = torch.corrcoef(numbers.double()) - torch.eye(len(numbers))
        assert correlation.abs().max() < 5 / math.sqrt(len(INDICES))


def test_uniform_fills_the_unit_interval_evenly() -> None:
    numbers = draws.uniform(0, 0, INDICES, 10)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    expected = numbers.numel() / 20
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


@pytest.mark.parametrize("count", [1, 7])
def test_normal_has_the_quantiles_of_the_normal_distribution(count: int) -> None:
    numbers = draws.normal(0, 0, INDICES, count)
    assert numbers.isfinite().all()
    probabilities = torch.special.ndtr(numbers.double()).flatten().sort().values
    even = (torch.arange(len(probabilities)) + 0.5) / len(probabilities)
    assert (probabilities - even).abs().max() < 2 / math.sqrt(len(probabilities))  # Kolmogorov and Smirnov's test


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    first, again, other, another = (
        draws.permutation(3, epoch, 1000, stream=stream) for epoch, stream in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, another)


def test_seeds_are_mixed_by_splitmix64() -> None:
    assert draws.make_seed(0) == 0xE220A8397B1DCDAF & (2**63 - 1)  # the first output of the published generator


def test_seeds_are_valid_and_differ() -> None:
    seeds = [draws.make_seed(seed, *keys) for seed in (-1, 0, 1, 2**62) for keys in ((), (0,), (1,), (0, 1), (1, 0))]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_an_rng_follows_its_seed_and_keys() -> None:
    first, again, other = (torch.rand(3, generator=draws.make_rng(4, key)) for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
