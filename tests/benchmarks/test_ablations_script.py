from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import benchmark_script, run_tiny

from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("ablations") as module:
        yield module


def test_cells_are_condensed_from_one_start(script: ModuleType, tmp_path: Path) -> None:
    result = run_tiny(script, tmp_path, "--tables", "4", "--cells", "lr0.001-")
    assert result.exit_code == 0, result.output
    rows = read_json(tmp_path / "out.json")["rows"]
    assert list(rows) == ["distribution-lr0.001-1x4-lambda0-random", "gradient-lr0.001-1x4-lambda0-random"]
    assert {len(row["results"]) for row in rows.values()} == {2}
    cells = [tmp_path / "work" / "cells" / name for name in rows]
    starts = [LatentSet.load(cell / "inversion.safetensors").latents for cell in cells]
    learned = [LatentSet.load(cell / "latents.safetensors").latents for cell in cells]
    assert torch.equal(*starts)
    assert not torch.equal(*learned)


def test_a_run_out_of_time_shows_what_there_is_and_goes_on(script: ModuleType, tmp_path: Path) -> None:
    stopped = run_tiny(script, tmp_path, "--tables", "4", "--max-minutes", "0")
    assert stopped.exit_code == 1
    assert "| gradient, 1 | - | 43.40 ± 0.80 |" in stopped.stdout
    assert "run again to go on" in stopped.output
    assert run_tiny(script, tmp_path, "--tables", "4", "--cells", "distribution-lr1-").exit_code == 0
    assert list(read_json(tmp_path / "out.json")["rows"]) == ["distribution-lr1-1x4-lambda0-random"]


def test_networks_are_grouped_by_their_accuracy(script: ModuleType, tmp_path: Path) -> None:
    result = run_tiny(script, tmp_path, "--tables", "7", "--cells", "pool-0.7")
    assert result.exit_code == 0, result.output
    assert "no network of the pool is 30-40% accurate" in result.stdout  # at this scale none learns so much
    tuned = list(read_json(tmp_path / "out.tuning.json")["rows"])
    assert tuned == ["distribution-lr0.01-1x4-lambda0-random", "distribution-lr0.1-1x4-lambda0-random"]
    (measured,) = read_json(tmp_path / "out.json")["rows"]
    assert measured.endswith("-1x4-lambda0-pool-0.7-1")


@pytest.mark.parametrize("scale", ["tiny", "cpu", "gpu"])
def test_every_cell_has_a_name_of_its_own_and_every_order_its_lines(script: ModuleType, scale: str) -> None:
    class Planned:
        """A laboratory that has measured nothing."""

        def __init__(self) -> None:
            self.scale = script.SCALES[scale]

        def cell(self, count: int, **changes: object) -> object:
            return replace(self.scale.base, images_per_class=count, **changes)

        def has_networks(self, config: object) -> bool:
            return True

        def judge(self, config: object) -> float:
            return 0.5

    configs = {}
    for make in script.TABLES.values():
        table = make(Planned())
        labels = [line.label for line in table.lines]
        assert len(set(labels)) == len(labels)
        assert {label for order in table.orders for label in order} <= set(labels)
        for line in table.lines:
            assert configs.setdefault(script.cell_name(line.config), line.config) == line.config
    chosen = script.SCALES[scale]
    assert len(configs) >= 4 * 2 + len(chosen.parts) + 2 * len(chosen.lambdas) + 9 - 4  # some are in several tables
