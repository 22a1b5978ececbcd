"""The logs that runs leave, as curves."""

import os
from pathlib import Path
from typing import Any

from ..running.step_log import read_log
from .plots import Curves


def read_curves(folder: str | os.PathLike[str]) -> dict[str, Curves]:
    """What a run has logged so far: `{quantity: {name: [(step, value), ...]}}`.

    The quantities are the loss (of discriminator and generator, or of each unit of latents) and, where a
    `GeneratorTrainer` measured it, the Fréchet distance in the features of each network.

    Args:
        folder: the workdir of a `GeneratorTrainer` (`log.jsonl`) or of a `Condenser` (`logs/*.jsonl`).

    Raises:
        ValueError: there is no log in the folder, it holds no line yet, or it is damaged.
    """
    folder = Path(folder)
    files = [file for file in (folder / "log.jsonl", *sorted(folder.glob("logs/*.jsonl"))) if file.is_file()]
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for file in files:
        try:
            for line in read_log(file):
                _add(curves, line, file.stem)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a log of ours, or damaged ({error!r})") from error
    if not curves:
        raise ValueError(f"{folder} holds no log; expected log.jsonl of a generator's training or logs/ of a condenser")
    return dict(curves)


def _add(curves: dict[str, dict[str, list[tuple[float, float]]]], line: dict[str, Any], unit: str) -> None:
    """Add the points of one line of the log of `unit`."""
    if "frechet_distance" in line:
        found = [("Fréchet distance", f"features of {line['network']}", line["frechet_distance"])]
    elif "loss" in line:
        found = [("loss", unit, line["loss"])]
    else:
        found = [("loss", player, line[f"{player}_loss"]) for player in ("discriminator", "generator")]
    for quantity, name, value in found:
        curves.setdefault(quantity, {}).setdefault(name, []).append((line["step"], value))
