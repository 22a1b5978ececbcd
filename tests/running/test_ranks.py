"""A generator trained by two processes, which torchrun starts."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import assert_as_near_as_rounding

from itgan_data.generators.biggan import BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.store import load_generator
from itgan_data.images import LabeledImages
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.pretraining.gan import GeneratorTrainer
from itgan_data.running.ranks import Ranks
from itgan_data.storage.files import load_tensors

CONFIG = GeneratorTrainerConfig(
    generator=BigGANConfig(num_classes=3, latent_dim=8, channels=(8, 8, 8)),
    discriminator_channels=8,
    discriminator_steps=2,
    steps=4,
    batch_size=8,
    precision="float32",
    preview_steps=2,
    log_steps=1,
    monitor_steps=2,
)
SECONDS = 200  # torchrun and its workers import torch in a few of them, on a busy machine in many

# What torchrun starts: a run of four steps, the same with a pause after two, and one that collapses.
WORKER = """
import itertools, pickle, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch import distributed
from itgan_data.evaluation.features import FeatureNetwork
from itgan_data.storage.files import save_tensors
from itgan_data.pretraining.gan import GeneratorTrainer

workdir = Path(sys.argv[1])
images, config = pickle.loads((workdir / "job.pickle").read_bytes())
torch.set_num_threads(1)
distributed.init_process_group("gloo")
calls = itertools.count()
worsening = FeatureNetwork("grows", lambda unit: unit[:, :, 3, 3] + 10.0 ** next(calls))

def run(name, config, **more):
    trainer = GeneratorTrainer(config, images, workdir=workdir / name, device="cpu", **more)
    average = trainer.run()
    save_tensors(workdir / f"{name}-{distributed.get_rank()}.safetensors", average.state_dict())
    return trainer

run("whole", config)
run("paused", replace(config, steps=2))
run("paused", config)
collapsing = replace(config, steps=50, monitor_steps=1, collapse_checks=2)
assert run("collapsed", collapsing, feature_network=worsening).step == 3
assert run("collapsed", collapsing, feature_network=worsening).step == 3
distributed.destroy_process_group()
"""


def real_images() -> LabeledImages:
    pixels = torch.randint(0, 256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return LabeledImages(pixels.to(torch.uint8), torch.arange(20) % 3, ("a", "b", "c"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have run `WORKER`."""
    workdir = tmp_path_factory.mktemp("two-ranks")
    (workdir / "job.pickle").write_bytes(pickle.dumps((real_images(), CONFIG)))
    (workdir / "worker.py").write_text(WORKER)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(workdir / "worker.py"), str(workdir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Warning" not in done.stderr
    return workdir


def trained(workdir: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint."""
    trainer = GeneratorTrainer(CONFIG, real_images(), workdir=workdir, device="cpu")
    assert trainer.step == CONFIG.steps
    return trainer.state.tensors()


class TestTwoRanks:
    def test_train_as_one_process_that_takes_the_halves_one_after_the_other(
        self, two_ranks: Path, tmp_path: Path
    ) -> None:
        """Up to rounding, and the stored statistics: one process has seen both halves, and rank 0 its own."""
        one = GeneratorTrainer(replace(CONFIG, micro_batches=2), real_images(), workdir=tmp_path, device="cpu")
        start = {name: tensor.clone() for name, tensor in one.state.tensors().items()}
        one.run()
        assert_as_near_as_rounding(trained(two_ranks / "whole"), one.state.tensors(), start)

    def test_resume_exactly(self, two_ranks: Path) -> None:
        whole, paused = trained(two_ranks / "whole"), trained(two_ranks / "paused")
        assert all(torch.equal(whole[name], paused[name]) for name in whole)

    @pytest.mark.parametrize("run", ["whole", "paused", "collapsed"])
    def test_return_the_same_average(self, two_ranks: Path, run: str) -> None:
        first, second = (load_tensors(two_ranks / f"{run}-{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_stop_together_when_the_training_collapses(self, two_ranks: Path) -> None:
        returned = load_tensors(two_ranks / "collapsed-1.safetensors")
        trainer = GeneratorTrainer(
            replace(CONFIG, steps=50), real_images(), workdir=two_ranks / "collapsed", device="cpu"
        )
        assert trainer.step == 3
        now = trainer.state.average.state_dict()
        assert not any(torch.equal(returned[name], now[name]) for name in returned if name.endswith(".weight"))
        best = load_generator(two_ranks / "collapsed" / "generator-best")
        trainer.state.average.load_state_dict(returned)
        latents, labels = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)
        assert torch.equal(fold(trainer.state.average)(latents, labels), best(latents, labels))

    def test_write_one_log(self, two_ranks: Path) -> None:
        assert len((two_ranks / "whole" / "log.jsonl").read_text().splitlines()) == 4


class TestAlone:
    def test_a_process_without_a_group_has_the_whole_batch(self) -> None:
        alone = Ranks(torch.device("cpu"))
        assert (alone.rank, alone.count, alone.leads) == (0, 1, True)
        assert [part.tolist() for part in alone.parts(6, 1)] == [[0, 1, 2, 3, 4, 5]]
        assert [part.tolist() for part in alone.parts(6, 3)] == [[0, 1], [2, 3], [4, 5]]

    def test_ranks_without_a_group_are_told_to_make_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("TORCHELASTIC_RUN_ID", "run"), ("RANK", "1"), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"2 ranks have no process group; call .*init_process_group\(\)"):
            Ranks(torch.device("cpu"))
