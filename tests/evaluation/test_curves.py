"""Logs of runs as curves."""

from pathlib import Path

import pytest

from itgan_data.evaluation.curves import read_curves
from itgan_data.running.step_log import StepLog


def test_losses_and_distances_of_a_generators_training(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl", step=0)
    for step in (20, 40):
        log.write(step, discriminator_loss=2.0 - step / 100, generator_loss=step / 100)
    log.write(40, frechet_distance=12.5, network="ConvNet", samples=100)
    assert read_curves(tmp_path) == {
        "loss": {"discriminator": [(20, 1.8), (40, 1.6)], "generator": [(20, 0.2), (40, 0.4)]},
        "Fréchet distance": {"features of ConvNet": [(40, 12.5)]},
    }


def test_the_loss_of_each_unit_of_a_condenser(tmp_path: Path) -> None:
    for unit in ("group-0001", "group-0000"):
        StepLog(tmp_path / "logs" / f"{unit}.jsonl", step=0).write(10, loss=3.0, seconds=1.0, steps_per_second=10.0)
    assert read_curves(tmp_path) == {"loss": {"group-0000": [(10, 3.0)], "group-0001": [(10, 3.0)]}}


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_curves(tmp_path) == {"loss": {"log": [(1, 2.0)]}}


@pytest.mark.parametrize("content", ["no log\n", '{"step": 1}\n', '{"loss": 1.0}\n', "[1, 2]\n"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"log\.jsonl is not a log of ours, or damaged"):
        read_curves(tmp_path)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no log; expected log\.jsonl"):
        read_curves(tmp_path)
