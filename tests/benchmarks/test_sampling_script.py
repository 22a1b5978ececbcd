from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import benchmark_script, write_bundle

from itgan_data.images import to_pil
from itgan_data.storage.files import read_json

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("sampling") as module:
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle and a small folder of images."""
    folder = tmp_path_factory.mktemp("sampling")
    write_bundle(folder / "bundle", CLASSES)
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for split in ("train", "test"):
        for index, image in enumerate(images):
            place = folder / split / CLASSES[index % 2]
            place.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(place / f"{index}.png")
    return folder


def run(script: ModuleType, folder: Path, out: Path, *options: str) -> Result:
    arguments = ["--data", f"imagefolder:{folder}", "--bundle", str(folder / "bundle"), "--device", "cpu"]
    arguments += ["--scale", "tiny", "--tables", "1", "--generator", str(folder / "bundle"), "--out", str(out)]
    return CliRunner().invoke(script.main, [*arguments, *options])


def test_rows_are_compared_with_the_paper(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    unfiltered = [name for name in script.ROWS if "filter" not in name]
    out = tmp_path / "out.json"
    first = run(script, folder, out, "--rows", ",".join(unfiltered))
    assert first.exit_code == 0, first.output
    rows = read_json(out)["rows"]
    assert set(rows) == {*unfiltered, script.FILTER}
    assert rows["fixed"]["key"]["num_images"] == 20
    assert rows["learned+transforms"]["key"]["num_images"] == 4
    assert [name for name in rows if rows[name]["key"]["num_images"] is None] == [
        name for name in unfiltered if name.startswith(("fresh", "several")) or name.endswith(("jitter", "mixed"))
    ]
    assert "| truncation | fixed | -2.91 | " in first.stdout


def test_a_filter_that_rejects_everything_is_one_line(
    script: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MIN_PROBABILITY", 1.0)
    result = run(script, folder, tmp_path / "out.json", "--rows", "fixed+filter")
    assert result.exit_code == 1
    assert "Error: the filter accepted none of the candidates, 2000;" in result.output


class FirstPixel(torch.nn.Module):
    """Says 0 of images whose first value is negative, 1 of the others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, 0, 0]
        return torch.stack([-first, first], dim=1)


def test_what_a_filter_accepts_is_reported(
    script: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MIN_PROBABILITY", 0.0)
    train_filter = script.train_filter
    monkeypatch.setattr(script, "train_filter", lambda *work: train_filter(*work) and FirstPixel())
    out = tmp_path / "out.json"
    names = ["fresh+filter", "several+transforms+filter"]
    result = run(script, folder, out, "--rows", ",".join(names))
    assert result.exit_code == 0, result.output
    rates = read_json(out.with_suffix(".rates.json"))
    for name in names:
        (rate,) = rates[name]  # one step asks one generator
        assert 0 < rate["acceptance_rate"] < 1
    assert f"| fresh+filter | {100 * rates['fresh+filter'][0]['acceptance_rate']:.1f} | 66.5 |" in result.output


def test_each_choice_of_the_paper_is_compared(script: ModuleType) -> None:
    pairs: list[tuple[str, str, str]] = script.changes()
    assert ("filter", "fresh+transforms", "fresh+transforms+filter") in pairs
    assert ("fresh", "fixed+truncation", "fresh+truncation") in pairs
    assert len(pairs) == len(set(pairs)) == 2 * 5 + 6
    assert all({before, after} <= set(script.PAPER) for _, before, after in pairs)
