"""What does an image cost that is looked at alone, compared with torchvision's CIFAR10 of the same images?

The variants take turns, on one thread by the clock of the process; a figure is the median over the rounds.

    python benchmarks/items.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from setting import readable
from throughput import InMemoryCIFAR10, median_seconds, table

from itgan_data import ITGANCIFAR10
from itgan_data.evaluation.results import environment
from itgan_data.storage.files import read_json, write_json

COLUMNS = {"microseconds": "us an image|.2f", "times_torchvision": "times torchvision's|.2f"}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    ours, items = ITGANCIFAR10(), ITGANCIFAR10()  # the second one's `data` are never asked for
    items.make_all()
    theirs = InMemoryCIFAR10(ours, None)
    theirs.data = ours.data.copy(order="K")  # channels first in memory, as torchvision reads the files
    calls: dict[str, Callable[[int], Any]] = {
        "torchvision: data[i]": lambda index: theirs.data[index],
        "ITGANCIFAR10: data[i]": lambda index: ours.data[index],
        "torchvision: dataset[i]": theirs.__getitem__,
        "ITGANCIFAR10: dataset[i]": items.__getitem__,
    }
    places = range(len(ours))
    variants = {name: lambda look=look: [look(index) for index in places] for name, look in calls.items()}
    seconds = median_seconds(variants, rounds, torch.device("cpu"))
    rows = {}
    for name, value in seconds.items():
        other = seconds[name.replace("ITGANCIFAR10", "torchvision")]
        rows[name] = {"microseconds": 1e6 * value / len(places), "times_torchvision": value / other}
    return rows


def report(out: Path) -> str:
    return table(COLUMNS, read_json(out)["rows"])


@click.command(help=readable(__doc__))
@click.option("--rounds", default=70, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/items.json"), show_default=True)
def main(rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    write_json(out, {"settings": {"rounds": rounds}, "environment": environment("cpu"), "rows": measure(rounds)})
    click.echo(report(out), nl=False)


if __name__ == "__main__":
    main()
