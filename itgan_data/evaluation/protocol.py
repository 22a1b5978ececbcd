"""The accuracy, on real test images, of fresh networks trained on a set; results as JSON and as a table."""

import importlib.metadata
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..draws import make_rng
from ..files import differences, read_json, write_json
from ..images import LabeledImages, Normalization, load_images
from ..networks import NETWORKS, create_network
from ..recipes import ImageSource, Recipe, accuracy, train_classifier

logger = logging.getLogger(__name__)

NetworkFactory = Callable[[torch.Generator], nn.Module]
MEASURED_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One network, trained from nothing."""

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


def evaluate(
    train_source: ImageSource | Dataset[Any],
    test_dataset: Dataset[Any],
    network: str | NetworkFactory,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    normalization: Normalization | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> list[SeedResult]:
    """Train one fresh network a seed on `train_source` and test each on `test_dataset`.

    Args:
        train_source: `LabeledImages`, `SyntheticDataset`, or anything torchvision-like (read into memory).
        test_dataset: real images, torchvision-like or `LabeledImages`; its classes set the number of logits.
        network: a name of `networks.NETWORKS`, or a function from an rng to a fresh network.
        recipe: how to train.
        seeds: each gives other initial weights, another order and other augmentations.
        normalization: of the images; by default measured on up to 5,000 training images.
        device: by default the GPU, if there is one.
        progress: called after each update with the number of updates of this seed so far and the loss.

    Returns:
        One result a seed, in the order of `seeds`; the accuracy is that after the last update, not the best.

    Raises:
        ValueError: before any training, for an unknown network, no seeds, or sets that do not fit each other.
    """
    if isinstance(network, str) and network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; expected one of {', '.join(NETWORKS)}")
    if not seeds:
        raise ValueError("seeds is empty; expected at least one seed")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    source = as_source(train_source)
    test_images = load_images(test_dataset)
    _check_fit(source, test_images)
    normalization = normalization or measure_normalization(source)
    if isinstance(source, LabeledImages):
        source = source.to(device)
    test_images = test_images.to(device)
    results = []
    for seed in seeds:
        start = time.perf_counter()
        rng = make_rng(seed)
        if isinstance(network, str):
            model: nn.Module = create_network(
                network, test_images.num_classes, image_shape=test_images.image_shape, rng=rng
            )
        else:
            model = network(rng)
        losses = _LastLoss(progress)
        train_classifier(model, source, recipe, normalization=normalization, seed=seed, device=device, progress=losses)
        result = SeedResult(
            seed=seed,
            accuracy=accuracy(model, test_images, normalization, precision=recipe.precision),
            final_loss=float(losses.value),
            seconds=time.perf_counter() - start,
        )
        logger.info("seed %d: accuracy %.2f%% in %.0f s", seed, 100 * result.accuracy, result.seconds)
        results.append(result)
    return results


class _LastLoss:
    """Keeps the last loss on its device, so that no update waits for its value."""

    def __init__(self, progress: Callable[[int, torch.Tensor], None] | None) -> None:
        self.value = torch.zeros(())
        self._progress = progress

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        self.value = loss
        if self._progress is not None:
            self._progress(step, loss)


def as_source(dataset: ImageSource | Dataset[Any]) -> ImageSource:
    """A data set that gives batches of unit images: itself if it does, else its images read into memory."""
    return dataset if hasattr(dataset, "unit_batch") else load_images(dataset)  # type: ignore[return-value]


def measure_normalization(source: ImageSource) -> Normalization:
    """Mean and standard deviation of each channel over the pixels of up to 5,000 images of `source`."""
    indices = torch.arange(0, len(source), max(1, len(source) // MEASURED_IMAGES))[:MEASURED_IMAGES]
    unit, _ = source.unit_batch(indices, 0)
    std, mean = torch.std_mean(unit, dim=(0, 2, 3))
    return Normalization(tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist()))


def _check_fit(source: ImageSource, test_images: LabeledImages) -> None:
    if len(source) == 0:
        raise ValueError("the training set has no images; expected at least one")
    unit, _ = source.unit_batch(torch.zeros(1, dtype=torch.int64), 0)
    if tuple(unit.shape[1:]) != test_images.image_shape:
        raise ValueError(
            f"training images have shape {tuple(unit.shape[1:])} and test images {test_images.image_shape}; "
            "expected one shape"
        )
    names = getattr(source, "classes", None)
    if names is not None and len(names) > test_images.num_classes:
        raise ValueError(
            f"the training set has {len(names)} classes and the test set {test_images.num_classes}; "
            "expected the same classes in the same order"
        )


def summarize(results: Sequence[SeedResult]) -> Summary:
    """Mean and sample standard deviation of the accuracy."""
    if not results:
        raise ValueError("there are no results to summarize; expected at least one")
    values = [result.accuracy for result in results]
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(mean=statistics.fmean(values), std=std, num_seeds=len(values))


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What a measured number depends on beside the code: versions, processor, threads, GPU."""
    device = torch.device(device)
    packages = ("itgan_data", "torch", "torchvision")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return None


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True, kw_only=True)
class RowKey:
    """What a row of a results table was made from; a row of another key is another row."""

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
        self._rows: dict[str, dict[str, Any]] = {}
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
        self._rows = stored["rows"]

    def get(self, row: str, key: RowKey, seed: int) -> SeedResult | None:
        """The result of a row and seed, if it was made from the same key."""
        stored = self._rows.get(row)
        if stored is None or stored["key"] != asdict(key):
            return None
        for result in stored["results"]:
            if result["seed"] == seed:
                return SeedResult(**result)
        return None

    def add(self, row: str, key: RowKey, result: SeedResult) -> None:
        """Keep a result and write the file; results of the row made from another key are dropped.

        What another process has added meanwhile is kept: one may measure some rows, one others.
        """
        self._read()
        stored = self._rows.get(row)
        if stored is None or stored["key"] != asdict(key):
            stored = self._rows[row] = {"key": asdict(key), "results": []}
        stored["results"] = [kept for kept in stored["results"] if kept["seed"] != result.seed]
        stored["results"].append(asdict(result))
        summary = summarize([SeedResult(**kept) for kept in stored["results"]])
        stored["summary"] = {"mean": summary.mean, "std": summary.std}
        write_json(self.path, {"settings": self.settings, "environment": self.environment, "rows": self._rows})

    def table(self, order: Sequence[str] = ()) -> str:
        """A Markdown table, one line a row: those named in `order` first, the rest as they were added."""
        lines = [
            "| training set | images | bytes | test accuracy (%) | seeds |",
            "|---|---:|---:|---:|---:|",
        ]
        names = [name for name in order if name in self._rows]
        for name in [*names, *(name for name in self._rows if name not in names)]:
            row = self._rows[name]
            summary = summarize([SeedResult(**result) for result in row["results"]])
            images = "fresh" if row["key"]["num_images"] is None else f"{row['key']['num_images']:,}"
            lines.append(f"| {name} | {images} | {row['key']['num_bytes']:,} | {summary} | {summary.num_seeds} |")
        return "\n".join(lines) + "\n"
