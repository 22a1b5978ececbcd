"""Is anything lost when condensation is killed? SIGKILL at random moments, the same command again, until it ends.

Each configuration is condensed once in peace. Then it is run in a process that is killed after a random time and
started again in the same workdir, until it is finished; and so on, until there were enough kills. Every such run has
to end with the bytes of the peaceful one, and to go on after each kill from the very step of its last checkpoint:
matching steps are computed again for at most the ten between two checkpoints. So often the other stages save too.

    python benchmarks/stress_resume.py --kills 100
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from setting import readable

from itgan_data.condense.condenser import Condenser
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.objective import Batch, DistributionObjective, GradientObjective
from itgan_data.condense.pool import PoolConfig
from itgan_data.evaluation.results import environment
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.images import LabeledImages
from itgan_data.running.checkpoint import Checkpointer, saved_step
from itgan_data.storage.files import read_json, write_json

CHECKPOINT_STEPS = 10
BASE = CondenserConfig(
    images_per_class=6,
    group_size=3,
    steps=100,
    real_batch_size=8,
    inversion=InversionConfig(encoder_steps=200, encoder_batch_size=8, steps=30, batch_size=4),
    pool=PoolConfig(num_networks=3, width=8, steps=60, snapshots=2, batch_size=16),
)
CONFIGS = {
    "pool, encoder, groups": BASE,
    "whole classes in chunks": replace(BASE, group_size=None, chunk_size=2, class_block=2),
    "groups drawn anew": replace(BASE, regroup=True, regularizer_weight=0.1),
    "network trained along": replace(
        BASE,
        group_size=None,
        initialize="normal",
        objective="gradient",
        optimizer="sgd",
        networks=FreshNetworks(width=8, outer_steps=4, inner_epochs=2, batch_size=8),
    ),
}
STAGES = ("starting", "pool", "encoder", "inversion", "matching")
RESULTS = ("inversion.safetensors", "latents.safetensors")


def make_condenser(config: CondenserConfig, workdir: Path) -> Condenser:
    """A generator that was never trained, on noise: exactness does not ask for more."""
    torch.manual_seed(0)
    generator = BigGAN(BigGANConfig(num_classes=3, latent_dim=16, channels=(8, 8))).eval()
    rng, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
    images = torch.randint(0, 256, (60, *generator.image_shape), dtype=torch.uint8, generator=rng)
    return Condenser(generator, LabeledImages(images, labels, ("cat", "dog", "owl")), config, workdir=workdir)


def condense(config: CondenserConfig, workdir: Path, notes: Path) -> None:
    """Run until the end, with a checkpoint every ten steps and a note of every step."""
    torch.set_num_threads(1)
    looks = itertools.count(1)
    Checkpointer.due = lambda checkpointer: next(looks) % CHECKPOINT_STEPS == 0  # type: ignore[method-assign]
    condenser = make_condenser(config, workdir)
    with open(notes, "a", buffering=1) as file:
        for objective in (DistributionObjective, GradientObjective):
            objective.gradient = noted(objective.gradient, config.regroup, file)  # type: ignore[method-assign]
        condenser.run()


def noted(gradient_of: Any, regroup: bool, file: Any) -> Any:
    """`Objective.gradient`, with a line in `file` that names the unit and the step."""

    def gradient(objective: Any, batch: Batch, *, group: int, step: int) -> Any:
        if not regroup or group == 0:
            file.write(f"{group} {int(batch.classes[0])} {step}\n")
        return gradient_of(objective, batch, group=group, step=step)

    return gradient


@dataclass
class Tally:
    """What came of the kills of one configuration."""

    runs: int = 0
    stages: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    """Kills, by what the process was at."""
    within_a_write: int = 0
    steps: int = 0
    """Of a run in peace, all units together."""
    repeated: list[int] = field(default_factory=list)
    """Steps that were computed again, for each kill."""
    failures: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.stages.values())


class Victim:
    """One workdir of a configuration, and the processes that work in it."""

    def __init__(self, config: CondenserConfig, workdir: Path, tally: Tally) -> None:
        self.config = config
        self.workdir = workdir
        self.tally = tally
        self.attempts = 0
        workdir.mkdir()
        self.units = {(unit.group, unit.classes[0]): unit.name for unit in make_condenser(config, workdir).work_units}

    def run(self, seconds: float | None) -> bool:
        """Start it, kill it after `seconds`; whether it came to its end before that."""
        self.attempts += 1
        before, notes = self._saved(), self.workdir / f"steps-{self.attempts}.txt"
        writes = self._writes()
        process = CONTEXT.Process(target=condense, args=(self.config, self.workdir, notes))
        process.start()
        process.join(seconds)
        process.kill()  # SIGKILL, if it is still there
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"attempt {self.attempts} in {self.workdir} ended with {process.exitcode}")
        computed = self._computed(notes)
        for unit, steps in computed.items():
            if steps != list(range(before[unit], before[unit] + len(steps))):
                self.tally.failures.append(f"{unit} went on from {steps[:1]}, was saved at {before[unit]}")
        if process.exitcode == 0:
            return True
        after = self._saved()
        repeated = sum(before[unit] + len(steps) - after[unit] for unit, steps in computed.items())
        if repeated > CHECKPOINT_STEPS:
            self.tally.failures.append(f"a kill cost {repeated} steps, more than {CHECKPOINT_STEPS}")
        self.tally.repeated.append(repeated)
        self.tally.stages[self._stage() if notes.exists() else "starting"] += 1
        self.tally.within_a_write += bool(self._writes() - writes)
        return False

    def _saved(self) -> dict[str, int]:
        return {name: saved_step(self.workdir / name) or 0 for name in self.units.values()}

    def _computed(self, notes: Path) -> dict[str, list[int]]:
        """The steps of each unit that an attempt has begun."""
        computed: dict[str, list[int]] = {}
        for line in notes.read_text().splitlines() if notes.exists() else []:
            group, first_class, step = map(int, line.split())
            computed.setdefault(self.units[group, first_class], []).append(step)
        return computed

    def _stage(self) -> str:
        """Where the work is: the first stage that has not come to its end."""
        config, inverts = self.config, self.config.initialize == "inversion"
        networks = 0 if config.networks else config.pool.num_networks
        chunks = -(-3 * (config.images_per_class or 0) // config.inversion.batch_size)
        if self._finished("pool/network-*", config.pool.steps) < networks:
            return "pool"
        if inverts and not self._finished("inversion/start", 0):
            return "encoder"
        if inverts and self._finished("inversion/chunk-*", config.inversion.steps) < chunks:
            return "inversion"
        return "matching"

    def _finished(self, pattern: str, step: int) -> int:
        return sum(saved_step(folder) == step for folder in self.workdir.glob(pattern))

    def _writes(self) -> set[Path]:
        """Files that a kill has left half written."""
        return {path for path in self.workdir.rglob(".*") if path.is_file()}


CONTEXT = multiprocessing.get_context("forkserver")


def stress(config: CondenserConfig, kills: int, rng: random.Random, folder: Path) -> Tally:
    """Kill a configuration so many times."""
    tally = Tally()
    peaceful = Victim(config, folder / "peaceful", tally)
    started = time.perf_counter()
    if not peaceful.run(None):
        raise RuntimeError("the run in peace did not come to its end")
    seconds = time.perf_counter() - started
    tally.steps = config.steps * len(peaceful.units)
    expected = [(folder / "peaceful" / name).read_bytes() for name in RESULTS]
    while tally.kills < kills:
        tally.runs += 1
        victim = Victim(config, folder / f"run-{tally.runs}", tally)
        while not victim.run(rng.uniform(0, seconds / 2) if tally.kills < kills else None):
            pass
        if [(victim.workdir / name).read_bytes() for name in RESULTS] != expected:
            tally.failures.append(f"run {tally.runs} ended with other bytes")
    return tally


def report(out: Path) -> str:
    """Markdown: what came of the kills of each configuration."""
    tallies = {name: Tally(**tally) for name, tally in read_json(out)["tallies"].items()}
    lines = [
        f"| configuration | kills | {' | '.join(STAGES)} | within a write | runs | steps of a run "
        "| computed again per kill | at most | failures |",
        "|---|" + "---:|" * (len(STAGES) + 7),
    ]
    for name, tally in tallies.items():
        stages = " | ".join(str(tally.stages[stage]) for stage in STAGES)
        mean = sum(tally.repeated) / max(1, len(tally.repeated))
        lines.append(
            f"| {name} | {tally.kills} | {stages} | {tally.within_a_write} | {tally.runs} | {tally.steps} "
            f"| {mean:.1f} | {max(tally.repeated, default=0)} | {len(tally.failures)} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=readable(__doc__))
@click.option("--kills", default=100, show_default=True, help="Shared out over the configurations.")
@click.option("--seed", default=0, show_default=True, help="Of the times at which they come.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results" / "stress-resume.json"
)
def main(kills: int, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    CONTEXT.set_forkserver_preload(["itgan_data"])
    warm_up = CONTEXT.Process(target=int)  # imports torch in the server, not in the time of a run
    warm_up.start()
    warm_up.join()
    rng, tallies = random.Random(seed), {}
    started = time.perf_counter()
    for number, (name, config) in enumerate(CONFIGS.items()):
        share = len(range(number, kills, len(CONFIGS)))
        with tempfile.TemporaryDirectory() as folder:
            tallies[name] = stress(config, share, rng, Path(folder))
        click.echo(f"{name}: {tallies[name].kills} kills, {time.perf_counter() - started:.0f} s so far", err=True)
    settings = {"kills": kills, "seed": seed, "checkpoint_steps": CHECKPOINT_STEPS}
    write_json(
        out,
        {
            "settings": settings | {"configurations": {name: asdict(config) for name, config in CONFIGS.items()}},
            "environment": environment(),
            "seconds": time.perf_counter() - started,
            "tallies": {name: asdict(tally) for name, tally in tallies.items()},
        },
    )
    click.echo(report(out), nl=False)
    failures = [f"{name}: {failure}" for name, tally in tallies.items() for failure in tally.failures]
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
