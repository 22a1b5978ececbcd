"""Accuracy over bytes: formats fill a budget, results go on, wrong input is refused before any work."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import benchmark_script, write_bundle

from itgan_data.images import LabeledImages

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("frontier") as module:
        yield module


@pytest.fixture
def images() -> LabeledImages:
    """Smooth images, which lossy coding leaves nearly as they are."""
    coarse = torch.rand(150, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return LabeledImages((smooth * 255).to(torch.uint8), torch.arange(150) % 2, ("cat", "dog"))


def run(script: ModuleType, out: Path, *options: str) -> Result:
    sizes = ["--budgets", "0.005,0.02", "--steps", "4", "--seeds", "1", "--precision", "float32", "--device", "cpu"]
    return CliRunner().invoke(script.main, ["--data", "digits", *sizes, "--out", str(out), *options])


@pytest.mark.parametrize("name", ["lossless", "webp", "webp-mosaic", "avif-mosaic"])
def test_a_format_fills_its_budget_with_the_first_images(script: ModuleType, images: LabeledImages, name: str) -> None:
    codec, order = script.CODECS[name], torch.arange(150).flip(0)
    quality, budget = codec.qualities[-1], 6000
    subset, num_bytes = codec.fill(images, order, budget=budget, quality=quality)
    assert 0.8 * budget < num_bytes <= budget
    assert torch.equal(subset.labels, images.labels[order[: len(subset)]])
    error = (subset.images.float() - images.images[order[: len(subset)]].float()).abs().mean()
    assert error == 0 if name == "lossless" else 0 < error < 16
    with pytest.raises(ValueError, match="not one image"):
        codec.fill(images, order, budget=10, quality=quality)


def test_every_cell_is_measured_once_and_drawn(script: ModuleType, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", DIGITS)
    first = run(script, tmp_path / "out.json", "--rows", "avif-mosaic,real-whole", "--bundle", str(bundle))
    assert first.exit_code == 0, first.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert set(content["rows"]) == {"avif-mosaic 5,000", "avif-mosaic 20,000", "bundle bundle", "real-whole"}
    for name in ("out.png", "out.svg"):
        assert (tmp_path / name).stat().st_size > 5000
    again = run(script, tmp_path / "out.json", "--rows", "avif-mosaic,real-whole", "--bundle", str(bundle))
    assert json.loads((tmp_path / "out.json").read_text()) == content
    assert "seed 0" not in again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "0.00001"], "not one image"),
        (["--budgets", "small"], "sizes in MB"),
        (["--budgets", "0"], "must be positive"),
        (["--rows", "jpeg"], "unknown rows jpeg"),
    ],
)
def test_wrong_input_is_one_line(script: ModuleType, tmp_path: Path, options: list[str], message: str) -> None:
    result = run(script, tmp_path / "out.json", "--rows", "lossless", *options)
    assert result.exit_code == 1
    assert message in result.output


def test_a_bundle_of_other_classes_is_refused(script: ModuleType, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", ["cat", "dog"])
    result = run(script, tmp_path / "out.json", "--bundle", str(bundle))
    assert result.exit_code == 1
    assert "has classes ['cat', 'dog']" in result.output


def test_a_format_that_is_missing_is_named_and_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.CODECS["avif-mosaic"].__class__, "is_available", False)
    assert script.parse_rows("avif-mosaic,real-whole") == ["real-whole"]
    assert "left out: avif-mosaic" in capsys.readouterr().err
