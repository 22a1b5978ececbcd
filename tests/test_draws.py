"""Random numbers: what they depend on, and that each use has a stream of its own."""

import ast
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import ROOT, TinyGenerator

from itgan_data import draws
from itgan_data.augmentation import DSA
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.data.ensemble import SyntheticEnsemble
from itgan_data.data.loader import SyntheticLoader
from itgan_data.draws import Stream
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.images import Normalization
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.networks import create_network
from itgan_data.pretraining.encoder import train_encoder
from itgan_data.recipes import fast_recipe, train_classifier

Draw = Callable[..., torch.Tensor]
INDICES = torch.arange(10_000)
UNIT = Normalization((0.5,) * 3, (0.5,) * 3)
LATENTS, SOURCES = RandomLatents(6, 6, 3), [ROOT / name for name in ("itgan_data", "benchmarks", "examples")]
uniform, normal = partial(draws.uniform, stream=Stream.SCRIPT), partial(draws.normal, stream=Stream.SCRIPT)
pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def make_dataset() -> SyntheticDataset:
    return SyntheticDataset(TinyGenerator(), LATENTS)


def make_network() -> Any:
    return create_network("convnet", 3, image_shape=(3, 8, 8), width=8)


def read(dataset: Any) -> None:
    list(SyntheticLoader(dataset, 4, shuffle=True, drop_last=False, augment=DSA()))


@pytest.mark.parametrize(
    "work",
    {
        "fresh latents": lambda: LATENTS.batch(torch.arange(6)),
        "jittered latents": lambda: JitteredLatents(LATENTS, 0.1).batch(torch.arange(6)),
        "mixed latents": lambda: MixedLatents(LATENTS, LATENTS).batch(torch.arange(6)),
        "filtered latents": lambda: FilteredLatents(
            LATENTS, TinyGenerator(), make_network(), normalization=UNIT, max_tries=2
        ).batch(torch.arange(6)),
        "data set": lambda: make_dataset()[0],
        "loader": lambda: read(make_dataset()),
        "ensemble": lambda: read(SyntheticEnsemble([make_dataset(), make_dataset()])),
        "folded generator": lambda: fold(BigGAN(BigGANConfig(num_classes=3, latent_dim=6, channels=(8, 8))).eval()),
        "network": make_network,
        "classifier": lambda: train_classifier(
            make_network(), make_dataset(), fast_recipe(2, 4), normalization=UNIT, seed=0
        ),
        "encoder": lambda: train_encoder(
            TinyGenerator(), steps=2, batch_size=4, lr=0.01, seed=0, device=torch.device("cpu")
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_draws_leaves_the_global_rng_alone(work: tuple[str, Callable[[], Any]]) -> None:
    work[1]()


class TestStreams:
    def test_no_two_are_equal(self) -> None:
        assert len(set(Stream)) == len(Stream.__members__)  # a second name of a value would be an alias

    @pytest.mark.parametrize("stream", [1, 0, None])
    def test_a_number_is_none(self, stream: Any) -> None:
        for draw in (
            partial(draws.uniform, 0, 0, INDICES, 1),
            partial(draws.normal, 0, 0, INDICES, 1),
            partial(draws.permutation, 0, 0, 5),
            partial(draws.make_seed, 0),
            partial(draws.make_rng, 0),
        ):
            with pytest.raises(TypeError, match="stream must be a member"):
                draw(stream=stream)

    def test_each_is_used_in_one_file_alone(self) -> None:
        """But for the order of images in loader and recipes, and the weights of a classifier whatever trains it."""
        users: dict[str, set[str]] = defaultdict(set)
        for file in (file for folder in SOURCES for file in folder.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                    users[node.attr].add(file.stem)
        assert users.keys() == Stream.__members__.keys()
        shared = {"SHUFFLE", "CLASSIFIER", "SCRIPT"}
        assert {name for name, files in users.items() if len(files) > 1} == shared


@pytest.mark.parametrize("draw", [uniform, normal])
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
            draw(1, 2, index, 4, stream=Stream.LATENTS),
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
                draw(0, 0, INDICES, 1, stream=Stream.LATENTS)[:, 0],
            ]
        )
        correlation = torch.corrcoef(numbers.double()) - torch.eye(len(numbers))
        assert correlation.abs().max() < 5 / math.sqrt(len(INDICES))


def test_uniform_fills_the_unit_interval_evenly() -> None:
    numbers = uniform(0, 0, INDICES, 10)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    expected = numbers.numel() / 20
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


@pytest.mark.parametrize("count", [1, 7])
def test_normal_has_the_quantiles_of_the_normal_distribution(count: int) -> None:
    numbers = normal(0, 0, INDICES, count)
    assert numbers.isfinite().all()
    probabilities = torch.special.ndtr(numbers.double()).flatten().sort().values
    even = (torch.arange(len(probabilities)) + 0.5) / len(probabilities)
    assert (probabilities - even).abs().max() < 2 / math.sqrt(len(probabilities))  # Kolmogorov and Smirnov's test


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    uses = ((0, Stream.SHUFFLE), (0, Stream.SHUFFLE), (1, Stream.SHUFFLE), (0, Stream.SCRIPT))
    first, again, other, another = (draws.permutation(3, epoch, 1000, stream=stream) for epoch, stream in uses)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, another)


def splitmix64(state: int) -> int:
    """The published generator, in Python's own integers."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def test_seeds_are_mixed_by_splitmix64() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # its first published output
    expected = splitmix64(splitmix64(splitmix64(7) ^ Stream.SCRIPT) ^ 5) % 2**63
    assert draws.make_seed(7, 5, stream=Stream.SCRIPT) == expected


def test_seeds_are_valid_and_differ() -> None:
    keys = [(), (0,), (1,), (0, 1), (1, 0)]
    seeds = [draws.make_seed(seed, *key, stream=Stream.SCRIPT) for seed in (-1, 0, 1, 2**62) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_an_rng_follows_its_seed_and_keys() -> None:
    rngs = (draws.make_rng(4, key, stream=Stream.SCRIPT) for key in (1, 1, 2))
    first, again, other = (torch.rand(3, generator=rng) for rng in rngs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
