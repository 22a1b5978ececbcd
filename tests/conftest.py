import importlib.util
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hub_server import LoopbackHub
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from torch import nn
from torchvision.datasets import CIFAR10

from itgan_data.bundle.writing import save_bundle
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.images import LabeledImages
from itgan_data.latents.stored import LatentSet

ROOT = Path(__file__).resolve().parent.parent
CAN_COMPILE = bool(shutil.which("c++")) and Path(sysconfig.get_path("include"), "Python.h").is_file()
needs_compiler = pytest.mark.skipif(not CAN_COMPILE, reason="torch.compile needs a C++ compiler and Python's headers")

os.environ["ITGAN_DATA_CACHE"] = ""  # no generated images are stored but where `cache_of_its_own` says


def load_script(path: str) -> ModuleType:
    """A script of `examples/` or `benchmarks/` as a module, without running its command."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)  # as when it is run
        spec.loader.exec_module(module)
    return module


@contextmanager
def benchmark_script(name: str) -> Iterator[ModuleType]:
    """A script of `benchmarks/` as a module, its folder where Python looks when the script is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield load_script(f"benchmarks/{name}.py")


def run_tiny(script: ModuleType, folder: Path, *options: str) -> Result:
    """Call a benchmark that has scales on digits, with an untrained bundle; everything lies in `folder`."""
    if not (folder / "bundle").is_dir():
        write_bundle(folder / "bundle", [str(digit) for digit in range(10)])
    arguments = ["--scale", "tiny", "--data", "digits", "--bundle", str(folder / "bundle"), "--device", "cpu"]
    arguments += ["--out", str(folder / "out.json")]
    if any(parameter.name == "workdir" for parameter in script.main.params):
        arguments += ["--workdir", str(folder / "work")]
    return CliRunner().invoke(script.main, [*arguments, *options])


def run_on(patch: pytest.MonkeyPatch, clock: Any) -> None:
    """Let long work read its time from `clock`."""
    for module in ("checkpoint", "stopping"):
        patch.setattr(f"itgan_data.running.{module}.time", clock)


def write_cifar10(root: Path, train: LabeledImages, test: LabeledImages) -> None:
    """Write images as torchvision's CIFAR10 stores them; it reads them under the fixture `unchecked_cifar10`."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    parts = [train.select(places) for places in torch.arange(len(train)).chunk(len(CIFAR10.train_list))]
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name, part in zip(names, [*parts, test], strict=True):
        content = {"data": part.images.flatten(1).numpy(), "labels": part.labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {CIFAR10.meta["key"]: list(train.class_names)}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(meta))


def write_bundle(
    folder: Path, names: Sequence[str], *, channels: tuple[int, ...] = (8, 8, 8, 8), images_per_class: int = 2
) -> Path:
    """A bundle of a BigGAN that was never trained; the latents of a class are close, so its images are alike."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BigGAN(BigGANConfig(num_classes=len(names), channels=channels, latent_dim=16)).eval()
    count = images_per_class * len(names)
    labels = torch.arange(count) % len(names)
    classes, noise = torch.randn(len(names), 16, generator=rng), torch.randn(count, 16, generator=rng)
    latents = LatentSet(classes[labels] + 0.3 * noise, labels)
    config = {
        "dataset": "toy",
        "class_names": list(names),
        "normalization": {"mean": [0.5] * 3, "std": [0.2] * 3},
        "method": "IT-GAN",
        "training": {},
        "metrics": {},
    }
    save_bundle(folder, generator, latents, config=config, preview=False)
    return folder


def make_images(count: int = 6, side: int = 4, channels: int = 3) -> LabeledImages:
    """Images of noise in two classes, cat and dog, in turn."""
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(0))
    return LabeledImages(pixels.to(torch.uint8), torch.arange(count) % 2, ("cat", "dog"))


def assert_as_near_as_rounding(
    ours: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
) -> None:
    """The weights of two trainings differ by little of what either moved since the start."""
    assert ours.keys() == others.keys()
    for name in [
        name for name in ours if ".state." not in name and not name.endswith((".running_mean", ".running_var"))
    ]:
        moved = (others[name] - start[name]).norm()
        assert (ours[name] - others[name]).norm() <= 0.01 * moved, name


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


def colored_images() -> LabeledImages:
    """Thirty 8 px images in three classes, each of its own colour."""
    labels = torch.arange(30) % 3
    colors = torch.eye(3)[labels].view(30, 3, 1, 1) * 120
    noise = torch.randint(0, 130, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return LabeledImages((colors + noise).to(torch.uint8), labels, ("red", "green", "blue"))


@pytest.fixture
def tiny_images() -> LabeledImages:
    return colored_images()


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


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def stop_signal(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that stops long work once all is saved, and what it does otherwise, as in a terminal."""
    # A shell that starts a job in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield request.param
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


@contextmanager
def stops_by(number: signal.Signals) -> Iterator[None]:
    """Expects the end of long work by a signal."""
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        yield
    assert number == signal.SIGINT or caught.value.code == 143


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where this test, and no other, keeps generated images."""
    monkeypatch.setenv("ITGAN_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def unchecked_cifar10() -> Iterator[None]:
    """Lets torchvision read files of CIFAR-10's layout whatever their check sums."""
    with pytest.MonkeyPatch.context() as patch:
        for lists in ("train_list", "test_list"):
            patch.setattr(CIFAR10, lists, [[name, None] for name, _ in getattr(CIFAR10, lists)])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
        yield


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


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which the client reads at import."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub, and a client with an empty cache, no token, and no patience."""
    server = LoopbackHub()
    use_endpoint(server.endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts, 23 s in all
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()  # the client keeps connections, and what the environment said of proxies
    yield server
    server.close()
