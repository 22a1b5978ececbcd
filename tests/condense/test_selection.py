from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from itgan_data.augmentation import CropFlip
from itgan_data.condense.selection import (
    ForgettingCounter,
    embed_images,
    forgetting_events,
    select_forgetting,
    select_herding,
    select_random,
)
from itgan_data.datasets import DIGITS, load_images, open_dataset
from itgan_data.images import LabeledImages
from itgan_data.networks import Classifier, create_network
from itgan_data.recipes import Recipe, accuracy, train_classifier

Selection = Callable[[LabeledImages, int], torch.Tensor]


def embeddings_of(count: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def selections(count: int) -> dict[str, Selection]:
    """Every rule, with made-up statistics of `count` images; forgetting has many ties."""
    return {
        "random": partial(select_random, seed=0),
        "herding": partial(select_herding, embeddings=embeddings_of(count)),
        "forgetting": partial(select_forgetting, events=torch.arange(count) % 7 // 3, seed=0),
    }


def shuffled(images: LabeledImages, seed: int = 0) -> tuple[LabeledImages, torch.Tensor]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order), order


@pytest.mark.parametrize("rule", ["random", "herding", "forgetting"])
class TestEverySelection:
    def test_goes_class_after_class_and_takes_no_image_twice(self, rule: str, tiny_images: LabeledImages) -> None:
        for count in (1, 4, 10):
            indices = selections(30)[rule](tiny_images, count)
            assert indices.dtype == torch.int64
            assert torch.equal(tiny_images.labels[indices], torch.arange(3).repeat_interleave(count))
            assert len(indices.unique()) == 3 * count

    def test_begins_with_the_smaller_selection(self, rule: str, tiny_images: LabeledImages) -> None:
        select = selections(30)[rule]
        large, small = select(tiny_images, 8).view(3, 8), select(tiny_images, 3).view(3, 3)
        assert torch.equal(large[:, :3], small)

    def test_is_repeatable_and_leaves_the_global_rng_alone(
        self, rule: str, tiny_images: LabeledImages, global_rng_untouched: None
    ) -> None:
        select = selections(30)[rule]
        assert torch.equal(select(tiny_images, 5), select(tiny_images, 5))

    def test_is_a_data_set_like_any_other(self, rule: str, tiny_images: LabeledImages) -> None:
        indices = selections(30)[rule](tiny_images, 2)
        chosen = tiny_images.select(indices)
        image, label = chosen[5]
        assert (image.size, label, chosen.classes) == ((8, 8), 2, ["red", "green", "blue"])
        assert torch.equal(chosen.unit_batch(torch.arange(6))[0], tiny_images.unit_batch(indices)[0])
        (labels,) = DataLoader(chosen, batch_size=6, collate_fn=lambda items: [label for _, label in items])
        assert labels == [0, 0, 1, 1, 2, 2]

    def test_refuses_a_class_with_too_few_images(self, rule: str, tiny_images: LabeledImages) -> None:
        few = tiny_images.select(torch.arange(29))  # of the last class, one is missing
        with pytest.raises(ValueError, match="class 'blue' has 9 images, fewer than images_per_class=10; lower"):
            selections(29)[rule](few, 10)
        with pytest.raises(ValueError, match="images_per_class must be at least 1, got 0"):
            selections(30)[rule](tiny_images, 0)


class TestRandom:
    def test_another_seed_draws_other_images(self, tiny_images: LabeledImages) -> None:
        assert not torch.equal(select_random(tiny_images, 5, seed=0), select_random(tiny_images, 5, seed=1))

    def test_every_image_is_as_likely(self, tiny_images: LabeledImages) -> None:
        drawn = torch.cat([select_random(tiny_images, 2, seed=seed) for seed in range(500)])
        times = torch.bincount(drawn, minlength=30)  # 100 expected, with a standard deviation of 9
        assert 60 < int(times.min()) <= int(times.max()) < 140


def herded_by_brute_force(embeddings: torch.Tensor, count: int) -> list[int]:
    """The rule in its own words."""
    mean, chosen = embeddings.mean(dim=0), list[int]()
    for _ in range(count):
        rest = [row for row in range(len(embeddings)) if row not in chosen]
        chosen.append(min(rest, key=lambda row: float((embeddings[[*chosen, row]].mean(dim=0) - mean).norm())))
    return chosen


class TestHerding:
    def test_equals_the_loop_over_all_images(self, tiny_images: LabeledImages) -> None:
        for seed in range(5):
            embeddings = embeddings_of(30, seed=seed) + 100.0  # far from zero, where means would round
            indices = select_herding(tiny_images, 10, embeddings=embeddings).view(3, 10)
            for label in range(3):
                rows = (tiny_images.labels == label).nonzero()[:, 0]
                assert indices[label].tolist() == rows[herded_by_brute_force(embeddings[rows], 10)].tolist()

    def test_begins_with_the_image_nearest_to_the_mean(self, tiny_images: LabeledImages) -> None:
        embeddings = embeddings_of(30)
        for label, first in enumerate(select_herding(tiny_images, 1, embeddings=embeddings)):
            members = tiny_images.labels == label
            distances = (embeddings - embeddings[members].mean(dim=0)).norm(dim=1)
            assert distances[first] == distances[members].min()

    def test_nears_the_mean_faster_than_random_images(self) -> None:
        count = 400
        labels = torch.zeros(count, dtype=torch.int64)
        images = LabeledImages(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), labels, ("only",))
        embeddings = embeddings_of(count, dim=10)

        def error(indices: torch.Tensor) -> torch.Tensor:
            """Of the mean of the first k, for each k."""
            means = embeddings[indices].cumsum(dim=0) / torch.arange(1, len(indices) + 1).unsqueeze(1)
            return (means - embeddings.mean(dim=0)).norm(dim=1)

        herded = error(select_herding(images, 100, embeddings=embeddings))
        drawn = torch.stack([error(select_random(images, 100, seed=seed)) for seed in range(20)]).mean(dim=0)
        assert bool((herded < drawn).all())
        assert herded[99] / herded[9] < 0.5 * drawn[99] / drawn[9]  # as 1 / k, not as 1 / sqrt(k)

    def test_does_not_depend_on_the_order_of_the_images(self, tiny_images: LabeledImages) -> None:
        embeddings = embeddings_of(30)
        images, order = shuffled(tiny_images)
        indices = select_herding(images, 6, embeddings=embeddings[order])
        assert torch.equal(order[indices], select_herding(tiny_images, 6, embeddings=embeddings))

    def test_takes_copies_of_an_image_one_by_one(self, tiny_images: LabeledImages) -> None:
        indices = select_herding(tiny_images, 10, embeddings=torch.ones(30, 4))
        assert torch.equal(indices, tiny_images.labels.argsort(stable=True))

    def test_refuses_other_embeddings(self, tiny_images: LabeledImages) -> None:
        for shape in ((29, 5), (30,)):
            with pytest.raises(ValueError, match=r"embeddings must be \[30, dim\], got"):
                select_herding(tiny_images, 2, embeddings=torch.zeros(shape))
        with pytest.raises(ValueError, match="embeddings must be finite"):
            select_herding(tiny_images, 2, embeddings=torch.full((30, 5), torch.nan))


class TestForgetting:
    @pytest.mark.parametrize(
        ("history", "events"),
        [
            ("111111", 0),
            ("000001", 0),  # learnt late
            ("001111", 0),
            ("111110", 1),
            ("100000", 1),  # forgotten once, never learnt again
            ("010010", 2),
            ("101010", 3),
            ("000000", 6),  # never learnt
        ],
    )
    def test_a_history_gives_its_events(self, history: str, events: int) -> None:
        counter = ForgettingCounter(1)
        for right in history:
            counter.record(torch.tensor([0]), torch.tensor([right == "1"]))
        assert counter.counts().tolist() == [events]

    def test_an_image_is_judged_by_its_own_presentations(self) -> None:
        counter = ForgettingCounter(4)
        counter.record(torch.tensor([2, 0]), torch.tensor([True, False]))
        counter.record(torch.tensor([1, 2]), torch.tensor([True, False]))
        counter.record(torch.tensor([0, 2]), torch.tensor([False, True]))
        counter.record(torch.tensor([2, 1]), torch.tensor([False, True]))
        assert counter.counts().tolist() == [4, 0, 2, 0]  # 0 never learnt, 3 never shown

    def test_keeps_what_was_forgotten_most(self, tiny_images: LabeledImages) -> None:
        events = torch.randperm(30, generator=torch.Generator().manual_seed(0))
        indices = select_forgetting(tiny_images, 4, events=events, seed=0).view(3, 4)
        for label in range(3):
            of_class = events[tiny_images.labels == label]
            assert events[indices[label]].tolist() == of_class.sort(descending=True).values[:4].tolist()

    def test_does_not_depend_on_the_order_of_the_images_but_for_ties(self, tiny_images: LabeledImages) -> None:
        events = torch.randperm(30, generator=torch.Generator().manual_seed(0))
        images, order = shuffled(tiny_images)
        indices = select_forgetting(images, 6, events=events[order], seed=0)
        assert torch.equal(order[indices], select_forgetting(tiny_images, 6, events=events, seed=5))

    def test_ties_are_broken_by_the_seed(self, tiny_images: LabeledImages) -> None:
        first, again, other = (
            select_forgetting(tiny_images, 5, events=torch.zeros(30, dtype=torch.int64), seed=seed)
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, tiny_images.labels.argsort(stable=True).view(3, 10)[:, :5].flatten())

    def test_events_are_those_of_a_training_run(self, tiny_images: LabeledImages, global_rng_untouched: None) -> None:
        """Random labels are learnt and forgotten often; batches of 8 leave some of the 30 images out of an epoch."""
        labels = torch.randint(3, (30,), generator=torch.Generator().manual_seed(0))
        images = LabeledImages(tiny_images.images, labels, tiny_images.class_names)
        recipe = Recipe(steps=40, batch_size=8, lr=0.1, augmentation=CropFlip(padding=1))
        histories = [""] * 30

        def note(indices: torch.Tensor, logits: torch.Tensor) -> None:
            for index, guess in zip(indices.tolist(), logits.argmax(dim=1).tolist(), strict=True):
                histories[index] += str(int(guess == labels[index]))

        first, second = (create_network("convnet", 3, image_shape=(3, 8, 8), width=4, depth=1) for _ in range(2))
        train_classifier(first, images, recipe, normalization=DIGITS.normalization, seed=0, observe=note)
        events = forgetting_events(second, images, recipe, normalization=DIGITS.normalization, seed=0)
        longest = max(len(history) for history in histories)
        assert events.tolist() == [h.count("10") if "1" in h else longest for h in histories]
        assert len(events.unique()) > 3
        assert torch.equal(first.classifier.weight, second.classifier.weight)  # the network is left trained

    def test_shows_its_progress(self, tiny_images: LabeledImages) -> None:
        network = create_network("convnet", 3, image_shape=(3, 8, 8), width=4, depth=1)
        steps: list[int] = []
        forgetting_events(
            network,
            tiny_images,
            Recipe(steps=6, batch_size=10, lr=0.02),
            normalization=DIGITS.normalization,
            seed=0,
            progress=lambda step, loss: steps.append(step),
        )
        assert steps == [1, 2, 3, 4, 5, 6]

    def test_refuses_other_counts_and_too_short_a_training(self, tiny_images: LabeledImages) -> None:
        with pytest.raises(ValueError, match=r"events must be \[30\], one count per image, got \[29\]"):
            select_forgetting(tiny_images, 2, events=torch.zeros(29, dtype=torch.int64), seed=0)
        network = create_network("convnet", 3, image_shape=(3, 8, 8), width=4, depth=1)
        short = Recipe(steps=5, batch_size=10, lr=0.02)
        with pytest.raises(ValueError, match=r"5 steps of 10 do not show 30 images twice.*at least 6 steps"):
            forgetting_events(network, tiny_images, short, normalization=DIGITS.normalization, seed=0)


def digit_network() -> Classifier:
    return create_network("convnet", 10, width=8)


@pytest.fixture(scope="module")
def digits() -> tuple[LabeledImages, LabeledImages]:
    return load_images(open_dataset("digits", "train")), load_images(open_dataset("digits", "test"))


@pytest.fixture(scope="module")
def digit_selections(digits: tuple[LabeledImages, LabeledImages]) -> dict[str, torch.Tensor]:
    """Ten digits a class by each rule, as a user would select them: one training run serves two of the rules."""
    train, _ = digits
    network = digit_network()
    recipe = Recipe(steps=120, batch_size=64, lr=0.05)
    events = forgetting_events(network, train, recipe, normalization=DIGITS.normalization, seed=0)
    embeddings = embed_images(network, train, DIGITS.normalization)
    return {
        "random": select_random(train, 10, seed=0),
        "herding": select_herding(train, 10, embeddings=embeddings),
        "forgetting": select_forgetting(train, 10, events=events, seed=0),
    }


def test_embeddings_are_what_the_network_reads_its_logits_from(
    digits: tuple[LabeledImages, LabeledImages],
) -> None:
    few, network = digits[1].select(torch.arange(7)), digit_network().eval()
    standardized = DIGITS.normalization.standardize(few.unit_batch(torch.arange(7))[0])
    embeddings = embed_images(network, few, DIGITS.normalization)
    torch.testing.assert_close(network.classifier(embeddings), network(standardized))


@pytest.mark.parametrize("rule", ["random", "herding", "forgetting"])
def test_selected_digits_teach_digits(
    rule: str, digits: tuple[LabeledImages, LabeledImages], digit_selections: dict[str, torch.Tensor]
) -> None:
    train, test = digits
    network = digit_network()
    recipe = Recipe(steps=60, batch_size=50, lr=0.05)
    train_classifier(network, train.select(digit_selections[rule]), recipe, normalization=DIGITS.normalization, seed=0)
    assert accuracy(network, test, DIGITS.normalization) > 0.5  # chance is 0.1
