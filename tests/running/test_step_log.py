import json
from pathlib import Path

from itgan_data.running.step_log import StepLog, read_log


def test_a_log_loses_what_comes_after_the_step_or_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.jsonl"
    log = StepLog(path, step=0)
    for step in (20, 40, 60):
        log.write(step, loss=step / 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 70, "lo')
    assert len(StepLog(path, step=100).found) == 3
    assert path.read_bytes() == whole
    assert StepLog(path, step=40).found == [{"step": 20, "loss": 10.0}, {"step": 40, "loss": 20.0}]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 40]
    assert StepLog(path, step=0).found == []
    assert path.read_bytes() == b""


def test_reading_a_log_leaves_it_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    StepLog(path, step=0).write(1, loss=0.5)
    being_written = path.read_bytes() + b'{"step": 2'
    path.write_bytes(being_written)
    assert read_log(path) == [{"step": 1, "loss": 0.5}]
    assert path.read_bytes() == being_written
