"""benchmarks/README.md shows what the files of results hold."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, benchmark_script

from itgan_data.storage.files import read_json, write_json

README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("tables") as module:
        yield module


@pytest.fixture
def results(script: ModuleType, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(script.RESULTS, tmp_path / "results"))


def test_the_tables_are_those_of_the_results(script: ModuleType) -> None:
    assert script.rendered(README) == README


def test_a_result_that_changes_changes_its_table(script: ModuleType, results: Path) -> None:
    content = read_json(results / "storage.json")
    content["rows"]["latents int8, generator float32"]["results"][0]["accuracy"] = 0.5
    content["environment"]["torch"] = "9.9"
    write_json(results / "storage.json", content)
    lines, changed = README.splitlines(), script.rendered(README, results).splitlines()
    assert sum(one != other for one, other in zip(lines, changed, strict=True)) == 2  # the row, the versions


def test_every_file_of_results_is_shown(script: ModuleType, results: Path) -> None:
    shutil.copy(results / "storage.json", results / "storage-2.json")
    with pytest.raises(ValueError, match=r"does not show storage-2\.json"):
        script.rendered(README, results)
    (results / "storage-2.json").rename(results / "storage.json")
    (results / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"there is no .*metrics\.json"):
        script.rendered(README, results)


def test_what_no_script_reports_on_is_said(script: ModuleType, results: Path) -> None:
    write_json(results / "magic.json", {})
    with pytest.raises(ValueError, match=r"no script reports on magic\.json"):
        script.rendered(f"{README}<!-- magic.json -->\n<!-- end -->\n", results)
