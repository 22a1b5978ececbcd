from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_compiler

from itgan_data.augmentation import DSA, CropFlip
from itgan_data.images import LabeledImages, Normalization
from itgan_data.networks import Classifier, create_network
from itgan_data.recipes import (
    ClassifierTraining,
    Recipe,
    accuracy,
    epoch_batches,
    fast_recipe,
    paper_recipe,
    predict_logits,
    train_classifier,
)

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
SHORT = Recipe(steps=12, batch_size=8, lr=0.02, augmentation=CropFlip(padding=2))


def small_network(seed: int = 0) -> Classifier:
    rng = torch.Generator().manual_seed(seed)
    return create_network("convnet", 2, image_shape=(3, 16, 16), width=8, depth=2, rng=rng)


def trained(source: LabeledImages, recipe: Recipe = SHORT, seed: int = 0) -> Classifier:
    network = small_network()
    train_classifier(network, source, recipe, normalization=NORMALIZATION, seed=seed)
    return network


def test_training_learns_what_can_be_learnt(bright_and_dark: LabeledImages, global_rng_untouched: None) -> None:
    network = trained(bright_and_dark)
    assert not network.training
    assert accuracy(network, bright_and_dark, NORMALIZATION) == 1.0


def test_equal_seeds_give_equal_weights(bright_and_dark: LabeledImages) -> None:
    first, again, other = (trained(bright_and_dark, seed=seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bfloat16_learns_too_and_keeps_float32_weights(bright_and_dark: LabeledImages) -> None:
    network = trained(bright_and_dark, replace(SHORT, precision="bfloat16"))
    assert network.classifier.weight.dtype == torch.float32
    assert accuracy(network, bright_and_dark, NORMALIZATION, precision="bfloat16") == 1.0


@needs_compiler
@pytest.mark.slow
def test_compiled_training_is_the_same_training(bright_and_dark: LabeledImages) -> None:
    plain, compiled = (trained(bright_and_dark, replace(SHORT, compile=fused)) for fused in (False, True))
    torch.testing.assert_close(plain.classifier.weight, compiled.classifier.weight, rtol=1e-3, atol=1e-4)


def test_the_recipe_counts_updates_whatever_the_size_of_the_set(bright_and_dark: LabeledImages) -> None:
    for size in (3, 8, 40):
        seen = []
        train_classifier(
            small_network(),
            bright_and_dark.select(torch.arange(size)),
            SHORT,
            normalization=NORMALIZATION,
            seed=0,
            progress=lambda step, loss, seen=seen: seen.append((step, loss.isfinite().item())),
        )
        assert seen == [(step, True) for step in range(1, SHORT.steps + 1)]


def test_an_observer_sees_which_images_gave_which_logits(bright_and_dark: LabeledImages) -> None:
    shown: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []

    def observe(indices: torch.Tensor, logits: torch.Tensor) -> None:
        assert not logits.requires_grad
        shown.append(indices)
        expected.append(F.cross_entropy(logits, bright_and_dark.labels[indices]))

    network = small_network()
    train_classifier(
        network,
        bright_and_dark,
        SHORT,
        normalization=NORMALIZATION,
        seed=0,
        progress=lambda step, loss: losses.append(loss),
        observe=observe,
    )
    assert len(shown) == SHORT.steps
    assert torch.equal(torch.cat(shown[:5]), torch.cat(epoch_batches(40, 8, seed=0, epoch=0)))
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert torch.equal(network.classifier.weight, trained(bright_and_dark).classifier.weight)  # nothing is disturbed


def test_an_epoch_shows_no_image_twice_and_batches_are_whole() -> None:
    batches = epoch_batches(21, 5, seed=0, epoch=3)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert len(torch.cat(batches).unique()) == 20
    assert [len(batch) for batch in epoch_batches(3, 5, seed=0, epoch=0)] == [3]


def test_an_augmented_image_does_not_depend_on_its_batch(bright_and_dark: LabeledImages) -> None:
    training = ClassifierTraining(small_network(), bright_and_dark, SHORT, normalization=NORMALIZATION, seed=5)
    three, one = (training.batch(torch.tensor(indices), 2)[0] for indices in ([4, 9, 7], [9]))
    torch.testing.assert_close(three[1], one[0], rtol=0, atol=0)


def test_shared_draws_give_the_batch_one_operation(bright_and_dark: LabeledImages) -> None:
    flips_or_colors = replace(SHORT, augmentation=DSA("flip_color"), shared_draws=1)
    indices = torch.arange(40)
    operations = set()
    training = ClassifierTraining(
        small_network(), bright_and_dark, flips_or_colors, normalization=NORMALIZATION, seed=0
    )
    for epoch in range(8):
        images, _ = training.batch(indices, epoch)
        plain = NORMALIZATION.standardize(bright_and_dark.unit_batch(indices)[0])
        flipped_or_same = [
            torch.equal(image, before) or torch.equal(image, before.flip(2))
            for image, before in zip(images, plain, strict=True)
        ]
        assert all(flipped_or_same) or not any(flipped_or_same)
        operations.add(all(flipped_or_same))
    assert operations == {True, False}


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe = fast_recipe(100, 32)
    rates = [recipe.learning_rate(step) for step in range(100)]
    assert max(rates) == recipe.lr == rates[19]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < recipe.lr / 50


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = paper_recipe()
    assert recipe.steps == 200 * 196
    rates = [recipe.learning_rate(step) for step in (0, recipe.steps // 2 - 1, recipe.steps // 2)]
    assert rates == [0.01, 0.01, pytest.approx(0.001)]
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (256, 0.9, 5e-4)
    assert recipe.augmentation == DSA()


def test_logits_do_not_depend_on_the_batch_size(bright_and_dark: LabeledImages) -> None:
    network = small_network()
    whole, labels = predict_logits(network, bright_and_dark, NORMALIZATION)
    parts, _ = predict_logits(network, bright_and_dark, NORMALIZATION, batch_size=7)
    assert whole.shape == (40, 2)
    assert torch.equal(labels, bright_and_dark.labels)
    torch.testing.assert_close(whole, parts)
    assert network.training  # as it was found


def test_an_empty_set_is_refused(bright_and_dark: LabeledImages) -> None:
    empty = bright_and_dark.select(torch.arange(0))
    with pytest.raises(ValueError, match="no images; training needs"):
        trained(empty)
    with pytest.raises(ValueError, match="no images; a test needs"):
        accuracy(small_network(), empty, NORMALIZATION)
