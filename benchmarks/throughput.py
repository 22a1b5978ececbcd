"""How fast are generating and loading, compared with the straightforward way to do each?

Every round times all variants once, one after the other, so that whatever else the machine does hits them alike;
a figure is the median over the rounds, and only ratios within one run should be compared. On one CPU thread the clock
is that of the process, which stands still while another process has the core.

    python benchmarks/throughput.py --threads 1
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import kornia.augmentation as K
import torch
import torch.nn.functional as F
from setting import readable
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.datasets import CIFAR10, VisionDataset

from itgan_data import ITGANCIFAR10, SyntheticLoader
from itgan_data.augmentation import CropFlip
from itgan_data.datasets import CIFAR10 as CIFAR10_INFO
from itgan_data.evaluation.results import environment
from itgan_data.generators.biggan import BigGAN, BigGANConfig, UpBlock, upsample
from itgan_data.generators.frozen import FrozenBigGAN, fold
from itgan_data.generators.sampling import default_chunk, generate
from itgan_data.storage.files import read_json, write_json

SIZES = {"the reference's size": (256,) * 4, "the packaged bundle's size": (64,) * 4}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOADER_BATCH = 256
PADDING = 4
CIFAR_SIZE = 50_000

Variants = Mapping[str, Callable[[], Any]]


@torch.no_grad()
def median_seconds(variants: Variants, rounds: int, device: torch.device) -> dict[str, float]:
    """The median time of each variant; they take turns. One round goes before that is not counted."""
    clock = clock_for(device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            _synchronize(device)
            started = clock()
            call()
            _synchronize(device)
            if number:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def clock_for(device: torch.device) -> Callable[[], float]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def straightforward(generator: BigGAN, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """BigGAN as it is written down: spectral norm at every call, contiguous maps, upsampling before convolutions."""
    side = generator.config.bottom
    maps = generator.linear(latents).view(len(latents), -1, side, side)
    for block in generator.blocks:
        assert isinstance(block, UpBlock)
        hidden = block.conv1(upsample(F.relu(block.bn1(maps, labels))))
        hidden = block.conv2(F.relu(block.bn2(hidden, labels)))
        maps = hidden + block.shortcut(upsample(maps))
    return generator.output(maps)


def trained_like(channels: tuple[int, ...], device: torch.device) -> BigGAN:
    """A generator whose batch statistics are those of its maps; time does not depend on the weights otherwise."""
    generator = BigGAN(BigGANConfig(channels=channels))
    with torch.no_grad():
        for _ in range(20):
            generator(torch.randn(8, generator.latent_dim), torch.arange(8))
    return generator.eval().requires_grad_(False).to(device)


def matrix_products(device: torch.device) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, float]]:
    """Products that show what the machine can do, as a matrix product and as a convolution, and their operations."""
    side, channels, count = 2048, 256, 16
    calls, operations = {}, {}
    for name, dtype in DTYPES.items():
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        maps = torch.randn(count, channels, 32, 32, device=device, dtype=dtype)
        maps = maps.contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        calls[f"matmul, {name}"] = lambda matrix=matrix: matrix @ matrix
        calls[f"conv, {name}"] = lambda maps=maps, kernel=kernel: F.conv2d(maps, kernel, padding=1)
        operations[f"matmul, {name}"] = 2 * side**3
        operations[f"conv, {name}"] = 2 * maps.numel() * channels * 9
    return calls, operations


def measure_generation(
    channels: tuple[int, ...], batch: int, rounds: int, device: torch.device, compiled: bool
) -> dict[str, Any]:
    """Images a second of each form, and its share of the machine's best matrix product in the same precision."""
    plain = trained_like(channels, device)
    frozen = fold(plain)
    latents = torch.randn(batch, plain.latent_dim, device=device)
    labels = torch.arange(batch, device=device) % plain.num_classes
    chunk = default_chunk(frozen, device)
    forms: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
        "straightforward, float32": (lambda z, y: straightforward(plain, z, y), "float32"),
        "frozen, float32": (lambda z, y: generate(frozen, z, y), "float32"),
        "frozen, bfloat16": (lambda z, y: generate(frozen, z, y, dtype=torch.bfloat16), "bfloat16"),
    }
    if chunk < batch:  # how much of the gain is that of smaller calls

        def in_chunks(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            parts = zip(z.split(chunk), y.split(chunk), strict=True)
            return torch.cat([straightforward(plain, *part) for part in parts])

        forms[f"straightforward, float32, {chunk} images per call"] = (in_chunks, "float32")
    if compiled:
        faster = fold(plain)
        faster.compile(mode="reduce-overhead" if device.type == "cuda" else None)
        forms |= {
            "frozen, float32, compiled": (lambda z, y: generate(faster, z, y), "float32"),
            "frozen, bfloat16, compiled": (lambda z, y: generate(faster, z, y, dtype=torch.bfloat16), "bfloat16"),
        }
    products, product_operations = matrix_products(device)
    calls = {name: lambda form=form: form(latents, labels) for name, (form, _) in forms.items()}
    seconds = median_seconds(calls | products, rounds, device)
    rates = {name: count / seconds[name] for name, count in product_operations.items()}
    peaks = best_rates(rates)
    plain_operations = count_operations(lambda: straightforward(plain, latents, labels))
    frozen_operations = count_operations(lambda: frozen(latents, labels))
    rows = {}
    for name, (_, dtype) in forms.items():
        operations = plain_operations if name.startswith("straightforward") else frozen_operations
        rows[name] = {
            "images_per_second": batch / seconds[name],
            "ratio": seconds["straightforward, float32"] / seconds[name],
            "share_of_peak": operations / seconds[name] / peaks[dtype],
            "seconds_for_50000": CIFAR_SIZE * seconds[name] / batch,
        }
    operations_an_image = {"straightforward": plain_operations / batch, "frozen": frozen_operations / batch}
    return {"chunk": chunk, "operations_an_image": operations_an_image, "operations_per_second": rates, "rows": rows}


def best_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Of the rates of `matrix_products` the higher one in each precision: the peak."""
    return {dtype: max(rates[f"matmul, {dtype}"], rates[f"conv, {dtype}"]) for dtype in DTYPES}


def count_operations(call: Callable[[], Any]) -> int:
    """Those of matrix products and convolutions, a multiplication and an addition as two; none of compiled code."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def bfloat16_error(train_set: ITGANCIFAR10) -> dict[str, float]:
    """Of the packaged bundle's images, against float32, in units of their standard deviation."""
    assert isinstance(train_set.generator, FrozenBigGAN)
    assert train_set.latents is not None
    latents, labels = train_set.latents.batch(torch.arange(0, len(train_set), 10))
    exact = generate(train_set.generator, latents, labels)
    error = (generate(train_set.generator, latents, labels, dtype=torch.bfloat16) - exact).abs() / exact.std()
    return {"mean": float(error.mean()), "max": float(error.max()), "images": len(labels)}


class InMemoryCIFAR10(CIFAR10):
    """torchvision's CIFAR10 around given pixels: its own `__getitem__`, without the files."""

    def __init__(self, train_set: ITGANCIFAR10, transform: Callable[[Any], Any] | None) -> None:
        VisionDataset.__init__(self, transform=transform)
        self.data, self.targets = train_set.data.copy(), list(train_set.targets)


def measure_loading(train_set: ITGANCIFAR10, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per batch of the same images on the CPU, all with the same augmentation but for the floor."""
    normalization = CIFAR10_INFO.normalization
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(normalization.mean, normalization.std),
        ]
    )
    options: dict[str, Any] = {"batch_size": LOADER_BATCH, "shuffle": True, "drop_last": True}
    train_set.make_all()
    pixels = torch.from_numpy(train_set.data).permute(0, 3, 1, 2).contiguous()

    def floor() -> torch.Tensor:
        return pixels[torch.randint(len(pixels), (LOADER_BATCH,))].float() / 255.0

    augment = torch.nn.Sequential(
        K.RandomCrop((32, 32), padding=PADDING),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(normalization.mean), torch.tensor(normalization.std)),
    )
    variants: dict[str, Callable[[], Any]] = {
        "floor: index uint8, scale to float": floor,
        "ITGANCIFAR10 in a DataLoader, not augmented": endless(DataLoader(train_set, **options)),
        "SyntheticLoader": endless(
            SyntheticLoader(train_set, augment=CropFlip(PADDING), normalization=normalization, **options)
        ),
        "torchvision: PIL items in a DataLoader": endless(DataLoader(InMemoryCIFAR10(train_set, transform), **options)),
        "kornia on the floor's batch": lambda: augment(floor()),
    }
    seconds = median_seconds(variants, rounds, torch.device("cpu"))
    lowest, pil = seconds["floor: index uint8, scale to float"], seconds["torchvision: PIL items in a DataLoader"]
    return {
        name: {"milliseconds": 1e3 * value, "times_the_floor": value / lowest, "faster_than_pil": pil / value}
        for name, value in seconds.items()
    }


def endless(loader: Any) -> Callable[[], Any]:
    """A function that gives the next batch, epoch after epoch."""

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    iterator = batches()
    return lambda: next(iterator)


def table(columns: Mapping[str, str], rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown; `columns` has a heading and a format for each field."""
    names, formats = zip(*(column.split("|") for column in columns.values()), strict=True)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for name, row in rows.items():
        values = (format(row[field], spec) for field, spec in zip(columns, formats, strict=True))
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


GENERATION_COLUMNS = {
    "images_per_second": "images/s|.0f",
    "ratio": "times as fast|.2f",
    "share_of_peak": "share of peak|.0%",
    "seconds_for_50000": "50,000 images (s)|.0f",
}
LOADING_COLUMNS = {
    "milliseconds": "ms per batch|.2f",
    "times_the_floor": "times the floor|.2f",
    "faster_than_pil": "times as fast as PIL|.1f",
}


@click.command(help=readable(__doc__))
@click.option("--batch-size", default=64, show_default=True, help="Images generated at a time.")
@click.option(
    "--rounds", default=7, show_default=True, help="Timed rounds of generating; ten times as many of loading."
)
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Time compiled generators too (CUDA graphs on a GPU).")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/throughput.json"), show_default=True)
def main(batch_size: int, rounds: int, threads: int | None, device: str, compiled: bool, out: Path) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    generation = {}
    for name, channels in SIZES.items():
        generation[name] = measure_generation(channels, batch_size, rounds, place, compiled)
    train_set = ITGANCIFAR10()
    error = bfloat16_error(train_set)
    loading = measure_loading(train_set, 10 * rounds)
    write_json(
        out,
        {
            "settings": {
                "batch_size": batch_size,
                "rounds": rounds,
                "loader_batch_size": LOADER_BATCH,
                "clock": clock_for(place).__name__,
            },
            "environment": environment(place),
            "generation": generation,
            "bfloat16_error": error,
            "loading": loading,
        },
    )
    click.echo(report(out), nl=False)


def report(out: Path) -> str:
    """Markdown: generating at each size, the error of bfloat16, and loading."""
    content = read_json(out)
    settings, error = content["settings"], content["bfloat16_error"]
    parts = []
    for name, measured in content["generation"].items():
        parts.append(f"Generating {settings['batch_size']} images at a time, {name} ({SIZES[name][0]} channels):\n")
        parts.append(table(GENERATION_COLUMNS, measured["rows"]))
    parts.append(
        f"bfloat16 changes the packaged bundle's images by {error['mean']:.2%} of their standard deviation in the mean "
        f"and {error['max']:.1%} at most, over {error['images']:.0f} images.\n"
    )
    parts.append(f"Loading batches of {settings['loader_batch_size']} on the CPU:\n")
    parts.append(table(LOADING_COLUMNS, content["loading"]))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
