from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import benchmark_script

from itgan_data.data.ensemble import SyntheticEnsemble
from itgan_data.evaluation.results import SeedResult
from itgan_data.generators.biggan import BigGANConfig
from itgan_data.latents.filtered import FilteredLatents
from itgan_data.storage.files import load_tensors, read_json, write_json


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The script that prints the tables, and the module of this one."""
    with benchmark_script("sampling") as sampling:
        import complementary

        yield sampling, complementary


@pytest.fixture
def module(scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with a plan of seconds, whose generators are not trained enough for a filter to wait for."""
    _, module = scripts
    generator = replace(
        module.PLAN.generator,
        generator=BigGANConfig(latent_dim=4, channels=(4, 4)),
        discriminator_channels=4,
        steps=2,
        batch_size=4,
    )
    plan = replace(
        module.PLAN,
        generator=generator,
        width=4,
        recipe=replace(module.PLAN.recipe, steps=1, batch_size=8),
        num_images=20,
        sets=1,
        networks=1,
    )
    monkeypatch.setattr(module, "PLAN", plan)
    monkeypatch.setattr(module, "FilteredLatents", partial(FilteredLatents, max_tries=1))
    return module


def run(scripts: tuple[ModuleType, ModuleType], folder: Path) -> Result:
    arguments = ["--tables", "3", "--device", "cpu"]  # the default data are not there, and are not read
    arguments += ["--out", str(folder / "out.json"), "--workdir", str(folder / "work")]
    return CliRunner().invoke(scripts[0].main, arguments)


def test_table_3_is_measured_once_and_compared_with_the_paper(
    scripts: tuple[ModuleType, ModuleType], module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(scripts, tmp_path)
    assert first.exit_code == 0, first.output
    out = tmp_path / "out.table-3.json"
    content = read_json(out)
    titles = {module.row_title(name, 0) for name in module.PAPER}
    assert set(content["rows"]) == titles | {module.REAL}
    assert "Digits at 8 px" in first.stdout
    for name, number in module.PAPER.items():
        (line,) = (line for line in first.stdout.splitlines() if line.startswith(f"| {name} | "))
        assert f" | {number or '-'} | " in line
    assert first.stdout.count("> 2 A_mu |") + first.stdout.count("2 A_mu > ") == 7

    monkeypatch.setattr(module, "GeneratorTrainer", None)  # what is there is not made again
    monkeypatch.setattr("setting.evaluate", None)
    again = run(scripts, tmp_path)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert read_json(out) == content


def test_a_row_that_is_missing_comes_out_the_same_from_what_was_kept(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, row = tmp_path / "out.json", "3 C, set 0"
    module.Bench(tmp_path / "work", out, "cpu").measure(0, "3 C")
    content = read_json(out)
    before = content["rows"].pop(row)
    write_json(out, content)
    monkeypatch.setattr(module, "sample_weights", None)
    module.Bench(tmp_path / "work", out, "cpu").measure(0, "3 C")
    after = read_json(out)["rows"][row]
    for kept in (before, after):
        (result,) = kept["results"]
        del result["seconds"]
    assert after == before


def test_rows_share_the_first_generator_and_the_others_follow_the_weights(module: ModuleType, tmp_path: Path) -> None:
    bench = module.Bench(tmp_path / "work", tmp_path / "out.json", "cpu")
    alone, alike, missed, last = (bench.generators(0, name) for name in ("1", "2 independent", "2 C", "3 C"))
    assert alone[0] is alike[0] is missed[0] is last[0]
    assert missed[1] is last[1]
    assert len(last) == 3
    steps = zip(alike[1].parameters(), missed[1].parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in steps)
    kept = {file.parent.name: load_tensors(file) for file in (tmp_path / "work").rglob("sample_weights.safetensors")}
    assert set(kept) == {"2-C", "3-C"}
    second, third = (kept[name]["sample_weights"] for name in ("2-C", "3-C"))
    assert len(second) == len(bench.train)
    assert not torch.equal(second, third)
    for label in range(10):
        assert int((second[bench.train.labels == label] == 0).sum()) == 1  # method C: the closest of a class alone


@pytest.mark.parametrize(("name", "low", "high"), [("2 C", 40, 60), ("2* C", 65, 85)])
def test_the_first_generator_is_drawn_as_often_as_the_row_says(
    module: ModuleType, tmp_path: Path, name: str, low: int, high: int
) -> None:
    source: SyntheticEnsemble
    source, filters = module.Bench(tmp_path / "work", tmp_path / "out.json", "cpu")._source(0, name, seed=0)
    first = torch.tensor([0])
    for epoch in range(100):
        source.unit_batch(first, epoch)
    tried = [int(one.num_tried.sum()) for one in filters]
    assert sum(tried) == 100
    assert low < tried[0] < high


def result(accuracy: float) -> SeedResult:
    return SeedResult(seed=0, accuracy=accuracy, final_loss=0.0, seconds=0.0)


def test_orders_are_judged_within_sets(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, module = scripts
    rows = {name: [[result(0.5)], [result(0.8)]] for name in module.PAPER}  # sets differ much, rows do not
    rows["2 independent"] = [[result(0.54)], [result(0.85)]]
    rows["3 independent"] = [[result(0.45)], [result(0.84)]]
    rates = {module.row_title(name, number): [0.5, None, 0.25] for name in rows for number in range(2)}
    written = module.compare(rows, rates, 0.97)
    assert "| one more | 2 independent > 1 | +1.68 | 4.50 ± 0.71 | holds |" in written
    assert "| one more | 3 independent > 2 independent | +0.37 | -5.00 ± 5.66 | within the spread |" in written
    assert "| 2 independent | 50.0, -, 25.0 | 90.24 | 69.50 ± 21.92 | 2 |" in written
    assert "Of 29 orders of the paper: holds: 5, reversed: 0, within the spread: 24." in written


def test_each_order_is_the_papers(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, module = scripts
    orders = list(module.orders())
    assert len(set(orders)) == len(orders)
    assert all(module.PAPER[better] > module.PAPER[worse] for _, better, worse in orders)
    assert {row for _, *pair in orders for row in pair} == set(module.PAPER) - {"3 B"}
