import logging
import math
from typing import Any

import pytest
import torch
from conftest import TinyGenerator
from torch import nn
from torch.utils.data import DataLoader

from itgan_data.data.dataset import SyntheticDataset
from itgan_data.images import Normalization
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.latents.fresh import JitteredLatents, MixedLatents, RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.recipes import predict_logits

SIZE = 30
EVERYTHING = torch.arange(SIZE)
SIGNED = Normalization((0.5,), (0.5,))  # standardized images are the signed ones


class OnePixel(nn.Module):
    """The image is one pixel, `tanh(latent)`; the two classes are alike."""

    latent_dim = 1
    num_classes = 2
    image_shape = (1, 1, 1)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents).view(-1, 1, 1, 1)


class BrightOrDark(nn.Module):
    """Says 0 of bright pixels, 1 of dark ones; the probability of 0 is `sigmoid(10 pixel)`."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([5.0, -5.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.slope


class Constant(BrightOrDark):
    """Says 0 of all images, with certainty."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([20.0, -20.0]).expand(len(images), 2)


class Inverted(OnePixel):
    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -super().forward(latents, labels)


def threshold(probability: float) -> float:
    """The least latent of label 0 that is accepted."""
    return math.atanh(math.log(probability / (1 - probability)) / 10)


def make_filtered(size: int = SIZE, classifier: nn.Module | None = None, **options: Any) -> FilteredLatents:
    source = RandomLatents(size, 1, 2, seed=4)
    return FilteredLatents(source, OnePixel(), classifier or BrightOrDark(), normalization=SIGNED, **options)


def signed_towards_label(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return latents[:, 0] * (1 - 2 * labels)


def test_every_draw_is_recognised_and_classes_stay_balanced() -> None:
    filtered = make_filtered()
    for epoch in range(3):
        latents, labels = filtered.batch(EVERYTHING, epoch)
        assert torch.equal(labels, EVERYTHING % 2)
        assert (signed_towards_label(latents, labels) >= threshold(0.9)).all()
    assert not filtered.num_given_up.any()


def test_a_draw_is_the_first_candidate_that_is_accepted() -> None:
    filtered = make_filtered(max_tries=50)
    for epoch in (0, 3):
        candidates = torch.stack([filtered.source.batch(EVERYTHING, 50 * epoch + k)[0] for k in range(50)])
        accepted = candidates[:, :, 0] * (1 - 2 * filtered.labels) >= threshold(0.9)
        first = accepted.int().argmax(dim=0)  # of equal ones the first
        assert len(first.unique()) > 2
        assert torch.equal(filtered.batch(EVERYTHING, epoch)[0], candidates[first, EVERYTHING])


@pytest.mark.parametrize("size", [1, 7])
def test_a_draw_does_not_depend_on_its_batch_or_on_earlier_ones(size: int) -> None:
    whole = make_filtered().batch(EVERYTHING, 2)
    filtered = make_filtered()
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
    parts = [filtered.batch(part, 2) for part in torch.split(order, size)]
    assert torch.equal(torch.cat([latents for latents, _ in parts]), whole[0][order])
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1][order])


def test_epochs_differ() -> None:
    filtered = make_filtered()
    assert not torch.equal(filtered.batch(EVERYTHING, 0)[0], filtered.batch(EVERYTHING, 1)[0])


@pytest.mark.parametrize("probability", [0.0, 0.9, 0.99])
def test_the_rate_is_the_share_of_all_draws_that_would_be_accepted(probability: float) -> None:
    filtered = make_filtered(4000, min_probability=probability)
    filtered.batch(torch.arange(4000))
    least = threshold(max(probability, 0.5))
    assert filtered.acceptance_rate == pytest.approx(0.5 * math.erfc(least / math.sqrt(2)), abs=0.015)
    assert filtered.num_accepted.tolist() == [2000, 2000]


def test_there_is_no_rate_before_the_first_batch() -> None:
    assert math.isnan(make_filtered().acceptance_rate)


def test_after_the_last_try_the_most_probable_candidate_stands_in(caplog: pytest.LogCaptureFixture) -> None:
    filtered = make_filtered(min_probability=1.0, max_tries=3)  # sigmoid(10) is less
    candidates = torch.stack([filtered.source.batch(EVERYTHING, k)[0][:, 0] for k in range(3)])
    towards = candidates * (1 - 2 * filtered.labels)
    latents, labels = filtered.batch(EVERYTHING)
    assert torch.equal(signed_towards_label(latents, labels), towards.max(dim=0).values)
    assert filtered.num_given_up.tolist() == [15, 15]
    assert filtered.num_tried.tolist() == [45, 45]
    assert filtered.acceptance_rate == 0
    filtered.batch(EVERYTHING)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # said once


@pytest.mark.parametrize(
    ("classifier", "options", "candidates"),
    [(BrightOrDark(), {"min_probability": 1.0}, "3000"), (Constant(), {}, "1500 of class 1")],
)
def test_a_filter_that_accepts_nothing_in_all_or_of_a_class_is_an_error(
    classifier: nn.Module, options: dict[str, Any], candidates: str
) -> None:
    with pytest.raises(ValueError, match=f"accepted none of the candidates, {candidates}; lower min_probability"):
        make_filtered(classifier=classifier, **options).batch(EVERYTHING)


def test_a_few_images_of_which_none_is_accepted_are_an_error_too() -> None:
    with pytest.raises(ValueError, match="accepted none of the candidates, 300; lower"):
        make_filtered(min_probability=1.0).batch(torch.arange(3))


def test_a_probability_that_is_just_reached_is_enough() -> None:
    class Sure(nn.Module):
        """Gives every image's label all of the probability."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return BrightOrDark()(images).sign() * 1e4

    filtered = make_filtered(classifier=Sure(), min_probability=1.0)
    filtered.batch(EVERYTHING)
    assert filtered.acceptance_rate > 0


def test_the_rate_counts_what_workers_draw(tiny_generator: TinyGenerator) -> None:
    filtered = make_filtered()
    loader = DataLoader(SyntheticDataset(filtered.generator, filtered), batch_size=10, num_workers=1)
    assert sum(len(labels) for _, labels in loader) == int(filtered.num_accepted.sum()) == len(filtered)
    assert 0 < filtered.acceptance_rate < 1


def test_the_images_of_a_data_set_are_those_that_were_judged(tiny_generator: TinyGenerator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    normalization = Normalization((0.5,) * 3, (0.1,) * 3)
    filtered = FilteredLatents(
        RandomLatents(SIZE, 6, 3), tiny_generator, classifier, normalization=normalization, min_probability=0.6
    )
    fixed = LatentSet.drawn_from(filtered)
    assert not filtered.num_given_up.any()
    assert filtered.acceptance_rate < 0.9
    for latents in (filtered, fixed):
        dataset = SyntheticDataset(tiny_generator, latents, cache=None)
        logits, _ = predict_logits(classifier, dataset, normalization)
        probabilities = logits.softmax(dim=1)[EVERYTHING, torch.tensor(dataset.targets)]
        assert (probabilities >= 0.6 - 1e-5).all()


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_probability_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"min_probability must lie in \[0, 1\], got"):
        make_filtered(min_probability=value)


def test_what_does_not_fit_is_refused(tiny_generator: TinyGenerator) -> None:
    with pytest.raises(ValueError, match="max_tries must be at least 1, got 0"):
        make_filtered(max_tries=0)
    with pytest.raises(ValueError, match="takes latents of width 6, got 1"):
        FilteredLatents(RandomLatents(4, 1, 2), tiny_generator, BrightOrDark(), normalization=SIGNED)
    with pytest.raises(ValueError, match=r"cannot be drawn again.*LatentSet\.select"):
        FilteredLatents(LatentSet(torch.zeros(2, 1), torch.arange(2)), OnePixel(), BrightOrDark(), normalization=SIGNED)
    with pytest.raises(ValueError, match=r"must give logits \(30, 2\), got \(30, 1\)"):
        make_filtered(classifier=nn.Flatten()).batch(EVERYTHING)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda filtered: filtered,
        lambda filtered: JitteredLatents(filtered, 0.1),
        lambda filtered: MixedLatents(RandomLatents(SIZE, 1, 2), filtered),
    ],
    ids=["plain", "jittered", "mixed"],
)
def test_a_data_set_of_another_generator_is_refused(wrap: Any) -> None:
    latents = wrap(make_filtered())
    SyntheticDataset(OnePixel(), latents)  # of equal images, as one that was loaded a second time
    with pytest.raises(ValueError, match="made for another generator"):
        SyntheticDataset(Inverted(), latents)
