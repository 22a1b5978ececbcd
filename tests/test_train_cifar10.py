import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import load_script

from itgan_data.bundle import save_bundle
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.images import CIFAR10, to_pil
from itgan_data.latents import LatentSet


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an untrained generator."""
    folder = tmp_path_factory.mktemp("example") / "bundle"
    config = {
        "dataset": "cifar10",
        "class_names": list(CIFAR10.class_names),
        "normalization": {"mean": CIFAR10.normalization.mean, "std": CIFAR10.normalization.std},
        "method": "IT-GAN",
        "training": {},
        "metrics": {},
    }
    latents = LatentSet(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10)
    generator = BigGAN(BigGANConfig(channels=(4, 4, 4, 4), latent_dim=8)).eval()
    save_bundle(folder, generator, latents, config=config, preview=False)
    return folder


def run(*options: str) -> Result:
    script = load_script("examples/train_cifar10.py")
    short = ["--device", "cpu", "--steps", "2", "--batch-size", "16"]
    return CliRunner().invoke(script.main, [*short, *options])


def test_without_real_images_the_verdict_says_so(source: Path) -> None:
    done = run("--source", str(source))
    assert done.exit_code == 0, done.output
    *_, sentence, verdict = done.stdout.splitlines()
    assert "held-out synthetic images" in sentence
    assert re.fullmatch(r"held-out synthetic accuracy \d+\.\d\d%", verdict)


def test_with_real_images_the_verdict_is_theirs(source: Path, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=rng)
    for name, image in zip(CIFAR10.class_names, pixels, strict=True):
        (tmp_path / "test" / name).mkdir(parents=True)
        to_pil(image).save(tmp_path / "test" / name / "0.png")
    done = run("--source", str(source), "--test", f"imagefolder:{tmp_path}")
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"real test accuracy \d+\.\d\d%", done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "options", [["--source", "nowhere"], ["--test", "imagefolder:nowhere"], ["--test", "cifar10:nowhere"]]
)
def test_bad_input_is_one_line(source: Path, options: list[str]) -> None:
    done = run("--source", str(source), *options)
    assert done.exit_code == 1
    assert re.fullmatch(r"Error: [^\n]+\n", done.stderr)
