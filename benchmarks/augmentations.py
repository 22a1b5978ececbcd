"""How fast are the augmentations that the package has of its own, compared with kornia's?

Each draws for a batch of 32 px images and augments it; the two take turns, so only their ratio should be compared.

    python benchmarks/augmentations.py
"""

from pathlib import Path

import click
import kornia
import kornia.augmentation as K
import torch
from setting import readable
from throughput import clock_for, median_seconds, table

from itgan_data.augmentation.operations import OPERATIONS
from itgan_data.draws import Stream, uniform
from itgan_data.evaluation.results import environment
from itgan_data.storage.files import read_json, write_json

BATCH = 256
KORNIA = {
    "color": K.ColorJiggle(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.0, 2.0), p=1.0),
    "crop": K.RandomCrop((32, 32), padding=4, p=1.0),
    "cutout": K.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), p=1.0),
    "flip": K.RandomHorizontalFlip(p=0.5),
}
COLUMNS = {"ours": "ours (ms per batch)|.2f", "kornia": "kornia (ms per batch)|.2f", "ratio": "times as fast|.1f"}


def measure(name: str, rounds: int) -> dict[str, float]:
    images, indices, operation = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH), OPERATIONS[name]
    calls = {
        "ours": lambda: operation(images, uniform(0, 0, indices, operation.num_draws, stream=Stream.SCRIPT)),
        "kornia": lambda: KORNIA[name](images),
    }
    seconds = median_seconds(calls, rounds, images.device)
    return {**{key: 1e3 * value for key, value in seconds.items()}, "ratio": seconds["kornia"] / seconds["ours"]}


@click.command(help=readable(__doc__))
@click.option("--rounds", default=50, show_default=True, help="Timed batches of each.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/augmentations.json"), show_default=True)
def main(rounds: int, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cpu")
    settings = {
        "batch_size": BATCH,
        "rounds": rounds,
        "clock": clock_for(device).__name__,
        "kornia": kornia.__version__,
    }
    rows = {name: measure(name, rounds) for name in KORNIA}
    write_json(out, {"settings": settings, "environment": environment(device), "rows": rows})
    click.echo(report(out), nl=False)


def report(out: Path) -> str:
    """Markdown: both on the same batches."""
    content = read_json(out)
    settings = content["settings"]
    title = f"Batches of {settings['batch_size']} images of 32 px, kornia {settings['kornia']}:"
    return f"{title}\n\n{table(COLUMNS, content['rows'])}"


if __name__ == "__main__":
    main()
