"""What does a set of ImageNet's size cost to open? Seconds, resident memory and bytes from disk, in a fresh process.

For each stored dtype, the files are dropped from the system's cache and a new process opens them memory-mapped, makes a
data set of them and reads batches at random places. Resident memory is what the process has more than after its imports
and a first, tiny set. Linux only.

    python benchmarks/latents_scale.py

How long `load_bundle` takes, with the same latents in float16 and for the bundle in the package, is measured apart: the
median of 20 calls in one process of one thread, when the files are in the system's cache.

    python benchmarks/latents_scale.py --loading
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import click
import torch
from setting import readable
from torch import nn

from itgan_data import BigGAN, BigGANConfig, BundleConfig, load_bundle, save_bundle
from itgan_data.bundle.reading import packaged_bundle
from itgan_data.data.dataset import SyntheticDataset
from itgan_data.draws import Stream, permutation
from itgan_data.evaluation.results import environment
from itgan_data.images import Normalization
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import read_json, write_json

Value = TypeVar("Value")
NUM_CLASSES = 1000
BATCH_SIZE = 256
MORE_BATCHES = 100
LOADS = 20
DTYPES = (torch.float32, torch.float16, torch.int8)


class NoImages(nn.Module):
    """What a data set asks of a generator when it is made."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_classes = NUM_CLASSES
        self.image_shape = (3, 64, 64)


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def disk_mb() -> float:
    """MB that this process made the disk read so far, the kernel's read-ahead included."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes")) / 1e6


def drop_from_cache(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb") as content:
            os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(latents: LatentSet, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        latents.batch(batch)


def measure(path: Path, seed: int) -> dict[str, dict[str, float]]:
    """Seconds, resident MB and MB from disk of each step, in the order taken."""
    torch.set_num_threads(1)
    tiny = path.with_name("tiny.safetensors")  # what the first set of a process loads is not the large one's share
    LatentSet(torch.zeros(1, 1), torch.tensor([0])).save(tiny)
    LatentSet.load(tiny, mmap=True).batch(torch.tensor([0]))
    drop_from_cache(path.parent)
    baseline = resident_mb()
    steps: dict[str, dict[str, float]] = {"baseline": {"resident_mb": baseline}}

    def step(name: str, action: Callable[[], Value]) -> Value:
        before, started = disk_mb(), time.perf_counter()
        value = action()
        seconds = time.perf_counter() - started
        steps[name] = {"seconds": seconds, "resident_mb": resident_mb() - baseline, "disk_mb": disk_mb() - before}
        return value

    latents = step("open", lambda: LatentSet.load(path, mmap=True))
    dataset = step("data set", lambda: SyntheticDataset(NoImages(latents.latent_dim), latents, cache=None))
    order = permutation(seed, 0, len(dataset), stream=Stream.SCRIPT)
    first, *others = torch.split(order[: BATCH_SIZE * (1 + MORE_BATCHES)], BATCH_SIZE)
    step("batch", lambda: latents.batch(first))
    step("more batches", lambda: read(latents, others))
    step("the same again", lambda: read(latents, others))
    return steps


def time_loading(latents: LatentSet) -> None:
    """Print the median time of `load_bundle`, by the clock and by the processor, which other processes disturb less."""
    generator = BigGAN(BigGANConfig(num_classes=NUM_CLASSES, latent_dim=latents.latent_dim, channels=(8, 8, 8))).eval()
    about = BundleConfig(
        dataset="normal",
        class_names=tuple(map(str, range(NUM_CLASSES))),
        normalization=Normalization((0.5,) * 3, (0.25,) * 3),
        method="none",
        training={},
        metrics={},
    )
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder, "large"), generator, latents, config=about, preview=False)
        for source in (packaged_bundle("cifar10"), Path(folder, "large")):
            clocks = time.perf_counter, time.process_time
            taken = []
            for _ in range(LOADS):
                started = [clock() for clock in clocks]
                load_bundle(source)
                taken.append([clock() - start for clock, start in zip(clocks, started, strict=True)])
            seconds, processor = map(statistics.median, zip(*taken, strict=True))
            click.echo(f"{source.name}: {1e3 * seconds:.1f} ms, {1e3 * processor:.1f} ms of the processor")


@click.command(help=readable(__doc__))
@click.option("--count", default=1_281_167, show_default=True, help="Latents; ImageNet's training set by default.")
@click.option("--latent-dim", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/latents-scale.json"), show_default=True)
@click.option("--loading", is_flag=True, help="Only time `load_bundle`.")
def main(count: int, latent_dim: int, seed: int, out: Path, loading: bool) -> None:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed)
    latents = LatentSet(torch.randn(count, latent_dim, generator=rng), torch.arange(count) % NUM_CLASSES)
    if loading:
        time_loading(latents)
        return
    results = {}
    for dtype in DTYPES:
        stored_as = str(dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            latents.save(Path(folder, "latents.safetensors"), dtype=dtype)
            sizes = [file.stat().st_size / 1e6 for file in Path(folder).glob("*.safetensors")]
            steps = fresh.submit(measure, Path(folder, "latents.safetensors"), seed).result()
        results[stored_as] = {"files": len(sizes), "mb": sum(sizes), "steps": steps}
    settings = {"count": count, "latent_dim": latent_dim, "batch_size": BATCH_SIZE, "seed": seed}
    write_json(out, {"settings": settings, "environment": environment(), "results": results})
    click.echo(report(out), nl=False)


def report(out: Path) -> str:
    """Markdown: one row for each stored dtype."""
    lines = [
        "| stored as | MB | files | open | data set | batch | resident | read to open | by the batch | warm batch |"
    ]
    lines.append("|---|" + "---:|" * 9)
    for stored_as, result in read_json(out)["results"].items():
        steps = result["steps"]
        resident = max(values["resident_mb"] for name, values in steps.items() if name != "baseline")
        warm = steps["the same again"]["seconds"] / MORE_BATCHES
        lines.append(
            f"| {stored_as} | {result['mb']:.0f} | {result['files']} | {steps['open']['seconds']:.2f} s "
            f"| {steps['data set']['seconds']:.2f} s | {steps['batch']['seconds'] * 1e3:.0f} ms "
            f"| {resident:.0f} MB | {steps['open']['disk_mb']:.0f} MB | {steps['batch']['disk_mb']:.1f} MB "
            f"| {warm * 1e3:.1f} ms |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
