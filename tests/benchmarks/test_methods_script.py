from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark_script, run_tiny

from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("methods") as module:
        yield module


def test_every_method_ends_in_as_many_images_and_is_done_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name in script.ROWS if name not in script.CORESETS]  # which take half a minute
    options = ("--rows", ",".join(names), "--seeds", "1")
    first = run_tiny(script, tmp_path, *options)
    assert first.exit_code == 0, first.output
    rows = read_json(tmp_path / "out.json")["rows"]
    assert list(rows) == names
    assert {row["key"]["num_images"] for row in rows.values()} == {20}
    for name in script.METHODS:
        learned = LatentSet.load(tmp_path / "work" / name / "latents.safetensors")
        assert learned.labels.bincount().tolist() == [2] * 10
        assert learned.latent_dim == (3 * 32 * 32 if name in script.PIXELS else 16)

    monkeypatch.setattr("setting.evaluate", None)  # what is there is not measured again
    again = run_tiny(script, tmp_path, *options)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout


def test_an_unknown_row_is_refused(script: ModuleType, tmp_path: Path) -> None:
    result = run_tiny(script, tmp_path, "--rows", "random,dmm")
    assert result.exit_code == 2
    assert "unknown row 'dmm'" in result.output


def test_a_scale_changes_methods_that_there_are(script: ModuleType) -> None:
    for scale in script.SCALES.values():
        assert set(scale.changes) <= set(script.METHODS)
