"""How fast is a step of condensation, compared with the loop over classes that one writes from the paper?

All variants make the same step: the same latents, real images, draws and network; their losses and gradients are
compared before anything is timed. They take turns, a figure is the median over the rounds, and only ratios within one
run should be compared. On one CPU thread the clock is that of the process, which stands still while another process has
the core. Memory is what a step needs at its peak beyond what the process holds before it, in a fresh process for each
variant. Images and weights are random: neither changes the time. A step's share of the peak is that of its matrix
products and convolutions in the time that the machine's best product would take for them, in the same precision and
run: what is left is how much faster it could be without doing less. With `--data` the precision is judged too, on real
images with the packaged generator and trained networks.

    python benchmarks/condense_speed.py --threads 1 --data imagefolder:DIR --pool WORKDIR/condense/pool
"""

import ctypes
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from release_cifar10 import CPU as RELEASE
from setting import readable
from throughput import best_rates, clock_for, count_operations, matrix_products, straightforward, table

from itgan_data.bundle.writing import load_bundle
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.network_source import PoolSource
from itgan_data.condense.objective import Batch, DistributionObjective, Matching
from itgan_data.condense.pool import EmbeddingPool, build_pool
from itgan_data.config import computing
from itgan_data.datasets import load_images, open_dataset
from itgan_data.evaluation.results import environment
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.images import LabeledImages, signed_to_unit, uint8_to_unit
from itgan_data.networks import create_network
from itgan_data.storage.files import read_json, write_json

CHANNELS = (64,) * 4  # the packaged bundle's size
PARTS = ("generator", "augmentation", "embedding", "optimizer", "draws and losses")
IMAGES_PER_CLASS = 50
JUDGED_STEPS = 12  # draws over which a loss is averaged

Images = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Embedding = Callable[[torch.Tensor], torch.Tensor]
Step = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Work:
    """The size of a step."""

    num_classes: int
    latents: int
    """A class, as is the next."""
    real_images: int
    chunk_size: int | None = None

    def __str__(self) -> str:
        return f"{self.num_classes} classes of {self.latents} latents and {self.real_images} real images"

    @property
    def config(self) -> CondenserConfig:
        return CondenserConfig(real_batch_size=self.real_images, chunk_size=self.chunk_size)


WORKS = (Work(10, 20, 64), Work(100, 5, 10), Work(100, 1, 2))
GROWING = tuple(Work(2, 20 * times, 16, chunk_size=16) for times in (1, 4, 16))


@dataclass(frozen=True)
class Variant:
    """A way to make a step."""

    precision: str = "float32"
    compiled: bool = False
    loop: bool = False
    """Over classes, as written from the paper."""
    backward_once: bool = False
    """In the loop: of the sum over classes, as published, in place of one class at a time."""


PLAIN = "loop over classes"
VARIANTS = {
    PLAIN: Variant(loop=True),
    "loop, one backward for all": Variant(loop=True, backward_once=True),
    "ours, float32": Variant(),
    "ours, bfloat16": Variant("bfloat16"),
    "ours, float32, compiled": Variant(compiled=True),
    "ours, bfloat16, compiled": Variant("bfloat16", compiled=True),
}
EAGER = {True: PLAIN, False: "ours, float32"}  # whose operations can be counted: of loops, and of ours


class Stopwatch:
    """Charges the time since the last call to a part of the step, while `running`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = clock_for(device)
        self.running = False
        self.seconds: Counter[str] = Counter()
        self.last = 0.0

    def charge(self, part: str | None) -> None:
        if self.running:
            now = self.now()
            if part is not None:
                self.seconds[part] += now - self.last
            self.last = now

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def around(self, call: Callable[..., torch.Tensor], part: str, before: str, after: str) -> Any:
        """`call`, its forward and backward pass charged to `part`, what else runs between two such to the others."""

        def timed(tensor: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
            result = call(_Boundary.apply(tensor, self, before, part), *arguments)
            return _Boundary.apply(result, self, part, after)

        return timed


class _Boundary(torch.autograd.Function):
    """The identity; notes on the way forth and back that a part has ended."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, watch: Stopwatch, ended: str, ended_back: str) -> torch.Tensor:
        watch.charge(ended)
        ctx.watch, ctx.ended_back = watch, ended_back
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.watch.charge(ctx.ended_back)
        return gradient, None, None, None


class TimedMatching(Matching):
    """Matching whose draws are a part of their own."""

    def __init__(self, watch: Stopwatch, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watch = watch

    def draw(self, classes: torch.Tensor, *, group: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = super().draw(classes, group=group, step=step)
        self.watch.charge("draws and losses")
        return drawn


def make_step(variant: Variant, work: Work, device: torch.device, watch: Stopwatch) -> Step:
    """A function of the step's number that updates latents of its own and returns losses and gradient before it."""
    rng = torch.Generator().manual_seed(0)
    generator = random_generator(work.num_classes, rng).to(device)
    places = torch.arange(work.num_classes * IMAGES_PER_CLASS)
    pixels = torch.randint(0, 256, (len(places), *generator.image_shape), dtype=torch.uint8, generator=rng)
    names = [f"class {label}" for label in range(work.num_classes)]
    real_images = LabeledImages(pixels, places // IMAGES_PER_CLASS, names).to(device)
    by_class = list(places.split(IMAGES_PER_CLASS))
    latents = torch.randn(work.num_classes, work.latents, generator.latent_dim, generator=rng).to(device)
    sources = torch.stack([places[torch.arange(work.latents) % IMAGES_PER_CLASS] for places in by_class])
    networks = [create_network("convnet", work.num_classes, rng=rng).to(device) for _ in range(3)]
    states = [network.state_dict() for network in networks[:2]]
    network = networks[2]
    if variant.loop:
        generate: Images = lambda z, labels: straightforward(generator, z, labels)  # noqa: E731
    else:
        generate = computing(fold(generator), device, variant.precision, compiled=variant.compiled)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pool = PoolSource(EmbeddingPool(network, states, [0.5, 0.5]), seed=0)
    embed: Embedding = (
        network.embed
        if variant.loop
        else computing(network.embed, device, variant.precision, compiled=variant.compiled)
    )
    generate = watch.around(generate, "generator", "draws and losses", "augmentation")
    embed = watch.around(embed, "embedding", "augmentation", "draws and losses")
    matching = TimedMatching(watch, generate, pool, real_images, by_class, work.config)
    parameter = latents.requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=work.config.lr_latents)
    classes = torch.arange(work.num_classes)
    objective = DistributionObjective(matching, embed)

    def step(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        watch.charge(None)
        batch = Batch(parameter.detach(), sources, classes)
        if variant.loop:
            found = loop_over_classes(matching, embed, batch, number, backward_once=variant.backward_once)
        else:
            found = objective.gradient(batch, group=0, step=number)
        watch.charge("draws and losses")
        parameter.grad = found[1].clone()
        optimizer.step()
        watch.charge("optimizer")
        return found

    return step


def loop_over_classes(
    matching: Matching, embed: Embedding, batch: Batch, step: int, *, backward_once: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 1 of IT-GAN as it is written down, in float32."""
    config = matching.config
    uniforms, places = matching.draw(batch.classes, group=0, step=step)
    latents = batch.latents.requires_grad_(True)
    losses = []
    for row, label in enumerate(batch.classes.tolist()):

        def features(unit: torch.Tensor, row: int = row) -> torch.Tensor:
            draws = uniforms[row].expand(len(unit), -1)
            return embed(matching.augment(config.normalization.standardize(unit), draws))

        with torch.no_grad():
            real_mean = features(uint8_to_unit(matching.real_images.images[places[row].to(matching.device)])).mean(0)
        labels = torch.full((latents.shape[1],), label, device=matching.device)
        synthetic = features(signed_to_unit(matching.generate(latents[row], labels)))
        loss = (real_mean - synthetic.mean(0)).square().sum()
        if not backward_once:
            loss.backward()
        losses.append(loss)
    if backward_once:
        torch.stack(losses).sum().backward()
    assert latents.grad is not None
    return torch.stack(losses).detach(), latents.grad


def random_generator(num_classes: int, rng: torch.Generator) -> BigGAN:
    """In evaluation mode, its batch statistics those of its maps."""
    generator = BigGAN(BigGANConfig(num_classes=num_classes, channels=CHANNELS), rng=rng)
    with torch.no_grad():
        for _ in range(20):
            generator(torch.randn(8, generator.latent_dim, generator=rng), torch.arange(8) % num_classes)
    return generator.eval().requires_grad_(False)


def measure_speed(work: Work, rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Of each variant the time of a step, the shares of its parts, and how far it is from the loop's result."""
    torch.compiler.reset()
    watches = {name: Stopwatch(device) for name in VARIANTS}
    steps = {name: make_step(variant, work, device, watches[name]) for name, variant in VARIANTS.items()}
    found = {name: step(0) for name, step in steps.items()}
    operations = {loop: count_operations(lambda step=steps[name]: step(0)) for loop, name in EAGER.items()}
    products, product_operations = matrix_products(device)
    timed = {**steps, **{name: lambda _, product=product: product() for name, product in products.items()}}
    watch = Stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(1, rounds + 1):
        for name, call in timed.items():
            started = watch.now()
            call(number)
            seconds[name].append(watch.now() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = best_rates({name: count / medians[name] for name, count in product_operations.items()})
    for name, step in steps.items():
        watches[name].running = True
        step(rounds + 1)
    results: dict[str, dict[str, Any]] = {}
    for name, (losses, gradient) in found.items():
        variant, median, parts = VARIANTS[name], medians[name], watches[name].seconds
        results[name] = {
            "seconds": median,
            "steps_per_second": 1 / median,
            "ratio": medians[PLAIN] / median,
            "operations": operations[variant.loop],
            "share_of_peak": operations[variant.loop] / median / peaks[variant.precision],
            "shares": {part: parts[part] / parts.total() for part in PARTS},
            "loss_difference": _relative(losses, found[PLAIN][0]),
            "gradient_difference": _relative(gradient, found[PLAIN][1]),
            "gradient_cosine": _cosine(gradient, found[PLAIN][1]),
        }
    return results


def _relative(tensor: torch.Tensor, reference: torch.Tensor) -> float:
    return float((tensor - reference).norm() / reference.norm())


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def measure_memory(variant: Variant, work: Work, device: torch.device, threads: int) -> tuple[float, float]:
    """Peak MB of a step beyond what is held before it, and its seconds. To be called in a fresh process. Linux."""
    torch.set_num_threads(threads)
    watch = Stopwatch(device)
    step = make_step(variant, work, device, watch)
    step(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        before = _status_bytes("VmRSS")
    started = watch.now()
    step(1)
    seconds = watch.now() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")
    return (peak - before) / 1e6, seconds


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def in_fresh_process(variant: Variant, work: Work, device: torch.device) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(measure_memory, variant, work, device, torch.get_num_threads()).result()


def judge_precision(data: str, pool: Path, steps: int, device: torch.device) -> dict[str, Any]:
    """What bfloat16 does to the gradient and to what is learned, compared with what other draws do to it.

    The loss is that of float32, over draws that no run has learned from.
    """
    torch.compiler.reset()
    generator = load_bundle("cifar10-gan").generator.to(device)
    real_images = load_images(open_dataset(data, "train")).to(device)
    config = replace(RELEASE.condenser, real_batch_size=64, regularizer_weight=0.0)
    networks = build_pool(real_images, config.pool, normalization=config.normalization, seed=0, workdir=pool)
    by_class = [(real_images.labels == label).nonzero().squeeze(1).cpu() for label in range(10)]
    start = torch.randn(10, 10, generator.latent_dim, generator=torch.Generator().manual_seed(0)).to(device)
    sources = torch.stack([places[:10] for places in by_class])

    def objective(variant: Variant, seed: int) -> DistributionObjective:
        source = PoolSource(networks, seed)
        generate = computing(generator, device, variant.precision, compiled=variant.compiled)
        matching = Matching(generate, source, real_images, by_class, replace(config, seed=seed))
        return DistributionObjective(
            matching, computing(networks.network.embed, device, variant.precision, compiled=variant.compiled)
        )

    def gradient(of: DistributionObjective, latents: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return of.gradient(Batch(latents.detach(), sources, torch.arange(10)), group=0, step=step)

    exact = objective(Variant(compiled=True), 0)
    rounded = objective(Variant("bfloat16", compiled=True), 0)

    def loss(latents: torch.Tensor) -> float:
        unseen = range(steps, steps + JUDGED_STEPS)
        return statistics.fmean(float(gradient(exact, latents, step)[0].sum()) for step in unseen)

    def learn(by: DistributionObjective) -> torch.Tensor:
        latents = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([latents], lr=config.lr_latents)
        for step in range(steps):
            latents.grad = gradient(by, latents, step)[1]
            optimizer.step()
        return latents.detach()

    methods = {
        "float32": exact,
        "bfloat16": rounded,
        "float32, other draws": objective(Variant(compiled=True), 1),
    }
    runs = {"start": start} | {name: learn(by) for name, by in methods.items()}
    learned = runs["float32"]
    cosines = {
        name: statistics.fmean(
            _cosine(gradient(rounded, latents, step)[1], gradient(exact, latents, step)[1]) for step in range(4)
        )
        for name, latents in (("start", start), ("end", learned))
    }
    rows = {
        name: {"loss": loss(latents), "away_from_float32": _relative(latents - start, learned - start)}
        for name, latents in runs.items()
    }
    return {"steps": steps, "gradient_cosine": cosines, "learned": rows}


COLUMNS = {
    "steps_per_second": "steps/s|.2f",
    "ratio": "times as fast|.2f",
    "share_of_peak": "share of peak|.0%",
    "peak_mb": "peak of a step (MB)|.0f",
    **{part: f"{part}|.0%" for part in PARTS},
    "loss_difference": "loss differs by|.0e",
    "gradient_difference": "gradient by|.0e",
    "gradient_cosine": "cosine|.4f",
}
GROWING_COLUMNS = {"seconds": "s a step|.2f", "peak_mb": "peak of a step (MB)|.0f"}
PRECISION_COLUMNS = {"loss": "matching loss|.3f", "away_from_float32": "away from float32's|.2f"}


@click.command(help=readable(__doc__))
@click.option("--data", default=None, help="imagefolder:DIR or cifar10[:ROOT]; without it precision is not judged.")
@click.option("--pool", type=click.Path(path_type=Path), default=Path("runs/pool"), help="Where networks are kept.")
@click.option("--steps", default=40, show_default=True, help="Adam steps of each precision that is judged.")
@click.option("--rounds", default=3, show_default=True, help="Timed rounds.")
@click.option("--threads", type=int, default=None, help="CPU threads of PyTorch.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/condense-speed.json"), show_default=True)
def main(data: str | None, pool: Path, steps: int, rounds: int, threads: int | None, device: str, out: Path) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(device)
    speed: dict[str, Any] = {}
    for work in WORKS:
        rows = speed[str(work)] = measure_speed(work, rounds, place)
        for name, variant in VARIANTS.items():
            rows[name]["peak_mb"], _ = in_fresh_process(variant, work, place)
    growing = {}
    for work in GROWING:
        peak, seconds = in_fresh_process(Variant(), work, place)
        growing[str(work)] = {"seconds": seconds, "peak_mb": peak}
    settings = {"rounds": rounds, "channels": CHANNELS, "clock": clock_for(place).__name__}
    write_json(out, {"settings": settings, "environment": environment(place), "speed": speed, "growing": growing})
    click.echo(report(out), nl=False)
    if data is not None:
        precision = judge_precision(data, pool, steps, place)
        kept = out.with_suffix(".precision.json")
        write_json(kept, {"environment": environment(place), **precision})
        click.echo(f"\n{precision_report(kept)}", nl=False)


def report(out: Path) -> str:
    """Markdown: a step of each size, and steps of more and more latents."""
    content = read_json(out)
    parts = []
    for work, rows in content["speed"].items():
        parts += [f"{work}:\n", table(COLUMNS, {name: {**row, **row["shares"]} for name, row in rows.items()})]
    parts += [f"In chunks of {GROWING[0].chunk_size}, float32:\n", table(GROWING_COLUMNS, content["growing"])]
    return "\n".join(parts)


def precision_report(out: Path) -> str:
    """Markdown: what was learned in each precision."""
    content = read_json(out)
    cosine = content["gradient_cosine"]
    return (
        f"After {content['steps']} steps on real images; the cosine of bfloat16's gradient with float32's is "
        f"{cosine['start']:.3f} at the start and {cosine['end']:.3f} at the end.\n\n"
        + table(PRECISION_COLUMNS, content["learned"])
    )


if __name__ == "__main__":
    main()
