import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.latents.stored import LatentSet, LatentSource

SIZE = 20
EVERYTHING = torch.arange(SIZE)


def make_learned(count: int = SIZE) -> LatentSet:
    """Latents far from any draw, class after class."""
    labels = torch.arange(count) * 3 // count
    return LatentSet(100.0 + torch.arange(count * 4.0).view(count, 4), labels)


def make_mixed(**options: Any) -> MixedLatents:
    learned = make_learned()
    return MixedLatents(learned, RandomLatents(SIZE, 4, 3, labels=learned.labels), **options)


SOURCES = {
    "random": RandomLatents(SIZE, 4, 3, seed=7),
    "truncated": RandomLatents(SIZE, 4, 3, truncation=0.5),
    "jittered": JitteredLatents(make_learned(), 0.1),
    "mixed": make_mixed(),
    "jittered and mixed": JitteredLatents(make_mixed(), 0.1),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> LatentSource:
    return SOURCES[request.param]


class TestEverySource:
    @given(indices=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE), epoch=st.integers(0, 5))
    @pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
    def test_a_latent_does_not_depend_on_its_batch(self, source: LatentSource, indices: list[int], epoch: int) -> None:
        everything, labels = source.batch(EVERYTHING, epoch)
        batch = source.batch(torch.tensor(indices), epoch)
        assert torch.equal(batch[0], everything[indices])
        assert torch.equal(batch[1], labels[indices])

    def test_epochs_differ_in_latents_but_not_in_labels(self, source: LatentSource) -> None:
        first, second = source.batch(EVERYTHING, 0), source.batch(EVERYTHING, 1)
        assert source.fresh
        assert not torch.equal(first[0], second[0])
        assert torch.equal(first[1], source.labels)
        assert torch.equal(second[1], source.labels)

    def test_it_describes_itself(self, source: LatentSource) -> None:
        assert (len(source), source.latent_dim, source.num_classes) == (SIZE, 4, 3)
        assert source.batch(EVERYTHING)[0].dtype == torch.float32
        assert repr(source).startswith(type(source).__name__)


class TestRandom:
    def test_classes_are_balanced_unless_labels_are_given(self) -> None:
        assert torch.bincount(RandomLatents(10, 4, 3).labels).tolist() == [4, 3, 3]
        labels = torch.tensor([2, 2, 0])
        assert torch.equal(RandomLatents(3, 4, 3, labels=labels).batch(torch.arange(3))[1], labels)

    def test_seeds_differ(self) -> None:
        one, other = (RandomLatents(10, 4, 3, seed=seed).batch(torch.arange(10))[0] for seed in (1, 2))
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(("truncation", "std"), [(None, 1.0), (1.5, 0.7424), (0.5, 0.2840)])
    def test_moments_are_those_of_the_truncated_normal(self, truncation: float | None, std: float) -> None:
        latents, _ = RandomLatents(2000, 50, 10, truncation=truncation).batch(torch.arange(2000))
        assert abs(float(latents.mean())) < 0.015
        assert float(latents.std()) == pytest.approx(std, rel=0.01)
        assert truncation is None or float(latents.abs().max()) <= truncation

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((0, 4, 3), {}, "size must be at least 1, got 0"),
            ((5, 0, 3), {}, "latent_dim must be at least 1, got 0"),
            ((5, 4, 0), {}, "num_classes must be at least 1, got 0"),
            ((5, 4, 3), {"truncation": 0.0}, r"truncation must be positive or None, got 0\.0"),
            ((5, 4, 3), {"labels": torch.zeros(4, dtype=torch.int64)}, r"labels must be int64 \[5\].*\(4,\)"),
            ((2, 4, 3), {"labels": torch.tensor([0, 3])}, r"labels must lie in 0\.\.2, got 0\.\.3"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, arguments: tuple[int, int, int], options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            RandomLatents(*arguments, **options)


class TestJittered:
    def test_the_noise_has_its_standard_deviation_and_mean_zero(self) -> None:
        learned = LatentSet.drawn_from(RandomLatents(2000, 50, 10))
        everything = torch.arange(2000)
        noise = JitteredLatents(learned, 0.3).batch(everything)[0] - learned.latents
        assert abs(float(noise.mean())) < 0.005
        assert float(noise.std()) == pytest.approx(0.3, rel=0.01)

    def test_it_is_independent_of_draws_of_the_same_seed(self) -> None:
        drawn = RandomLatents(2000, 50, 10, seed=3)
        everything = torch.arange(2000)
        latents = drawn.batch(everything)[0]
        noise = JitteredLatents(drawn, 1.0, seed=3).batch(everything)[0] - latents
        assert abs(float((noise * latents).mean())) < 0.01

    @pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
    def test_noise_that_is_none_or_no_number_is_refused(self, std: float) -> None:
        with pytest.raises(ValueError, match="std must be positive, got"):
            JitteredLatents(make_learned(), std)


class TestMixed:
    def test_each_index_has_its_learned_or_its_fresh_latent(self) -> None:
        learned, mixed = make_learned(), make_mixed()
        for epoch in range(3):
            latents = mixed.batch(EVERYTHING, epoch)[0]
            replaced = latents[:, 0] < 50
            assert 0 < replaced.sum() < SIZE
            assert torch.equal(latents[~replaced], learned.latents[~replaced])
            assert torch.equal(latents[replaced], mixed.other.batch(EVERYTHING, epoch)[0][replaced])

    @pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
    def test_the_share_is_obeyed_in_the_long_run(self, share: float) -> None:
        mixed = make_mixed(share=share)
        replaced = torch.stack([mixed.batch(EVERYTHING, epoch)[0][:, 0] < 50 for epoch in range(200)])
        assert float(replaced.double().mean()) == pytest.approx(share, abs=0.02)

    def test_what_does_not_fit_is_refused(self) -> None:
        learned = make_learned()
        with pytest.raises(ValueError, match=r"same labels in the same order.*give RandomLatents labels="):
            MixedLatents(learned, RandomLatents(SIZE, 4, 3))
        with pytest.raises(ValueError, match="latents of one width, got 4 and 5"):
            MixedLatents(learned, RandomLatents(SIZE, 5, 3, labels=learned.labels))
        for share in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got"):
                make_mixed(share=share)
