import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_bundle
from huggingface_hub import ModelCard

from itgan_data.bundle.card import card
from itgan_data.bundle.writing import load_bundle

CONFIG: dict[str, Any] = {
    "dataset": "cifar10",
    "class_names": ["cat", "dog"],
    "method": "IT-GAN",
    "generator": {"architecture": "biggan", "arguments": {}},
    "image": {"shape": [3, 32, 32], "range": "signed"},
    "latents": {"count": 7, "dim": 16, "dtype": "float16"},
    "training": {"condenser": {"seed": 3}, "real_images": {"count": 50_000}, "environment": {"torch": "2.15.0"}},
    "metrics": {"test accuracy, ConvNet": 0.625, "agreement": 0.5},
}
SIZES = {"generator.safetensors": 3_000_000, "latents.safetensors": 1_000_000}


def make_card(source: str = "org/name", preview: str | None = "preview.png", **changes: Any) -> str:
    return card(CONFIG | changes, SIZES, source=source, preview=preview)


def test_the_hub_reads_its_metadata() -> None:
    data = ModelCard(make_card(license="mit")).data
    assert (data.library_name, data.license, data.datasets) == ("itgan-data", "mit", ["cifar10"])
    assert data.tags == ["dataset-condensation", "synthetic-data"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_name, result.metric_value) == (
        "accuracy",
        "test accuracy, ConvNet",
        0.625,
    )
    assert (result.task_type, result.dataset_type) == ("image-classification", "cifar10")


def test_a_bundle_without_accuracies_or_license_claims_none() -> None:
    data = ModelCard(make_card(metrics={})).data
    assert data.eval_results is None
    assert data.license == "unknown"


def test_it_says_how_the_bundle_was_made_what_it_takes_and_what_it_cannot() -> None:
    text = make_card()
    assert json.dumps(CONFIG["training"], indent=2) in text
    assert "| generator | 3.00 |\n| latents | 1.00 |\n| together | 4.00 |" in text
    assert f"| the 50000 real images, uint8 | {50_000 * math.prod((3, 32, 32)) / 1e6:.2f} |" in text
    assert "| agreement | 0.5 |" in text
    assert "## Limits" in text
    assert "](preview.png)" in text
    assert "preview.png" not in make_card(preview=None)


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "bundle", ["cat", "dog", "owl"])
    text = card(load_bundle(tmp_path / "bundle").config, SIZES, source=str(tmp_path / "bundle"), preview=None)
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["inputs"].shape == (6, 3, 32, 32)


@pytest.mark.parametrize("name", ["a: b", "-", 'a"b', "a\n---\nlicense: mit", "# a", "ü | b", "\u2028"])
def test_names_from_anyone_stay_where_they_belong(name: str) -> None:
    text = make_card(dataset=name, method=name, metrics={f"test accuracy {name}": 1.0})
    head = yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert head["license"] == "unknown"
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert len([line for line in text.splitlines() if line == "---"]) == 2
