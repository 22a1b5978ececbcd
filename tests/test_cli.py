import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import write_bundle, write_cifar10
from hub_server import LoopbackHub
from PIL import Image

from itgan_data import LatentSet, load_bundle, load_generator
from itgan_data.cli import METHODS, main
from itgan_data.files import read_json, write_json
from itgan_data.images import LabeledImages

COMMANDS = ("condense", "evaluate", "import", "info", "preview", "pretrain", "pull", "push")
TINY_GENERATOR = {
    "generator": {"num_classes": 10, "latent_dim": 8, "channels": [8, 8, 8, 8]},
    "discriminator_channels": 8,
    "batch_size": 4,
    "steps": 2,
    "precision": "float32",
}
TINY_POOL = {"num_networks": 1, "width": 8, "steps": 2, "batch_size": 8, "snapshots": 1}
TINY_CONDENSER = {
    "steps": 2,
    "real_batch_size": 4,
    "inversion": {"encoder_steps": 2, "encoder_batch_size": 4, "steps": 2},
    "pool": TINY_POOL,
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def done(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def config_file(folder: Path, name: str, values: dict[str, Any]) -> Path:
    write_json(folder / name, values)
    return folder / name


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pretrain` leaves."""
    folder = tmp_path_factory.mktemp("pretrain")
    config = config_file(folder, "generator.json", TINY_GENERATOR)
    done("pretrain", "--data", "digits", "--config", config, "--out", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def bundle(generator: Path) -> Path:
    """What `condense` leaves."""
    config = config_file(generator.parent, "condenser.json", TINY_CONDENSER)
    out = generator.parent / "bundle"
    arguments = ("--data", "digits", "--config", config, "--images-per-class", "2", "--out", out)
    done("condense", "--generator", generator, *arguments)
    return out


def test_pretrain_leaves_a_generator_and_goes_on_when_prolonged(generator: Path) -> None:
    assert load_generator(generator / "generator").latent_dim == 8
    again = done(
        *("pretrain", "--data", "digits", "--config", generator.parent / "generator.json"),
        *("--steps", "3", "--out", generator),
    )
    assert again.stdout == f"{generator}\n"
    assert "| 3/3" in again.stderr
    assert "| 0/3" not in again.stderr


def test_condense_leaves_a_bundle_of_the_data_it_was_given(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert (len(loaded.latents), loaded.class_names) == (20, list("0123456789"))
    assert loaded.config["dataset"] == "digits"
    training = loaded.config["training"]["condenser"]
    assert training["strategy"] == "color_crop_cutout_scale_rotate"  # digits have no mirror images
    assert training["pool"]["flips"] is False
    assert loaded.normalization.mean[0] == pytest.approx(0.3, abs=0.05)


def test_the_jobs_of_an_array_end_with_the_bundle_of_one_run(generator: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, "condenser.json", {**TINY_CONDENSER, "group_size": 1})
    arguments = ("condense", "--data", "digits", "--generator", generator, "--config", config)
    arguments = (*arguments, "--images-per-class", "2", "--out", tmp_path / "parts")
    early = run(*arguments, "--shard", "1/2")
    assert (early.exit_code, "prepare" in early.stderr.splitlines()[-1]) == (1, True)
    for job in (("--prepare",), ("--shard", "2/2"), ("--shard", "1/2")):
        assert done(*arguments, *job).stdout == ""
    done(*arguments, "--merge")
    done(*arguments[:-1], tmp_path / "whole")
    parts, whole = (load_bundle(tmp_path / name).latents for name in ("parts", "whole"))
    assert torch.equal(parts.latents, whole.latents)
    assert run(*arguments, "--merge", "--shard", "1/2").exit_code == 2


def test_pixels_are_condensed_without_a_generator(tmp_path: Path) -> None:
    config = config_file(
        tmp_path, "dm.json", {"steps": 1, "optimizer": "sgd", "networks": {"width": 8}, "real_batch_size": 2}
    )
    out = tmp_path / "bundle"
    done(
        *("condense", "--method", "dm", "--data", "digits", "--config", config),
        *("--images-per-class", "1", "--latents-dtype", "int8", "--out", out),
    )
    assert load_bundle(out).config["generator"]["architecture"] == "pixels"


def test_evaluate_prints_accuracy_for_people_and_for_scripts(bundle: Path) -> None:
    arguments = ("evaluate", bundle, "--data", "digits", "--steps", "1", "--seeds", "2")
    assert done(*arguments).stdout.startswith("real test accuracy ")
    content = json.loads(done(*arguments, "--json").stdout)
    assert [result["seed"] for result in content["results"]] == [0, 1]
    assert all(0 <= result["accuracy"] <= 1 for result in content["results"])
    assert content["environment"]["torch"] in torch.__version__


def test_preview_draws_classes_or_pairs(bundle: Path, tmp_path: Path) -> None:
    for name, more in (("classes.png", ()), ("pairs.png", ("--data", "digits"))):
        done("preview", bundle, "--out", tmp_path / name, "--columns", "2", *more)
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 64


def test_info_says_what_is_in_a_bundle(bundle: Path) -> None:
    text = done("info", bundle).stdout
    assert "20 of width 8, float16" in text
    content = json.loads(done("info", bundle, "--json").stdout)
    assert content["config"] == read_json(bundle / "config.json")
    assert content["bytes"]["latents.safetensors"] == (bundle / "latents.safetensors").stat().st_size


def test_info_reads_no_weights(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    size = (copy / "generator.safetensors").stat().st_size
    (copy / "generator.safetensors").write_bytes(bytes(size))
    assert f"{size:,}" in done("info", copy).stdout
    assert run("evaluate", copy, "--data", "digits").exit_code == 1


def test_a_released_generator_is_imported_alone_or_with_its_latents(
    fixture_folder: Path, tmp_path: Path, unchecked_cifar10: None
) -> None:
    checkpoint = fixture_folder / "biggan_itgan_cifar10.pth"
    done("import", checkpoint, "--out", tmp_path / "generator")
    latent_dim = load_generator(tmp_path / "generator").latent_dim
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    images[:, 0] = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1)
    real = LabeledImages(images, torch.arange(20) % 10, [f"class {label}" for label in range(10)])
    write_cifar10(tmp_path / "data", real, real)
    torch.save({"z_eff_all": torch.randn(20, latent_dim)}, tmp_path / "latents.pt")
    arguments = ("import", checkpoint, "--latents", tmp_path / "latents.pt", "--out", tmp_path / "bundle")
    done(*arguments, "--data", f"cifar10:{tmp_path / 'data'}")
    loaded = load_bundle(tmp_path / "bundle")
    assert torch.equal(loaded.latents.labels, real.labels)
    assert run(*arguments).exit_code == 2  # labels are missing


def test_push_and_pull(hub: LoopbackHub, bundle: Path, tmp_path: Path) -> None:
    hub_option = ("--endpoint", hub.endpoint)
    (tmp_path / "token").write_text("writer")
    url = done("push", bundle, "org/name", *hub_option).stdout.strip()
    assert url.startswith(hub.endpoint)
    folder = Path(done("pull", "org/name", *hub_option, "--out", tmp_path / "copy").stdout.strip())
    assert torch.equal(load_bundle(folder).latents.latents, load_bundle(bundle).latents.latents)
    missing = run("pull", "org/other", *hub_option)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.startswith("Error: ")


ERRORS: dict[str, Callable[[Path], tuple[str | Path, ...]]] = {
    "imagefolder": lambda folder: ("pretrain", "--data", f"imagefolder:{folder / 'none'}", "--out", folder / "out"),
    "there is no bundle": lambda folder: ("evaluate", folder / "none", "--data", "digits"),
    "no file": lambda folder: ("import", folder / "none.pth", "--out", folder / "out"),
    "unknown data set": lambda folder: ("pretrain", "--data", "mnist", "--out", folder / "out"),
}


@pytest.mark.parametrize("kind", list(ERRORS))
def test_an_error_is_one_line_on_stderr(kind: str, tmp_path: Path) -> None:
    result = run(*ERRORS[kind](tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set"):
        run("--debug", "pretrain", "--data", "mnist", "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("condense", "--data", "digits", "--out", "x"),  # no generator
        ("condense", "--data", "digits", "--out", "x", "--method", "dm", "--generator", "y"),  # one too many
        ("condense", "--data", "digits", "--out", "x", "--method", "magic"),
        ("pretrain", "--data", "digits", "--out", "x", "--max-minutes", "0"),
        ("nothing",),
    ],
)
def test_wrong_use_ends_with_two(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_out_of_time_is_a_failure_that_can_be_gone_on_from(generator: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, "condenser.json", TINY_CONDENSER)
    arguments = ("condense", "--data", "digits", "--generator", generator, "--config", config, "--out", tmp_path / "b")
    stopped = run(*arguments, "--images-per-class", "2", "--max-minutes", "1e-9")
    assert stopped.exit_code == 1
    assert "run again to go on" in stopped.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()
    done(*arguments, "--images-per-class", "2")
    assert isinstance(load_bundle(tmp_path / "b").latents, LatentSet)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"itgan-data {command} " in done(command, "--help").stdout


def test_all_methods_can_be_chosen() -> None:
    assert all(name in done("condense", "--help").stdout for name in METHODS)
    assert set(main.commands) == set(COMMANDS)


def test_it_runs_as_a_program_in_a_pipe(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from itgan_data.cli import main; main()"]
    bundle = write_bundle(tmp_path / "bundle", ["cat", "dog"])
    for arguments, expected in ((["--version"], "0."), (["info", str(bundle)], "4 of width 16")):
        got = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=120, check=True)
        assert expected in got.stdout
        assert got.stderr == ""
