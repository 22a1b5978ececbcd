import json
from pathlib import Path
from typing import Any

import pytest
import torch

from itgan_data.data.dataset import SyntheticDataset
from itgan_data.datasets import CIFAR10
from itgan_data.draws import Stream, make_rng
from itgan_data.evaluation.protocol import evaluate, measure_normalization
from itgan_data.evaluation.results import Results, RowKey, SeedResult, environment, summarize
from itgan_data.images import LabeledImages
from itgan_data.latents.stored import LatentSet
from itgan_data.networks import Classifier, create_network
from itgan_data.recipes import Recipe, accuracy
from itgan_data.storage.files import read_json


class FrozenDots(torch.nn.Module):
    """A generator of 16 px images, all grey."""

    latent_dim, num_classes, image_shape = 1, 2, (3, 16, 16)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return latents.view(-1, 1, 1, 1).expand(-1, 3, 16, 16)


RECIPE = Recipe(steps=10, batch_size=8, lr=0.02)
KEY = RowKey(num_images=500, num_bytes=1_234_567, content="lossless WebP")


def small_network(rng: torch.Generator) -> Classifier:
    return create_network("convnet", 2, image_shape=(3, 16, 16), width=8, depth=2, rng=rng)


def result(seed: int, accuracy: float = 0.5) -> SeedResult:
    return SeedResult(seed=seed, accuracy=accuracy, final_loss=1.0, seconds=2.0)


def results_file(folder: Path, **settings: Any) -> Results:
    return Results(
        folder / "results.json", settings={"recipe": RECIPE.to_json(), **settings}, environment=environment()
    )


def test_each_seed_trains_a_network_of_its_own(bright_and_dark: LabeledImages, global_rng_untouched: None) -> None:
    together = evaluate(bright_and_dark, bright_and_dark, small_network, RECIPE, seeds=[3, 4])
    apart = evaluate(bright_and_dark, bright_and_dark, small_network, RECIPE, seeds=[4])
    assert [row.seed for row in together] == [3, 4]
    assert together[0].final_loss != together[1].final_loss == apart[0].final_loss
    assert {row.accuracy for row in together} == {1.0}


def test_a_torchvision_like_set_is_read_into_memory(bright_and_dark: LabeledImages) -> None:
    class Pairs:
        classes = ("dark", "bright")

        def __len__(self) -> int:
            return len(bright_and_dark)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return bright_and_dark[index]

    stored = evaluate(bright_and_dark, bright_and_dark, small_network, RECIPE, seeds=[0])
    read = evaluate(Pairs(), Pairs(), small_network, RECIPE, seeds=[0])
    assert stored[0].final_loss == read[0].final_loss


def test_networks_go_by_name(bright_and_dark: LabeledImages) -> None:
    one_step = Recipe(steps=1, batch_size=2, lr=0.01)
    (row,) = evaluate(bright_and_dark, bright_and_dark, "convnet", one_step, seeds=[0])
    assert 0 <= row.accuracy <= 1


def test_normalization_is_measured_on_the_images(bright_and_dark: LabeledImages) -> None:
    normalization = measure_normalization(bright_and_dark)
    standardized = normalization.standardize(bright_and_dark.unit_batch(torch.arange(40))[0])
    std, mean = torch.std_mean(standardized, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-4, rtol=0)


def test_sets_that_do_not_fit_are_refused_before_training(bright_and_dark: LabeledImages) -> None:
    larger = LabeledImages(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4) % 2, ("dark", "bright"))
    more = LabeledImages(bright_and_dark.images, bright_and_dark.labels, ("dark", "bright", "between"))
    empty = bright_and_dark.select(torch.arange(0))
    for source, message in ((larger, "expected one shape"), (more, "expected 3"), (empty, "has no images")):
        with pytest.raises(ValueError, match=message):
            evaluate(source, bright_and_dark, small_network, RECIPE, seeds=[0])
    with pytest.raises(ValueError, match="unknown network 'lenet'; expected one of convnet"):
        evaluate(bright_and_dark, bright_and_dark, "lenet", RECIPE, seeds=[0])
    with pytest.raises(ValueError, match="seeds is empty"):
        evaluate(bright_and_dark, bright_and_dark, small_network, RECIPE, seeds=[])


class TestWhichClassIsWhich:
    def test_the_same_names_in_another_order_are_the_same_classes(self, bright_and_dark: LabeledImages) -> None:
        reversed_names = bright_and_dark.in_order_of(("bright", "dark"))
        assert evaluate(bright_and_dark, reversed_names, small_network, RECIPE, seeds=[3])[0].accuracy == 1
        assert evaluate(reversed_names, bright_and_dark, small_network, RECIPE, seeds=[3])[0].accuracy == 1

    def test_numbers_in_another_order_are_the_same_classes(self) -> None:
        levels = torch.arange(24).repeat_interleave(4) % 12
        pixels = (levels * 20).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).to(torch.uint8)
        numbered = LabeledImages(pixels, levels, [str(label) for label in range(12)])
        as_text = numbered.in_order_of(sorted(numbered.class_names))  # 0, 1, 10, 11, 2, ...
        assert not torch.equal(as_text.labels, numbered.labels)

        def twelve(rng: torch.Generator) -> Classifier:
            return create_network("convnet", 12, image_shape=(3, 16, 16), width=8, depth=2, rng=rng)

        same, other = (evaluate(numbered, test, twelve, RECIPE, seeds=[3])[0] for test in (numbered, as_text))
        assert same.accuracy == other.accuracy

    def test_classes_without_names_are_compared_by_number(self, bright_and_dark: LabeledImages) -> None:
        unnamed = LabeledImages(bright_and_dark.images, bright_and_dark.labels, ("0", "1"))
        assert evaluate(unnamed, bright_and_dark, small_network, RECIPE, seeds=[3])[0].accuracy == 1
        assert evaluate(bright_and_dark, unnamed, small_network, RECIPE, seeds=[3])[0].accuracy == 1

    def test_other_names_are_refused_with_both_shown(self, bright_and_dark: LabeledImages) -> None:
        other = LabeledImages(bright_and_dark.images, bright_and_dark.labels, ("cat", "dog"))
        with pytest.raises(ValueError, match=r"\['cat', 'dog'\], expected 2, \['dark', 'bright'\]"):
            evaluate(bright_and_dark, other, small_network, RECIPE, seeds=[0])


def test_transforms_that_would_be_skipped_are_refused(bright_and_dark: LabeledImages) -> None:
    generator = FrozenDots()
    latents = LatentSet(torch.zeros(4, 1), torch.arange(4) % 2)
    for name in ("transform", "target_transform", "batch_transform"):
        dataset = SyntheticDataset(generator, latents, **{name: lambda x: x})
        for skipping in (
            lambda: evaluate(dataset, bright_and_dark, small_network, RECIPE, seeds=[0]),  # noqa: B023
            lambda: measure_normalization(dataset),  # noqa: B023
            lambda: accuracy(small_network(make_rng(0, stream=Stream.CLASSIFIER)), dataset, CIFAR10.normalization),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=f"does not call {name}; set it to None"):
                skipping()


def test_a_summary_has_a_spread_from_two_seeds_on() -> None:
    assert str(summarize([result(0, 0.6321)])) == "63.21"
    assert str(summarize([result(0, 0.60), result(1, 0.62)])) == "61.00 ± 1.41"
    with pytest.raises(ValueError, match="no results"):
        summarize([])


def test_results_are_found_again_by_row_key_and_seed(tmp_path: Path) -> None:
    results_file(tmp_path).add("coded", KEY, result(1))
    again = results_file(tmp_path)
    assert again.get("coded", KEY, 1) == result(1)
    assert again.get("coded", KEY, 2) is None
    assert again.get("real", KEY, 1) is None
    assert again.get("coded", RowKey(num_images=501, num_bytes=1, content="-"), 1) is None


def test_a_row_from_another_key_replaces_the_old_row(tmp_path: Path) -> None:
    results = results_file(tmp_path)
    results.add("it-gan", KEY, result(0))
    results.add("it-gan", KEY, result(1))
    changed = RowKey(num_images=500, num_bytes=1_234_567, content="another checksum")
    results.add("it-gan", changed, result(1, 0.7))
    assert results.get("it-gan", KEY, 0) is None
    assert results.get("it-gan", changed, 1) == result(1, 0.7)


def test_results_of_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    results_file(tmp_path, network="convnet").add("real", KEY, result(0))
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(network differ\)"):
        results_file(tmp_path, network="vgg19")
    assert (tmp_path / "results.json").read_bytes() == before


def test_the_file_tells_the_machine_and_the_spread(tmp_path: Path) -> None:
    results = results_file(tmp_path)
    results.add("real", KEY, result(0, 0.25))
    results.add("real", KEY, result(1, 0.75))
    content = read_json(tmp_path / "results.json")
    assert content["rows"]["real"]["summary"]["mean"] == 0.5
    assert content["environment"]["torch_threads"] == torch.get_num_threads()
    assert content["settings"]["recipe"]["steps"] == 10
    json.dumps(content, allow_nan=False)


def test_the_table_has_a_line_a_row(tmp_path: Path) -> None:
    results = results_file(tmp_path)
    results.add("real", KEY, result(0, 0.6))
    results.add("real", KEY, result(1, 0.62))
    results.add("GAN", RowKey(num_images=None, num_bytes=99, content="fresh"), result(0, 0.3))
    assert results.table().splitlines()[2:] == [
        "| real | 500 | 1,234,567 | 61.00 ± 1.41 | 2 |",
        "| GAN | fresh | 99 | 30.00 | 1 |",
    ]
