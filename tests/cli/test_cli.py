import json
import shutil
import signal
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

from itgan_data import GeneratorTrainer, LatentSet, load_bundle, load_generator, save_bundle
from itgan_data.cli import main, making, pictures
from itgan_data.condense.pool import PoolConfig
from itgan_data.datasets import open_dataset
from itgan_data.images import LabeledImages
from itgan_data.storage.files import read_json, write_json

COMMANDS = ("condense", "evaluate", "import", "info", "preview", "pretrain", "pull", "push")
TINY_GENERATOR = {
    "generator": {"num_classes": 10, "latent_dim": 8, "channels": [8, 8, 8, 8]},
    "discriminator_channels": 8,
    "batch_size": 4,
    "steps": 2,
    "log_steps": 1,
    "precision": "float32",
}
TINY_POOL = {"num_networks": 1, "width": 8, "steps": 2, "batch_size": 8, "snapshots": 1}
TINY_CONDENSER = {
    "steps": 2,
    "real_batch_size": 4,
    "inversion": {"encoder_steps": 2, "encoder_batch_size": 4, "steps": 2},
    "pool": TINY_POOL,
}


PROGRAM = [sys.executable, "-c", "from itgan_data.cli import main; main(prog_name='itgan-data')"]
SECONDS = 200  # a process imports torch in a few of them, on a busy machine in many


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


def test_a_training_that_collapses_ends_with_the_best_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(making, "MONITOR", PoolConfig(**TINY_POOL))
    eager = {"steps": 50, "monitor_steps": 1, "monitor_samples": 20, "collapse_checks": 1, "collapse_ratio": 1.00001}
    config = config_file(tmp_path, "generator.json", {**TINY_GENERATOR, **eager, "lr_generator": 0.1})
    arguments = ("pretrain", "--data", "digits", "--config", config, "--monitor", "--out", tmp_path / "out")
    first = done(*arguments)
    assert "the training has collapsed by step" in caplog.messages[-1]
    assert "in the features of convnet of " in caplog.messages[-1]
    best, last = (load_generator(tmp_path / "out" / name).state_dict() for name in ("generator-best", "generator"))
    assert all(torch.equal(best[name], last[name]) for name in best)
    again = done(*arguments)
    assert again.stdout == first.stdout == f"{tmp_path / 'out'}\n"
    assert "embedding network" not in again.stderr  # it is kept


def test_a_signal_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_signal: signal.Signals
) -> None:
    config = config_file(tmp_path, "generator.json", TINY_GENERATOR)
    arguments = ("pretrain", "--data", "digits", "--config", config, "--out", tmp_path / "out")
    train_step = GeneratorTrainer.train_step

    def interrupted(trainer: GeneratorTrainer) -> tuple[float, float]:
        signal.raise_signal(stop_signal)
        return train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(GeneratorTrainer, "train_step", interrupted)
        stopped = run(*arguments)
    status, word = (1, "interrupted") if stop_signal == signal.SIGINT else (143, "terminated")
    assert (stopped.exit_code, stopped.stdout) == (status, "")
    assert stopped.stderr.splitlines()[-1] == f"Error: {word}; run the same command again to go on"
    again = done(*arguments).stderr
    assert "| 1/2" in again
    assert "| 0/2" not in again


def test_the_ranks_of_torchrun_train_one_generator_and_speak_with_one_voice(tmp_path: Path) -> None:
    config = config_file(tmp_path, "generator.json", TINY_GENERATOR)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    arguments = ["pretrain", "--data", "digits", "--config", str(config), "--device", "cpu", "--out", str(tmp_path)]
    program = [*ranks, *PROGRAM, *arguments]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert ended.stdout == f"{tmp_path}\n"
    assert load_generator(tmp_path / "generator").latent_dim == 8


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


def test_a_normalization_in_the_configuration_is_kept(tmp_path: Path) -> None:
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = config_file(tmp_path, "dm.json", {"steps": 1, "networks": {"width": 8}, "normalization": given})
    out = tmp_path / "bundle"
    done(
        *("condense", "--method", "dm", "--data", "digits", "--config", config),
        *("--images-per-class", "1", "--out", out),
    )
    assert load_bundle(out).config["normalization"] == given


def test_evaluate_prints_accuracy_for_people_and_for_scripts(bundle: Path) -> None:
    arguments = ("evaluate", bundle, "--data", "digits", "--steps", "1", "--seeds", "2")
    assert done(*arguments).stdout.startswith("real test accuracy ")
    content = json.loads(done(*arguments, "--json").stdout)
    assert [result["seed"] for result in content["results"]] == [0, 1]
    assert all(0 <= result["accuracy"] <= 1 for result in content["results"])
    assert content["environment"]["torch"] in torch.__version__


def test_evaluate_compares_images_with_real_ones(bundle: Path) -> None:
    arguments = ("evaluate", bundle, "--data", "digits", "--network", "resnet18")
    content = json.loads(done(*arguments, "--metrics", "--steps", "1", "--json").stdout)
    assert list(content["rows"]) == ["learned latents", "fresh samples", "real test images"]
    assert content["judge"].startswith("resnet18 of ")
    for row in content["rows"].values():
        assert row["network"] == content["judge"]
        assert (row["num_real"], row["num_synthetic"]) == (20, 20)
        assert 0 <= row["precision"] <= 1


def test_fresh_samples_of_pixels_are_noise_and_not_compared(tmp_path: Path) -> None:
    config = config_file(
        tmp_path, "dm.json", {"steps": 1, "optimizer": "sgd", "networks": {"width": 8}, "real_batch_size": 2}
    )
    arguments = ("--method", "dm", "--data", "digits", "--config", config, "--images-per-class", "2")
    done("condense", *arguments, "--out", tmp_path / "bundle")
    found = done("evaluate", tmp_path / "bundle", "--data", "digits", "--metrics", "--steps", "1").stdout
    heading, _, *rows, _, told = found.splitlines()
    assert "Fréchet distance (convnet of " in heading
    assert [row.split(" | ")[0] for row in rows] == ["| learned latents", "| real test images"]
    assert told.startswith("2 images of each class in a set; agreement with a convnet of ")


PICTURES = {
    "grid": (),
    "pairs": ("--data", "digits"),
    "neighbors": ("--data", "digits"),
    "features": ("--data", "digits", "--steps", "1", "--images-per-class", "2"),
    "weights": ("--data", "digits", "--steps", "1", "--class-name", "3", "--weighting", "C"),
}


@pytest.mark.parametrize("kind", list(PICTURES))
def test_preview_draws_each_kind_of_picture(kind: str, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    assert done("preview", bundle, "--kind", kind, "--columns", "2", "--out", out, *PICTURES[kind]).stdout == f"{out}\n"
    with Image.open(out) as picture:
        assert min(picture.size) > 64


def test_preview_draws_a_grid_or_where_there_are_data_pairs(bundle: Path, tmp_path: Path) -> None:
    for kind in ("grid", "pairs"):
        done("preview", bundle, "--out", tmp_path / "chosen.png", "--kind", kind, *PICTURES[kind])
        done("preview", bundle, "--out", tmp_path / "default.png", *PICTURES[kind])
        assert (tmp_path / "chosen.png").read_bytes() == (tmp_path / "default.png").read_bytes()


def test_preview_draws_how_runs_went(generator: Path, bundle: Path, tmp_path: Path) -> None:
    for folder in (generator, bundle.with_name("bundle-work")):
        done("preview", folder, "--kind", "curves", "--out", tmp_path / f"{folder.name}.png")
        with Image.open(tmp_path / f"{folder.name}.png") as picture:
            assert min(picture.size) > 64


def test_a_picture_of_weights_depends_on_the_method(bundle: Path, tmp_path: Path) -> None:
    options = ("--data", "digits", "--steps", "1", "--class-name", "3")
    for method, out in (("A_mu", tmp_path / "a.png"), ("C", tmp_path / "c.png")):
        done("preview", bundle, "--kind", "weights", *options, "--weighting", method, "--out", out)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_a_picture_of_neighbors_shows_the_nearest_real_images(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "plot_neighbors", lambda out, *shown, columns: drawn.extend(shown))
    done("preview", bundle, "--kind", "neighbors", "--data", "digits", "--out", tmp_path / "neighbors.png")
    images, neighbors, distances = drawn
    real = open_dataset("digits", "train").images
    expected = torch.cdist(images.flatten(1).double(), real.flatten(1).double()).min(dim=1)
    assert len(images) == 20
    assert torch.equal(neighbors, real[expected.indices])
    torch.testing.assert_close(distances, expected.values)


def test_pairs_of_other_data_are_refused(bundle: Path, tmp_path: Path) -> None:
    latents = load_bundle(bundle).latents
    swapped = LatentSet(latents.latents, latents.labels, source_index=latents.source_index.flip(0))
    for name, other, message in (
        ("other", swapped, "missing or of other classes"),
        ("none", LatentSet(latents.latents, latents.labels), "do not say which real images"),
    ):
        loaded = load_bundle(bundle)
        save_bundle(tmp_path / name, loaded.generator, other, config=loaded.config, preview=False)
        refused = run("preview", tmp_path / name, "--data", "digits", "--out", tmp_path / "pairs.png")
        assert refused.exit_code == 1
        assert message in refused.stderr
    assert not (tmp_path / "pairs.png").exists()


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


def test_a_bundle_does_not_lose_its_generator_to_an_import(fixture_folder: Path, bundle: Path) -> None:
    before = load_bundle(bundle)
    refused = run("import", fixture_folder / "mimicry_cgan_pd.pth", "--out", bundle)
    assert (refused.exit_code, "holds a bundle, whose latents need" in refused.stderr) == (1, True)
    assert load_bundle(bundle).config == before.config


def test_released_latents_are_imported_with_labels_from_a_file(fixture_folder: Path, tmp_path: Path) -> None:
    checkpoint = fixture_folder / "biggan_itgan_cifar10.pth"
    torch.save({"z_eff_all": torch.randn(20, 128)}, tmp_path / "latents.pt")
    (tmp_path / "labels.txt").write_text("".join(f"{number % 10}\n" for number in range(20)))
    arguments = ("import", checkpoint, "--latents", tmp_path / "latents.pt", "--out", tmp_path / "bundle")
    done(*arguments, "--labels", tmp_path / "labels.txt")
    loaded = load_bundle(tmp_path / "bundle")
    assert torch.equal(loaded.latents.labels, torch.arange(20) % 10)
    assert loaded.class_names == list("0123456789")
    (tmp_path / "labels.txt").write_text("0\n" * 19)
    wrong = run(*arguments, "--labels", tmp_path / "labels.txt")
    assert wrong.exit_code == 1
    assert "has 20 latents and there are 19 labels" in wrong.stderr
    assert run(*arguments, "--labels", tmp_path / "labels.txt", "--data", "cifar10").exit_code == 2
    assert run("import", checkpoint, "--labels", tmp_path / "labels.txt", "--out", tmp_path / "g").exit_code == 2


def test_push_and_pull(hub: LoopbackHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_option = ("--endpoint", hub.endpoint)
    (tmp_path / "token").write_text("writer")
    url = done("push", bundle, "org/name", *hub_option).stdout.strip()
    assert url.startswith(hub.endpoint)
    monkeypatch.chdir(tmp_path)  # a folder of that name is not the one on the Hub
    (tmp_path / "org" / "name").mkdir(parents=True)
    folder = Path(done("pull", "org/name", *hub_option, "--out", tmp_path / "copy").stdout.strip())
    assert torch.equal(load_bundle(folder).latents.latents, load_bundle(bundle).latents.latents)
    missing = run("pull", "org/other", *hub_option)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr.startswith("Error: ")


DECODER = """
import torch

class Decoder(torch.nn.Module):
    latent_dim, num_classes, image_shape, arguments = 3, 2, (3, 8, 8), {}

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 192)

    def forward(self, latents, labels):
        return self.layer(latents + labels.unsqueeze(1)).tanh().view(-1, 3, 8, 8)
"""


def test_a_generator_of_another_class_is_loaded_if_the_user_names_and_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_decoder.py").write_text(DECODER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    trust = ("--trust", "own_decoder:Decoder")
    done("preview", "--out", "packaged.png", *trust)  # a class too many is no harm
    latents = LatentSet(torch.randn(4, 3), torch.arange(4) % 2)
    about = {"dataset": "toy", "class_names": ["a", "b"], "method": "none", "training": {}, "metrics": {}}
    about["normalization"] = {"mean": [0.5] * 3, "std": [0.2] * 3}
    save_bundle("bundle", sys.modules["own_decoder"].Decoder(), latents, config=about)
    done("preview", "bundle", "--out", "own.png", *trust)
    refused = run("preview", "bundle", "--out", "own.png")
    assert refused.exit_code == 1
    assert "not of this package" in refused.stderr
    del sys.modules["own_decoder"]


@pytest.mark.parametrize("name", ["own_decoder", "no_such_module:Decoder", "json:Decoder", "json:JSONDecoder", "json:"])
def test_what_cannot_be_trusted_is_wrong_use(name: str) -> None:
    result = run("preview", "--out", "x.png", "--trust", name)
    assert result.exit_code == 2
    assert "--trust" in result.stderr


ERRORS: dict[str, Callable[[Path], tuple[str | Path, ...]]] = {
    "is not in": lambda folder: ("pretrain", "--data", f"svhn:{folder}", "--out", folder / "out"),
    "there is no bundle": lambda folder: ("evaluate", folder / "none", "--data", "digits"),
    "unexpected keyword argument 'stepz'": lambda folder: (
        *("pretrain", "--data", "digits", "--out", folder / "out"),
        *("--config", config_file(folder, "config.json", {"stepz": 1})),
    ),
    "holds no log": lambda folder: ("preview", folder, "--kind", "curves", "--out", folder / "curves.png"),
    "exists already": lambda folder: ("pull", "org/name", "--out", folder),
    "expected 2, ['cat', 'dog']": lambda folder: (
        "evaluate",
        write_bundle(folder / "bundle", ["cat", "dog"]),
        "--data",
        "digits",
    ),
}


@pytest.mark.parametrize("kind", list(ERRORS))
def test_an_error_is_one_line_on_stderr(kind: str, tmp_path: Path) -> None:
    result = run(*ERRORS[kind](tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert kind in result.stderr


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("torchmetrics", "metrics", ("evaluate", "--data", "digits", "--metrics")),
        ("matplotlib", "plots", ("preview", "--out", "grid.png")),
        ("sklearn", "plots", ("preview", "--data", "digits", "--kind", "features", "--out", "map.png")),
    ],
)
def test_a_missing_extra_is_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, missing: str, extra: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = run(*arguments)
    assert result.exit_code == 1
    assert f"pip install 'itgan_data[{extra}]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not in"):
        run("--debug", "pretrain", "--data", f"mnist:{tmp_path}", "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("condense", "--data", "digits", "--out", "x"),  # no generator
        ("condense", "--data", "digits", "--out", "x", "--method", "dm", "--generator", "y"),  # one too many
        ("condense", "--data", "digits", "--out", "x", "--method", "magic"),
        ("pretrain", "--data", "digits", "--out", "x", "--max-minutes", "0"),
        ("pretrain", "--data", "digits", "--out", "x", "--device", "toaster"),
        ("evaluate", "--data", "digits", "--images-per-class", "5"),  # of the metrics, which were not asked for
        ("evaluate", "--data", "digits", "--metrics", "--seeds", "5"),
        ("preview", "--out", "x.png", "--kind", "neighbors"),  # of what data?
        ("preview", "--out", "x.png", "--kind", "grid", "--data", "digits"),
        ("pretrain", "--data", "minst", "--out", "x"),
        ("condense", "--data", "imagefolder:nowhere", "--out", "x", "--method", "dm"),
        ("evaluate", "--data", "cifar10:nowhere"),
        ("import", "none.pth", "--out", "x"),
        ("nothing",),
    ],
)
def test_wrong_use_ends_with_two(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


WRITERS = {
    "pretrain": ("pretrain", "--data", "digits"),
    "condense": ("condense", "--data", "digits", "--method", "dm"),
    "import": ("import", __file__),
    "preview": ("preview",),
}


@pytest.mark.parametrize("command", list(WRITERS))
@pytest.mark.parametrize(
    ("place", "message"), [("file/below.png", "cannot be written"), ("/proc/x/y.png", "cannot be written")]
)
def test_where_nothing_can_be_written_is_said_before_any_work(
    command: str, place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("itgan_data.cli.making.load_images")  # no work comes as far as that
    (tmp_path / "file").touch()
    result = run(*WRITERS[command], "--out", tmp_path / place)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_folder_of_other_things_is_not_replaced_by_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("itgan_data.cli.making.load_images")
    (tmp_path / "thesis.tex").touch()
    for options, message in (
        (("--out", tmp_path), "holds other files"),
        (("--out", tmp_path / "new", "--workdir", tmp_path / "thesis.tex"), "is a file; expected a folder"),
    ):
        result = run(*WRITERS["condense"], *options)
        assert (result.exit_code, message in result.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    assert "ends in .png" in run("preview", "--out", tmp_path / "grid.jpg").stderr


def test_out_of_time_is_a_failure_that_can_be_gone_on_from(generator: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, "condenser.json", TINY_CONDENSER)
    arguments = ("condense", "--data", "digits", "--generator", generator, "--config", config, "--out", tmp_path / "b")
    stopped = run(*arguments, "--images-per-class", "2", "--max-minutes", "1e-9")
    assert stopped.exit_code == 1
    assert "run again to go on" in stopped.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()
    done(*arguments, "--images-per-class", "2")
    assert isinstance(load_bundle(tmp_path / "b").latents, LatentSet)


def test_a_rank_that_is_out_of_time_ends_well_as_torchrun_would_start_it_again(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    config = config_file(tmp_path, "condenser.json", TINY_CONDENSER)
    arguments = ("condense", "--data", "digits", "--generator", generator, "--config", config, "--out", tmp_path / "b")
    stopped = done(*arguments, "--images-per-class", "2", "--max-minutes", "1e-9")
    assert stopped.stdout == ""
    assert "run again to go on" in stopped.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"itgan-data {command} " in done(command, "--help").stdout


def test_all_methods_can_be_chosen() -> None:
    assert all(name in done("condense", "--help").stdout for name in making.METHODS)
    assert set(main.commands) == set(COMMANDS)


@pytest.mark.parametrize(
    ("words", "found"), [("itgan-data pre", "pretrain"), ("itgan-data pretrain --data dig", "digits")]
)
def test_the_shell_completes_commands_and_data(words: str, found: str) -> None:
    environment = {"_ITGAN_DATA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert f"plain,{found}\n" in CliRunner().invoke(main, prog_name="itgan-data", env=environment).stdout


def test_it_runs_as_a_program_in_a_pipe(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", ["cat", "dog"])
    for arguments, expected in ((["--version"], "0."), (["info", str(bundle)], "4 of width 16")):
        got = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=SECONDS, check=True)
        assert expected in got.stdout
        assert got.stderr == ""


def test_a_reader_that_has_enough_is_no_error() -> None:
    program = subprocess.Popen([*PROGRAM, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    program.stdout.close()
    assert program.communicate(timeout=SECONDS)[1] == ""


def test_info_shows_text_from_a_stranger_as_text(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", ["cat", "dog"])
    config = read_json(bundle / "config.json")
    strange = {"dataset": "toy\x1b]0;title\x07", "metrics": {"a": [1], "b\x1b[2J": {}}, "generator": {}}
    write_json(bundle / "config.json", {**config, **strange, "image": {"shape": [], "range": "signed"}})
    text = done("info", bundle).stdout
    assert all(line.isprintable() for line in text.splitlines())


def test_a_codec_is_pretrained_and_goes_on_after_a_limit(tmp_path: Path) -> None:
    sizes = {
        "num_classes": 10,
        "channels": 8,
        "decoder_widths": [4, 4],
        "decoder_blocks": [1, 1],
        "encoder_widths": [4, 4, 4],
    }
    tiny = {"codec": sizes, "steps": 3, "batch_size": 4, "feature_width": 4, "feature_steps": 1, "feature_networks": 1}
    config = config_file(tmp_path, "codec.json", {**tiny, "precision": "float32", "compile": False})
    arguments = ("pretrain", "--data", "digits", "--method", "codec", "--config", config, "--out", tmp_path / "out")
    result = done(*arguments)
    assert result.stdout == f"{tmp_path / 'out'}\n"
    codec = load_generator(tmp_path / "out" / "generator")
    assert codec.latent_dim == 8 * 16
    assert "| 3/3" in done(*arguments, "--steps", "3").stderr
    refused = run(*arguments, "--monitor")
    assert refused.exit_code == 2
    assert "--monitor and --inception are for GANs" in refused.output
