import importlib.util
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from itgan_data.images import LabeledImages

ROOT = Path(__file__).resolve().parent.parent


def load_script(path: str) -> ModuleType:
    """A script of `examples/` or `benchmarks/` as a module, without running its command."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TinyGenerator(nn.Module):
    """A generator of 8 px images, three classes, smooth in its latents."""

    latent_dim = 6
    num_classes = 3
    image_shape = (3, 8, 8)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.directions = nn.Parameter(torch.randn(self.latent_dim, 3 * 8 * 8, generator=rng) / 3)
        self.classes = nn.Parameter(torch.randn(self.num_classes, 3 * 8 * 8, generator=rng) / 3)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents @ self.directions + self.classes[labels]).view(-1, *self.image_shape)


@pytest.fixture
def tiny_generator() -> TinyGenerator:
    return TinyGenerator()


@pytest.fixture
def tiny_images() -> LabeledImages:
    """Thirty 8 px images in three classes, each of its own colour."""
    labels = torch.arange(30) % 3
    colors = torch.eye(3)[labels].view(30, 3, 1, 1) * 120
    noise = torch.randint(0, 130, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return LabeledImages((colors + noise).to(torch.uint8), labels, ("red", "green", "blue"))


def _die_at_rename(number: int, threads: int, target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)  # sums depend on it in their last bits
    renames, rename = itertools.count(1), os.replace

    def rename_or_die(*paths: Any) -> None:
        if next(renames) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)

    os.replace = rename_or_die
    target(*arguments)


@pytest.fixture(scope="session")
def killed_at_rename() -> Callable[..., bool]:
    """Call as `killed_at_rename(number, target, *arguments)`.

    Runs `target` in a process of its own, which is killed by SIGKILL when it is about to rename its `number`-th
    file into place. Says whether it was killed; False when it came to its end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["itgan_data"])

    def run(number: int, target: Callable[..., object], *arguments: Any) -> bool:
        process = context.Process(target=_die_at_rename, args=(number, torch.get_num_threads(), target, arguments))
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    return run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tensors are too small to be shared out, and threads that wait for a busy core slow tests down tenfold."""
    torch.set_num_threads(1)


@pytest.fixture
def fixture_folder() -> Path:
    """Tensors made by other implementations."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fails the test when it has drawn from, or seeded, the global random generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture
def bright_and_dark() -> LabeledImages:
    """Forty 16 px images of noise, in two classes that any network tells apart."""
    labels = torch.arange(40) % 2
    noise = torch.randint(0, 128, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return LabeledImages((noise + 128 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, ("dark", "bright"))
