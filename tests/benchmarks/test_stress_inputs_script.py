from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import benchmark_script

from itgan_data.images import LabeledImages
from itgan_data.storage.files import read_json


def outcomes(folder: Path, change: dict[str, Callable[..., Any]] | None = None) -> dict[str, int]:
    """How many inputs came to each end, with functions of the package in place of which others are called."""
    with benchmark_script("stress_inputs") as script:
        for name, function in (change or {}).items():
            setattr(script, name, function)
        arguments = ["--count", "100", "--out", str(folder / "out.json")]
        result = CliRunner().invoke(script.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert "100 inputs in" in result.stdout
    counts = read_json(folder / "out.json")["counts"].values()
    return {outcome: sum(count.get(outcome, 0) for count in counts) for outcome in script.OUTCOMES}


def clamping(dataset: Any) -> LabeledImages:
    """Reads tensors as the package once did: whatever is a number is a unit image."""
    images = torch.stack([torch.as_tensor(dataset[place][0]).float() for place in range(len(dataset))])
    labels = torch.tensor([int(dataset[place][1]) for place in range(len(dataset))])
    return LabeledImages(images.mul(255).round().clamp(0, 255).to(torch.uint8), labels, list("01234567"))


@pytest.mark.filterwarnings("ignore")
def test_nothing_comes_out_wrong_and_what_does_is_counted(tmp_path: Path) -> None:
    good = outcomes(tmp_path)
    assert good["wrong"] == 0
    assert min(good["right"], good["refused"]) > 20
    assert outcomes(tmp_path, {"load_images": clamping})["wrong"] > 20
