"""The log of a run: JSON lines, each with the step it was written at."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class StepLog:
    """A log that a run adds to.

    Args:
        path: of the file; made with the first line.
        step: the steps done. Lines of later steps are removed: the run will write them again.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        self.found: list[dict[str, Any]] = []
        """The lines up to `step`, of earlier runs."""
        length = 0
        for line, end in _whole_lines(path):
            if line["step"] > step:
                break
            self.found.append(line)
            length = end
        if path.is_file():
            os.truncate(path, length)

    def write(self, step: int, **values: object) -> None:
        """Add a line of JSON values."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without a last one that is not complete; none if there is no file."""
    return [line for line, _ in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete lines, and the position where each ends in the file."""
    end = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        if not line.endswith(b"\n"):
            return
        end += len(line)
        yield json.loads(line), end
