"""`itgan-data condense` in a process of its own: stopped by SIGTERM it goes on; meanwhile nobody else works there."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from click.testing import CliRunner
from conftest import write_bundle

from itgan_data.cli import main
from itgan_data.storage.files import read_json, write_json

PROGRAM = [sys.executable, "-c", "from itgan_data.cli import main; main(prog_name='itgan-data')"]
SECONDS = 200  # a process imports torch in a few of them, on a busy machine in many
ENDLESS = {
    "steps": 10**6,
    "initialize": "normal",
    "networks": {"width": 8},
    "real_batch_size": 2,
    "log_steps": 1,
    "checkpoint_minutes": 1000.0,
}


def test_sigterm_saves_and_ends_a_run_that_had_the_workdir_to_itself(tmp_path: Path) -> None:
    write_bundle(tmp_path / "generator", [str(digit) for digit in range(10)])
    write_json(tmp_path / "condenser.json", ENDLESS)
    arguments = ["condense", "--data", "digits", "--generator", "generator", "--config", "condenser.json"]
    arguments += ["--images-per-class", "1", "--out", "bundle", "--device", "cpu"]
    workdir, log = tmp_path / "bundle-work", tmp_path / "bundle-work" / "logs" / "group-0000.jsonl"
    running = subprocess.Popen([*PROGRAM, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + SECONDS
        while not log.is_file():
            assert running.poll() is None, running.stderr and running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)

        paths = [
            str(tmp_path / word) if word in ("generator", "condenser.json", "bundle") else word for word in arguments
        ]
        second = CliRunner().invoke(main, paths)
        assert second.exit_code == 1
        assert second.stderr.splitlines()[-1].startswith(f"Error: another run is at work in {workdir} (")

        running.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, printed = running.communicate(timeout=SECONDS)
        assert time.monotonic() - started < 10
    finally:
        running.kill()
    assert running.returncode == 128 + signal.SIGTERM
    assert printed.splitlines()[-1] == "Error: terminated; run the same command again to go on"
    step = read_json(workdir / "group-0000" / "checkpoint.json")["step"]
    assert step > 0
    again = CliRunner().invoke(main, [*paths, "--steps", str(step + 2)])
    assert again.exit_code == 0, again.stderr
    assert f"| {step}/{step + 2}" in again.stderr
