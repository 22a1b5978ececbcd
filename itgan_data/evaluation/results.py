"""Results of trained networks: accuracy over seeds, as JSON with where it was measured, and as a table."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import package_version
from ..storage.files import differences, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One network, trained from scratch."""

    seed: int
    """Of the initial weights, the order of the images and their augmentation."""
    accuracy: float
    """On the test set after the last update, in [0, 1]."""
    final_loss: float
    """Training loss of the last update."""
    seconds: float
    """Wall-clock time of training and testing."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Accuracy over seeds, in [0, 1]."""

    mean: float
    std: float | None
    """Sample standard deviation; None for a single seed."""
    num_seeds: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {100 * self.std:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


def summarize(results: Sequence[SeedResult]) -> Summary:
    """Mean and sample standard deviation of the accuracy."""
    if not results:
        raise ValueError("there are no results to summarize; expected at least one")
    values = [result.accuracy for result in results]
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(mean=statistics.fmean(values), std=std, num_seeds=len(values))


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What a measured number depends on in addition to the code: versions, processor, threads, GPU."""
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        **{package: package_version(package) for package in ("itgan_data", "torch", "torchvision")},
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What a row of a results table was computed from; results with another key are never mixed with it."""

    num_images: int | None
    """Images in the training set; None for fresh images without end."""
    num_bytes: int
    """What they occupy as stored, with all that is needed to show them."""
    content: str
    """What the images are: how they were chosen and coded, or the checksums of their files."""


class Results:
    """Rows of per-seed results in one JSON file, which grows by whole results and is never half-written.

    Args:
        path: the file; made on the first `add`, read if it is there.
        settings: what all rows have in common (network, recipe, data), JSON-able.
        environment: where they are measured; that of the last run is kept.

    Raises:
        ValueError: the file holds results of other settings.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, settings: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as they will be read back: tuples are lists
        self.environment = dict(environment)
        self.rows: dict[str, dict[str, Any]] = {}
        """By name: `key`, `results` of the seeds, and their `summary`, as in the file."""
        self._read()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        stored = read_json(self.path)
        if stored.get("settings") != self.settings:
            differing = [field for field, *_ in differences(stored.get("settings", {}), self.settings)]
            raise ValueError(
                f"{self.path} holds results of other settings ({', '.join(differing)} differ); "
                "choose another file or remove it"
            )
        self.rows = stored["rows"]

    def get(self, row: str, key: RowKey, seed: int) -> SeedResult | None:
        """The result of a row and seed, if it was made from the same key."""
        stored = self.rows.get(row)
        if stored is None or stored["key"] != asdict(key):
            return None
        for result in stored["results"]:
            if result["seed"] == seed:
                return SeedResult(**result)
        return None

    def add(self, row: str, key: RowKey, result: SeedResult) -> None:
        """Keep a result and write the file; results of the row made from another key are dropped.

        What another process added in the meantime is kept, so two processes may share the rows.
        """
        self._read()
        stored = self.rows.get(row)
        if stored is None or stored["key"] != asdict(key):
            stored = self.rows[row] = {"key": asdict(key), "results": []}
        stored["results"] = [kept for kept in stored["results"] if kept["seed"] != result.seed]
        stored["results"].append(asdict(result))
        summary = summarize([SeedResult(**kept) for kept in stored["results"]])
        stored["summary"] = {"mean": summary.mean, "std": summary.std}
        write_json(self.path, {"settings": self.settings, "environment": self.environment, "rows": self.rows})

    def table(self, order: Sequence[str] = ()) -> str:
        """A Markdown table, one line per row: first the rows in `order`, then the rest as they were added."""
        lines = ["| training set | images | bytes | test accuracy (%) | seeds |", "|---|---:|---:|---:|---:|"]
        names = [name for name in order if name in self.rows]
        for name in [*names, *(name for name in self.rows if name not in names)]:
            row = self.rows[name]
            summary = summarize([SeedResult(**result) for result in row["results"]])
            images = "fresh" if row["key"]["num_images"] is None else f"{row['key']['num_images']:,}"
            lines.append(f"| {name} | {images} | {row['key']['num_bytes']:,} | {summary} | {summary.num_seeds} |")
        return "\n".join(lines) + "\n"
