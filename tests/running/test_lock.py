"""A workdir is for one run at a time: for its ranks or shards together, and for nobody else."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from itgan_data.running.lock import workdir_lock
from itgan_data.running.shards import Shard


def refused(workdir: Path, shard: str) -> bool:
    try:
        with workdir_lock(workdir, Shard.parse(shard)):
            return False
    except RuntimeError:
        return True


def test_the_refusal_is_one_line_that_names_the_folder(tmp_path: Path) -> None:
    message = rf"^another run is at work in {tmp_path} \(1-of-1\.lock is locked\); wait for its end, or use .* folder$"
    with (
        workdir_lock(tmp_path, Shard(1, 1)),
        pytest.raises(RuntimeError, match=message),
        workdir_lock(tmp_path, Shard(1, 1)),
    ):
        pass


@pytest.mark.parametrize(
    ("running", "comes", "expected"),
    [
        (["1/1"], "1/1", True),
        (["1/2"], "2/2", False),
        (["2/2"], "2/2", True),
        (["3/16", "4/16"], "1/1", True),
        (["1/1"], "3/16", True),
        (["1/2"], "1/3", True),
        ([], "1/1", False),
    ],
)
def test_shards_of_as_many_share_a_workdir(tmp_path: Path, running: list[str], comes: str, expected: bool) -> None:
    with ExitStack() as stack:
        for shard in running:
            stack.enter_context(workdir_lock(tmp_path, Shard.parse(shard)))
        assert refused(tmp_path, comes) is expected
    assert not refused(tmp_path, comes)


def test_an_error_ends_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workdir_lock(tmp_path, Shard(1, 1)):
        raise KeyboardInterrupt
    assert not refused(tmp_path, "1/1")


def _work(workdir: Path) -> None:
    with workdir_lock(workdir, Shard(1, 1)):
        (workdir / "new").touch()
        os.replace(workdir / "new", workdir / "old")


def test_a_killed_run_leaves_no_lock(tmp_path: Path, killed_at_rename: Callable[..., bool]) -> None:
    assert killed_at_rename(1, _work, tmp_path)
    assert (tmp_path / "new").exists()
    assert not refused(tmp_path, "1/1")
