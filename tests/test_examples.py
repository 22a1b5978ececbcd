"""The scripts of `examples/`; of those that train, that the import line alone makes them ours."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from click.testing import CliRunner, Result
from conftest import ROOT, load_script, write_bundle, write_cifar10

from itgan_data import (
    ITGANCIFAR10,
    BigGANConfig,
    GeneratorTrainerConfig,
    InversionConfig,
    PoolConfig,
    fast_recipe,
    load_bundle,
)
from itgan_data.datasets import CIFAR10 as INFO
from itgan_data.datasets import load_images

OURS, TORCHVISIONS = "from itgan_data import ITGANCIFAR10 as CIFAR10", "from torchvision.datasets import CIFAR10"
SMALL_GAN = GeneratorTrainerConfig(
    generator=BigGANConfig(latent_dim=8, channels=(8, 8, 8, 8)),
    discriminator_channels=8,
    batch_size=4,
    steps=2,
    precision="float32",
)
SCRIPTS = ("examples/train_cifar10.py", "examples/train_lightning.py", "examples/train_accelerate.py")


@pytest.fixture(params=SCRIPTS, ids=lambda path: Path(path).stem)
def script(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("examples") / "bundle", INFO.class_names, images_per_class=4)


@pytest.fixture(scope="module")
def root(bundle: Path, unchecked_cifar10: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torchvision's CIFAR10, of which both splits hold the bundle's images."""
    folder = tmp_path_factory.mktemp("root")
    images = load_images(ITGANCIFAR10(source=bundle))
    write_cifar10(folder, images, images)
    return folder


@pytest.fixture(autouse=True)
def accelerate_forgets() -> None:
    """Each test finds accelerate as a new process does."""
    AcceleratorState._reset_state(reset_partial_state=True)


def run(script: str, *options: object) -> Result:
    return CliRunner().invoke(load_script(script).main, [str(option) for option in options])


def verdict(script: str, *options: object) -> str:
    """The last line that a script prints."""
    done = run(script, *options)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()[-1]


def with_torchvisions_import(script: str, folder: Path) -> str:
    """The path of a copy that differs in its import line."""
    copy = folder / Path(script).name
    copy.write_text((ROOT / script).read_text(encoding="utf-8").replace(OURS, TORCHVISIONS), encoding="utf-8")
    return str(copy)


def test_the_import_line_alone_is_ours(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    imports = [ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in imports if "itgan" in line] == [OURS]
    assert text.splitlines().count(OURS) == 1


def test_torchvisions_import_line_gives_the_same_verdict_on_the_same_images(
    script: str, bundle: Path, root: Path, tmp_path: Path
) -> None:
    short = ("--test", f"cifar10:{root}", "--steps", 100, "--batch-size", 10)
    ours = verdict(script, "--source", bundle, *short)
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", ours)
    assert float(ours.split()[-1].rstrip("%")) > 40  # of ten classes: it has learnt
    AcceleratorState._reset_state(reset_partial_state=True)
    assert verdict(with_torchvisions_import(script, tmp_path), *short) == ours


def test_without_real_images_the_verdict_says_so(script: str, bundle: Path) -> None:
    last = verdict(script, "--source", bundle, "--steps", 2, "--batch-size", 16)
    assert re.fullmatch(r"held-out synthetic accuracy \d+\.\d\d%", last)


def test_real_images_may_be_in_a_folder(script: str, bundle: Path, tmp_path: Path) -> None:
    images = load_images(ITGANCIFAR10(source=bundle))
    for image, label in images:
        folder = tmp_path / "test" / INFO.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{len(list(folder.iterdir()))}.png")
    last = verdict(script, "--source", bundle, "--test", f"imagefolder:{tmp_path}", "--steps", 2, "--batch-size", 16)
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", last)


@pytest.mark.parametrize(
    "options",
    [
        ["--source", "nowhere"],
        ["--test", "imagefolder:nowhere"],
        ["--test", "cifar10:nowhere"],
        ["--test", "nothing"],
    ],
)
def test_bad_input_is_one_line(script: str, bundle: Path, options: list[str]) -> None:
    done = run(script, "--source", bundle, "--steps", 2, *options)
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_the_scripts_differ_in_their_loops_only() -> None:
    def shared(script: str) -> list[str]:
        tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
        named = {"convnet", "data_sets"}
        return [
            ast.unparse(node)
            for node in tree.body
            if isinstance(node, ast.Assign) or (isinstance(node, ast.FunctionDef) and node.name in named)
        ]

    first, *others = map(shared, SCRIPTS)
    assert len(first) == 5
    assert others == [first, first]


def make_smaller(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script on digits with sizes of seconds."""
    smaller = {
        "CONDENSER": replace(
            script.CONDENSER,
            images_per_class=2,
            steps=2,
            real_batch_size=4,
            inversion=InversionConfig(encoder_steps=2, encoder_batch_size=4, steps=2),
            pool=PoolConfig(num_networks=1, width=8, steps=2, batch_size=8, snapshots=1),
        ),
        "IMAGES_PER_CLASS": 2,
        "RECIPE": fast_recipe(2, 8, flip=False),
        "WIDTH": 8,
        "SEEDS": (0,),
    }
    for name, value in smaller.items():
        assert type(getattr(script, name)) is type(value)
        monkeypatch.setattr(script, name, value)


def test_digits_go_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("examples/condense_digits.py")
    make_smaller(script, monkeypatch)
    monkeypatch.setattr(script.presets, "digits", lambda: SMALL_GAN)
    done = CliRunner().invoke(script.main, ["--out", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", done.stdout.splitlines()[-1])
    assert len(load_bundle(tmp_path / "bundle").latents) == 20


def test_a_generator_of_ones_own_is_made_condensed_and_loaded_from_its_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("examples/bring_your_own.py")
    make_smaller(script, monkeypatch)
    auto_encoder = SimpleNamespace(**vars(script.AUTO_ENCODER) | {"steps": 2, "batch_size": 4})
    monkeypatch.setattr(script, "GAN", SMALL_GAN)
    monkeypatch.setattr(script, "AUTO_ENCODER", auto_encoder)
    first, again = (CliRunner().invoke(script.main, ["--workdir", str(tmp_path)]) for _ in range(2))
    assert first.exit_code == 0, first.output
    *rows, seconds, last = first.stdout.splitlines()
    assert len(rows) == 8
    assert all(re.fullmatch(r"[\w, -]{25} +\d+ images  \d+\.\d\d %", row) for row in rows)
    assert re.fullmatch(r"\d+ s in all", seconds)
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", last)
    assert again.stdout.splitlines()[:8] == rows
    bundle = load_bundle(tmp_path / "bundle", trust=script.Decoder)
    assert bundle.config["generator"] == {
        "architecture": "bring_your_own:Decoder",
        "arguments": script.Decoder().arguments,
    }


@pytest.mark.slow
def test_a_bundle_is_published_and_pulled_through_the_command_line() -> None:
    script = [sys.executable, str(ROOT / "examples/publish_and_pull.py"), "--here", "--steps", "1"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=True)
    assert "from installing to the first batch of the pulled bundle" in done.stdout
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", done.stdout.splitlines()[-1])
    assert "HTTP Request" not in done.stderr  # the client's own log
