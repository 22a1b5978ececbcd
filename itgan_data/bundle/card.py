"""The card of a bundle: `README.md`, whose head the Hub reads."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ..generators.store import WEIGHTS_FILE

_ACCURACY = "test accuracy"  # metrics whose names begin so are results of a classifier on real test images

_USE = """## Use it

```python
from torch.utils.data import DataLoader

from itgan_data import SyntheticDataset, load_bundle
{imports}
bundle = load_bundle({source}{trust})
dataset = SyntheticDataset(bundle.generator, bundle.latents, classes=bundle.class_names)
for images, labels in DataLoader(dataset, batch_size=128, shuffle=True):  # float32 in [0, 1], int64
    inputs = bundle.normalization.standardize(images)  # for a classifier
```"""

_LIMITS = """## Limits

Images from a generator are less sharp and less varied than the real ones, so a classifier trained on them is less
accurate than one trained on the real set. What the card does not state was not measured. The bundle carries the biases
of the real set, and it does not protect privacy: latents may be fitted to real training images."""


def card(
    config: Mapping[str, Any], sizes: Mapping[str, int], *, source: str = "path/to/this/folder", preview: str | None
) -> str:
    """The text of the card.

    Args:
        config: content of `config.json`.
        sizes: bytes of each tensor file.
        source: what `load_bundle` is to be called with.
        preview: name of the preview's file, if there is one.
    """
    latents, shape = config["latents"], "x".join(str(side) for side in config["image"]["shape"])
    parts = [
        _metadata(config, source),
        f"# {_cell(config['dataset'])}, condensed by {_cell(config['method'])}",
        f"A generator and {latents['count']} latents of width {latents['dim']} that stand in for the training set: "
        f"{len(config['class_names'])} classes, images {shape}.",
        f"![a row of images for each class]({preview})" if preview else "",
        _use(config["generator"]["architecture"], source),
        _results(config["metrics"]),
        _storage(config, sizes),
        f"## How it was made\n\n```json\n{json.dumps(config['training'], indent=2)}\n```",
        _LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(config: Mapping[str, Any], source: str) -> str:
    """YAML between dashes. JSON is YAML too, so every value is written as JSON."""
    dataset = str(config["dataset"])
    lines = [
        "library_name: itgan-data",
        f"license: {json.dumps(config.get('license', 'unknown'))}",
        "tags:",
        "- dataset-condensation",
        "- synthetic-data",
    ]
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset):  # anything else is not a data set's name on the Hub
        lines.append(f"datasets:\n- {json.dumps(dataset)}")
    if accuracies := {name: value for name, value in _numbers(config["metrics"]).items() if name.startswith(_ACCURACY)}:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": dataset, "name": dataset, "split": "test"},
            "metrics": [{"type": "accuracy", "name": name, "value": value} for name, value in accuracies.items()],
        }
        lines.append(f"model-index: {json.dumps([{'name': source, 'results': [result]}])}")
    return "\n".join(["---", *lines, "---"])


def _use(architecture: str, source: str) -> str:
    """How to load it; a class that is not of this package has to be trusted."""
    module, _, name = architecture.partition(":")
    imports = f"from {module} import {name.partition('.')[0]}  # its code is not in the bundle: read it first\n"
    trust = f", trust={name}"
    return _USE.format(source=json.dumps(source), imports=imports if name else "", trust=trust if name else "")


def _results(metrics: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(name)} | {value:.4g} |" for name, value in _numbers(metrics).items()]
    return "\n".join(["## Measured", "", "| metric | value |", "|---|---:|", *rows]) if rows else ""


def _storage(config: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    weights = sizes[WEIGHTS_FILE]
    rows = [("generator", weights), ("latents", sum(sizes.values()) - weights), ("together", sum(sizes.values()))]
    real_images = config["training"].get("real_images")
    if isinstance(real_images, Mapping) and type(count := real_images.get("count")) is int:
        rows.append((f"the {count} real images, uint8", count * math.prod(config["image"]["shape"])))
    table = [f"| {name} | {size / 1e6:.2f} |" for name, size in rows]
    return "\n".join(["## Storage", "", "| | MB |", "|---|---:|", *table])


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if type(value) in (int, float)}


def _cell(text: object) -> str:
    """Text that stays within its line and its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
