from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_script

from itgan_data.bundle.writing import load_bundle
from itgan_data.condense.config import CondenserConfig
from itgan_data.condense.inversion import InversionConfig
from itgan_data.condense.pool import PoolConfig
from itgan_data.datasets import CIFAR10
from itgan_data.generators.biggan import BigGANConfig
from itgan_data.images import to_pil
from itgan_data.pretraining.config import GeneratorTrainerConfig
from itgan_data.storage.files import sha256_of

SCRIPT = "benchmarks/release_cifar10.py"
TENSOR_FILES = ("generator.safetensors", "latents.safetensors")


def release(data: Path, workdir: Path) -> None:
    """The release script with a preset of a few steps a stage."""
    script = load_script(SCRIPT)
    script.PRESETS["cpu"] = script.Preset(
        generator=GeneratorTrainerConfig(
            generator=BigGANConfig(channels=(4, 4, 4, 4), latent_dim=8),
            discriminator_channels=4,
            steps=3,
            batch_size=8,
            preview_steps=100,
            precision="float32",
        ),
        condenser=CondenserConfig(
            images_per_class=2,
            group_size=1,
            steps=2,
            real_batch_size=2,
            regularizer_weight=0.1,
            inversion=InversionConfig(encoder_steps=2, encoder_batch_size=4, steps=2, batch_size=10),
            pool=PoolConfig(num_networks=1, width=4, steps=2, batch_size=8, snapshots=1),
        ),
    )
    arguments = ["--preset", "cpu", "--data", f"imagefolder:{data}", "--workdir", str(workdir), "--threads", "1"]
    script.main([*arguments, "--out", str(workdir / "bundle")], standalone_mode=False)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each CIFAR-10 class."""
    folder = tmp_path_factory.mktemp("images")
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(images):
        place = folder / "train" / CIFAR10.class_names[index % 10]
        place.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(place / f"{index}.png")
    return folder


@pytest.mark.slow
def test_a_release_killed_at_any_stage_and_run_again_ends_with_the_same_bundle(
    image_folder: Path, tmp_path: Path, killed_at_rename: Callable[..., bool]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not killed_at_rename(10**6, release, image_folder, whole)
    kills = 0
    while killed_at_rename(1 + 3 * kills, release, image_folder, killed):
        kills += 1
        if (killed / "bundle").exists():
            load_bundle(killed / "bundle")
    assert kills > 4
    for name in TENSOR_FILES:
        assert sha256_of(killed / "bundle" / name) == sha256_of(whole / "bundle" / name)


def test_presets_keep_the_package_data_under_25_megabytes() -> None:
    for preset in load_script(SCRIPT).PRESETS.values():
        generator, condenser = preset.generator.generator, preset.condenser
        weights = 9 * sum(a * b + b * b for a, b in zip(generator.channels, generator.channels[1:], strict=False))
        latents = (condenser.images_per_class or 5000) * generator.num_classes * (2 * generator.latent_dim + 16)
        assert 2 * weights + latents < 25e6


def test_an_image_folder_without_images_is_one_line(tmp_path: Path) -> None:
    script = load_script(SCRIPT)
    (tmp_path / "train").mkdir()
    arguments = ["--preset", "cpu", "--data", f"imagefolder:{tmp_path}", "--workdir", str(tmp_path / "work")]
    with pytest.raises(script.click.ClickException, match=r"no images|look like splits") as error:
        script.main(arguments, standalone_mode=False)
    assert "\n" not in error.value.message
    assert not (tmp_path / "work").exists()
