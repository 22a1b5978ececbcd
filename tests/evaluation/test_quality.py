"""Sets of images beside real ones."""

from dataclasses import asdict

import pytest
import torch
from conftest import TinyGenerator

from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import load_images
from itgan_data.evaluation.metrics import compare_features, ms_ssim, nearest_neighbors
from itgan_data.evaluation.quality import Judge, equal_shares, measure_images, metrics_table, train_judge
from itgan_data.images import LabeledImages, Normalization
from itgan_data.latents.fresh import RandomLatents
from itgan_data.latents.stored import LatentSet
from itgan_data.recipes import fast_recipe

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


@pytest.fixture
def judge(bright_and_dark: LabeledImages) -> Judge:
    recipe = fast_recipe(4, 16, flip=False)
    return train_judge(bright_and_dark, bright_and_dark, "convnet", recipe, normalization=NORMALIZATION, device="cpu")


def test_a_judge_is_named_after_its_network_and_what_it_recognises(
    judge: Judge, bright_and_dark: LabeledImages
) -> None:
    assert judge.name == f"convnet of {100 * judge.agreement(bright_and_dark):.1f}%"
    assert judge.features.name == judge.name


def test_a_judge_agrees_with_labels_that_are_right_and_not_with_others(
    judge: Judge, bright_and_dark: LabeledImages
) -> None:
    wrong = LabeledImages(bright_and_dark.images, 1 - bright_and_dark.labels, bright_and_dark.class_names)
    assert judge.agreement(bright_and_dark) == 1 - judge.agreement(wrong) > 0.9


def test_the_features_of_a_judge_are_what_its_linear_layer_reads(judge: Judge, bright_and_dark: LabeledImages) -> None:
    features = judge.features.features(bright_and_dark.images)
    logits = judge.network.classifier(features)
    assert float((logits.argmax(dim=1) == bright_and_dark.labels).double().mean()) == judge.agreement(bright_and_dark)


def test_shares_are_equal_random_and_class_after_class(tiny_images: LabeledImages) -> None:
    share = equal_shares(tiny_images, 4)
    assert share.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len({image.numpy().tobytes() for image in share.images}) == 12
    assert torch.equal(equal_shares(tiny_images, 4).images, share.images)
    assert not torch.equal(equal_shares(tiny_images, 4, seed=1).images, share.images)
    assert torch.equal(equal_shares(share, 4).images.sum(dim=0), share.images.sum(dim=0))


def test_a_share_of_generated_images_is_all_that_is_made(
    tiny_generator: TinyGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    forward = TinyGenerator.forward

    def counted(generator: TinyGenerator, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        made.append(len(latents))
        return forward(generator, latents, labels)

    monkeypatch.setattr(TinyGenerator, "forward", counted)
    latents = LatentSet.drawn_from(RandomLatents(3000, 6, 3))
    dataset = SyntheticDataset(tiny_generator, latents, classes=["red", "green", "blue"])
    share = equal_shares(dataset, 2)
    assert sum(made) == 6
    assert share.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert share.class_names == ("red", "green", "blue")
    every = {image.numpy().tobytes() for image in load_images(dataset).images}
    assert {image.numpy().tobytes() for image in share.images} <= every


def test_a_class_of_too_few_images_is_named(tiny_images: LabeledImages) -> None:
    fewer = tiny_images.select(torch.arange(29))  # without one of blue
    with pytest.raises(ValueError, match=r"class 'blue' has 9 images, expected at least 10; ask for fewer"):
        equal_shares(fewer, 10)


def test_a_row_holds_what_each_function_says(judge: Judge, bright_and_dark: LabeledImages) -> None:
    real, images = (equal_shares(bright_and_dark, 10, seed=seed) for seed in (0, 1))
    distances, _ = nearest_neighbors(images.images, bright_and_dark.images)
    features = judge.features
    row = measure_images(images, distances, features.features(real.images), features=features, judge=judge)
    compared = compare_features(features.features(real.images), features.features(images.images), network=features.name)
    assert asdict(row).items() >= asdict(compared).items()
    assert row.ms_ssim == float(ms_ssim(images.images, images.labels).mean())
    assert row.agreement == judge.agreement(images)
    assert row.nearest_real_minimum == row.nearest_real_median == 0  # they are among the real ones
    table = metrics_table({"copies": row, "others": row}).splitlines()
    assert f"({judge.name})" in table[0]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| copies", "| others"]
    assert len({line.count("|") for line in table}) == 1
