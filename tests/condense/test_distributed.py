"""Condensation shared out: over the ranks of torchrun, and over the shards of an array of jobs."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyGenerator, colored_images

from itgan_data.condense.condenser import Condenser, OutOfTimeError
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.network_source import FreshNetworks
from itgan_data.condense.pool import PoolConfig
from itgan_data.images import Normalization
from itgan_data.latents.stored import LatentSet
from itgan_data.running.lock import workdir_lock
from itgan_data.running.shards import Shard

CONFIG = CondenserConfig(
    images_per_class=3,
    group_size=2,
    class_block=2,
    steps=4,
    lr_latents=0.05,
    real_batch_size=4,
    normalization=Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
    inversion=InversionConfig(encoder_steps=3, encoder_batch_size=8, steps=3, batch_size=4),
    pool=PoolConfig(num_networks=2, width=8, steps=4, snapshots=2, batch_size=16),
)
UNITS = [f"group-000{group}-classes-000{first}" for group in (0, 1) for first in (0, 2)]
NO_PREPARATION = replace(CONFIG, initialize="normal", networks=FreshNetworks(width=8))
SECONDS = 200  # torchrun and its workers import torch in a few of them, on a busy machine in many

# What torchrun starts: condenses, and notes every step that a unit takes. "gloo": in a process group. "dies": rank 1 is
# killed in the place of its second save of its second unit, unless it was started again.
WORKER = """
import os, pickle, signal, sys
from pathlib import Path
import torch
from itgan_data.condense.condenser import Condenser
from itgan_data.condense.objective import DistributionObjective

workdir, mode = Path(sys.argv[1]), sys.argv[2]
generator, images, config = pickle.loads((workdir / "job.pickle").read_bytes())
gradient_of, rename, saves = DistributionObjective.gradient, os.replace, []

def noted(objective, batch, *, group, step):
    with open(workdir / "steps.txt", "a") as file:
        file.write(f"group-{group:04d}-classes-{batch.classes[0]:04d} {step}\\n")
    return gradient_of(objective, batch, group=group, step=step)

def rename_or_die(source, target):
    saves.extend([target] if str(target).endswith("group-0001-classes-0002/checkpoint.json") else [])
    if mode == "dies" and len(saves) == 2 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

DistributionObjective.gradient, os.replace = noted, rename_or_die
torch.set_num_threads(1)
if mode == "gloo":
    torch.distributed.init_process_group("gloo")
try:
    Condenser(generator, images, config, device="cpu")
except ValueError as error:
    assert "give one that all of them see" in str(error)
else:
    raise AssertionError("a workdir that is not shared was taken")
learned = Condenser(generator, images, config, workdir=workdir, device="cpu").run()
learned.save(workdir / f"rank-{os.environ['RANK']}.safetensors", dtype=torch.float32)
"""


def make_condenser(workdir: Path | None, config: CondenserConfig = CONFIG) -> Condenser:
    return Condenser(TinyGenerator(), colored_images(), config, workdir=workdir, device="cpu")


def results(workdir: Path) -> list[bytes]:
    return [(workdir / name).read_bytes() for name in ("inversion.safetensors", "latents.safetensors")]


def run_two_ranks(workdir: Path, mode: str, config: CondenserConfig) -> None:
    """Run `WORKER` under torchrun."""
    workdir.mkdir()
    (workdir / "job.pickle").write_bytes(pickle.dumps((TinyGenerator(), colored_images(), config)))
    (workdir / "worker.py").write_text(WORKER)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    command = [sys.executable, *torchrun, str(workdir / "worker.py"), str(workdir), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, printed = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers then
            raise
    assert process.returncode == 0, printed[-4000:]


def steps_taken(workdir: Path) -> dict[str, list[int]]:
    """The steps of each unit in the order in which they were computed, by all its processes."""
    taken: dict[str, list[int]] = {}
    for line in (workdir / "steps.txt").read_text().splitlines():
        unit, step = line.split()
        taken.setdefault(unit, []).append(int(step))
    return taken


class TestTorchrun:
    def test_two_gloo_ranks_end_with_the_latents_of_one_process(self, tmp_path: Path) -> None:
        make_condenser(tmp_path / "one").run()
        run_two_ranks(tmp_path / "two", "gloo", CONFIG)
        assert results(tmp_path / "two") == results(tmp_path / "one")
        assert steps_taken(tmp_path / "two") == {unit: [0, 1, 2, 3] for unit in UNITS}
        for rank in range(2):
            returned = (tmp_path / "two" / f"rank-{rank}.safetensors").read_bytes()
            assert returned == results(tmp_path / "one")[1]

    def test_a_rank_that_is_killed_goes_on_where_it_was(self, tmp_path: Path) -> None:
        make_condenser(tmp_path / "one").run()
        config = replace(CONFIG, checkpoint_minutes=1e-9)
        run_two_ranks(tmp_path / "two", "dies", config)
        assert results(tmp_path / "two") == results(tmp_path / "one")
        taken = steps_taken(tmp_path / "two")
        assert taken["group-0000-classes-0002"] == [0, 1, 2, 3]  # was finished
        assert taken["group-0001-classes-0002"] == [0, 1, 1, 2, 3]  # killed after step 1, before that was saved
        for unit in ("group-0000-classes-0000", "group-0001-classes-0000"):  # torchrun ends the other rank anywhere
            assert sorted(set(taken[unit])) == [0, 1, 2, 3]
            assert len(taken[unit]) <= 5


class TestShards:
    @pytest.mark.parametrize("shards", [("1/1",), ("2/2", "1/2"), ("3/3", "1/3", "2/3")])
    def test_in_any_order_and_merged_are_the_run(self, tmp_path: Path, shards: tuple[str, ...]) -> None:
        whole = make_condenser(tmp_path / "whole").run()
        start = make_condenser(tmp_path / "parts").prepare()
        assert len(start) == 9
        for shard in shards:
            make_condenser(tmp_path / "parts").run_shard(shard)
        merged = make_condenser(tmp_path / "parts").merge()
        assert torch.equal(merged.latents, whole.latents)
        assert torch.equal(merged.source_index, whole.source_index)
        assert results(tmp_path / "parts") == results(tmp_path / "whole")

    def test_learn_nothing_of_each_other(self, tmp_path: Path) -> None:
        make_condenser(tmp_path, NO_PREPARATION).run_shard(Shard(2, 3))
        assert [folder.name for folder in tmp_path.glob("group-*")] == [UNITS[1]]

    def test_are_at_work_together_but_each_once(self, tmp_path: Path) -> None:
        condenser = make_condenser(tmp_path, NO_PREPARATION)
        with workdir_lock(tmp_path, Shard(2, 2)):
            condenser.run_shard("1/2")
            for call in (partial(condenser.run_shard, "2/2"), condenser.run, condenser.prepare):
                with pytest.raises(RuntimeError, match=f"another run is at work in {tmp_path}"):
                    call()

    def test_merging_names_what_is_missing(self, tmp_path: Path) -> None:
        condenser = make_condenser(tmp_path, NO_PREPARATION)
        condenser.run_shard("1/2")
        with pytest.raises(ValueError, match=rf"2 of 4 pieces .* not finished: {UNITS[1]} \(step 0\), {UNITS[3]} \("):
            condenser.merge()
        longer = replace(NO_PREPARATION, steps=5)
        with pytest.raises(ValueError, match=rf"4 of 4 pieces .* not finished: {UNITS[0]} \(step 4\)"):
            make_condenser(tmp_path, longer).merge()
        assert not (tmp_path / "latents.safetensors").exists()

    def test_merging_refuses_another_configuration(self, tmp_path: Path) -> None:
        make_condenser(tmp_path, NO_PREPARATION).run_shard("1/1")
        other = replace(NO_PREPARATION, lr_latents=0.1)
        with pytest.raises(ValueError, match=r"lr_latents=0\.05, not 0\.1"):
            make_condenser(tmp_path, other).merge()

    def test_without_the_preparation_say_so(self, tmp_path: Path) -> None:
        condenser = make_condenser(tmp_path)
        with pytest.raises(ValueError, match=r"not finished: network-000 \(step 0\), .*; run first Condenser\.prepare"):
            condenser.run_shard("2/4")
        inverting = make_condenser(tmp_path, replace(CONFIG, networks=FreshNetworks()))
        with pytest.raises(ValueError, match="are not finished"):
            inverting.run_shard("2/4")
        assert not list(tmp_path.glob("group-*"))

    def test_of_inversion_alone_are_its_preparation(self, tmp_path: Path) -> None:
        config = replace(CONFIG, steps=0)
        condenser = make_condenser(tmp_path, config)
        condenser.prepare()
        merged = condenser.merge()
        assert torch.equal(merged.latents, make_condenser(None, config).run().latents)

    def test_a_shard_that_is_out_of_time_goes_on(self, tmp_path: Path) -> None:
        make_condenser(tmp_path / "whole", NO_PREPARATION).run()
        condenser = make_condenser(tmp_path / "parts", NO_PREPARATION)
        stops = 0
        while True:
            try:
                condenser.run_shard("1/1", max_minutes=1e-9)
                break
            except OutOfTimeError:
                stops += 1
                assert stops <= 4 * NO_PREPARATION.steps
        assert stops == 4 * NO_PREPARATION.steps
        assert torch.equal(
            condenser.merge().latents, LatentSet.load(tmp_path / "whole" / "latents.safetensors").latents
        )

    @pytest.mark.parametrize(
        ("change", "remedy"),
        [
            ({}, "set a smaller class_block, or fixed groups of a smaller group_size, to have more"),
            (
                {"class_block": None, "networks": FreshNetworks(width=8, norm="batch")},
                "its networks need all classes together, so only fixed groups of a smaller group_size give more",
            ),
        ],
    )
    def test_more_than_there_are_units_are_idle_and_say_so(
        self, tmp_path: Path, change: dict[str, Any], remedy: str
    ) -> None:
        condenser = make_condenser(tmp_path, replace(NO_PREPARATION, **change))
        units = len(condenser.work_units)
        with pytest.warns(UserWarning, match=f"share 5/5 has nothing to match: there are {units} units .*; {remedy}"):
            condenser.run_shard("5/5")
        assert not list(tmp_path.glob("group-*"))
