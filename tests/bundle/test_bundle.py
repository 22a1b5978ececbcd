import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from itgan_data.bundle import writing as bundle_module
from itgan_data.bundle.config import BundleConfig
from itgan_data.bundle.writing import describe_bundle, load_bundle, packaged_bundle, save_bundle
from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.store import load_generator
from itgan_data.latents.stored import LatentSet
from itgan_data.storage.files import save_tensors, sha256_of

CONFIG = {
    "dataset": "toy",
    "class_names": ["cat", "dog", "owl"],
    "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "method": "IT-GAN",
    "training": {"steps": 3},
    "metrics": {"agreement": 0.5},
}


@pytest.fixture
def generator() -> BigGAN:
    return BigGAN(BigGANConfig(num_classes=3, channels=(8, 8, 8, 8), latent_dim=16)).eval()


@pytest.fixture
def latents() -> LatentSet:
    return LatentSet(torch.randn(7, 16, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3)


@pytest.fixture
def folder(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> Path:
    save_bundle(tmp_path / "bundle", generator, latents, config=CONFIG)
    return tmp_path / "bundle"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def replace_tensors(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Other latents, which the configuration describes as they are."""
    save_tensors(folder / name, tensors)
    checksums = json.loads((folder / "config.json").read_text())["sha256"]
    count, dim = tensors["latents"].shape
    described = {"count": count, "dim": dim, "dtype": "float32"}
    change_config(folder, sha256=checksums | {name: sha256_of(folder / name)}, latents=described)


def test_a_bundle_in_the_package_has_a_short_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_bundle("cifar10").path == packaged_bundle("cifar10")
    assert caplog.text == ""
    Path("cifar10").mkdir()  # of real images, say
    assert load_bundle("cifar10").path == packaged_bundle("cifar10")
    assert f"took {packaged_bundle('cifar10')}" in caplog.text
    caplog.clear()
    Path("cifar10").rmdir()
    folder.rename("cifar10")
    assert load_bundle("cifar10").path == Path("cifar10")
    assert "took cifar10" in caplog.text
    with pytest.raises(ValueError, match="there is no bundle at"):
        load_bundle("cifar1000")


def test_latents_in_class_order_are_shuffled(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> None:
    in_order = latents.select(latents.labels.argsort(stable=True))
    saved = save_bundle(tmp_path / "bundle", generator, in_order, config=CONFIG, latents_dtype=torch.float32)
    assert torch.equal(saved.latents.latents, in_order.shuffled().latents)
    again = save_bundle(tmp_path / "again", generator, saved.latents, config=CONFIG, latents_dtype=torch.float32)
    assert torch.equal(again.latents.latents, saved.latents.latents)  # as it is


def test_a_bundle_round_trips(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> None:
    saved = save_bundle(
        tmp_path / "deep" / "bundle",
        generator,
        latents,
        config=CONFIG,
        dtype=torch.float32,
        latents_dtype=torch.float32,
    )
    loaded = load_bundle(tmp_path / "deep" / "bundle")
    assert saved.path == loaded.path
    assert CONFIG.items() <= loaded.config.items()
    assert torch.equal(loaded.latents.latents, latents.latents)
    images = loaded.generator(*loaded.latents.batch(torch.arange(7)))
    torch.testing.assert_close(images, generator(latents.latents, latents.labels), atol=1e-5, rtol=0)


def test_a_bundle_config_and_a_mapping_of_its_fields_say_the_same(
    tmp_path: Path, folder: Path, generator: BigGAN, latents: LatentSet
) -> None:
    config = BundleConfig.of(CONFIG)
    assert config == BundleConfig.of({**CONFIG, "normalization": config.normalization}) == BundleConfig.of(config)
    save_bundle(tmp_path / "again", generator, latents, config=config)
    assert (tmp_path / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert BundleConfig.of(load_bundle(folder).config) == config
    kept = save_bundle(tmp_path / "more", generator, latents, config={**CONFIG, "license": "mit", "mine": 1}).config
    assert (kept["license"], kept["mine"]) == ("mit", 1)


def test_half_precision_storage_keeps_the_images(folder: Path, generator: BigGAN, latents: LatentSet) -> None:
    loaded = load_bundle(folder)
    images = loaded.generator(*loaded.latents.batch(torch.arange(7)))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, generator(latents.latents, latents.labels), atol=1e-2, rtol=0)


def test_a_bundle_describes_itself(folder: Path) -> None:
    loaded = load_bundle(folder)
    assert loaded.class_names == ["cat", "dog", "owl"]
    assert loaded.normalization.std == (0.2, 0.2, 0.2)
    assert loaded.config["image"] == {"shape": [3, 32, 32], "range": "signed"}
    assert loaded.config["latents"] == {"count": 7, "dim": 16, "dtype": "float16"}
    unneeded = {"README.md", "preview.png"}
    assert loaded.num_bytes == sum(f.stat().st_size for f in folder.iterdir() if f.name not in unneeded)
    card = (folder / "README.md").read_text()
    assert "agreement | 0.5" in card
    assert "preview.png" in card


def test_a_bundle_is_described_without_its_tensors_being_read(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"damaged")
    config, sizes = describe_bundle(folder)
    assert config["method"] == "IT-GAN"
    assert sizes == {file.name: file.stat().st_size for file in folder.iterdir()}


def test_the_preview_shows_a_row_for_each_class(folder: Path) -> None:
    with Image.open(folder / "preview.png") as preview:
        assert preview.size == (2 * 34 + 2, 3 * 34 + 2)


def test_equal_bundles_are_equal_byte_by_byte(
    tmp_path: Path, folder: Path, generator: BigGAN, latents: LatentSet
) -> None:
    save_bundle(tmp_path / "again", generator, latents, config=CONFIG)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_bundle_is_a_generator_too(folder: Path, latents: LatentSet) -> None:
    frozen = load_bundle(folder).generator
    assert torch.equal(load_generator(folder)(*latents.batch(torch.arange(3))), frozen(*latents.batch(torch.arange(3))))


def test_a_loaded_bundle_can_be_saved_again_over_itself(folder: Path) -> None:
    loaded = load_bundle(folder)
    save_bundle(folder, loaded.generator, loaded.latents.select(torch.arange(3)), config=loaded.config, preview=False)
    assert len(load_bundle(folder).latents) == 3
    assert not (folder / "preview.png").exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["bundle"]


def test_a_failed_save_leaves_the_old_bundle(
    folder: Path, generator: BigGAN, latents: LatentSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for step in ("_draw_preview", "_replace_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(bundle_module, step, fail)
            with pytest.raises(OSError, match="disk full"):
                save_bundle(folder, generator, latents.select(torch.arange(3)), config=CONFIG)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert [entry.name for entry in folder.parent.iterdir()] == ["bundle"]


def test_what_a_killed_save_left_is_cleared_away(folder: Path, generator: BigGAN, latents: LatentSet) -> None:
    for leftover in (".bundle.new", ".bundle.old"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "half").write_text("written")
    save_bundle(folder, generator, latents, config=CONFIG)
    assert [entry.name for entry in folder.parent.iterdir()] == ["bundle"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        save_bundle(tmp_path, generator, latents, config=CONFIG)
    with pytest.raises(ValueError, match="is a file"):
        save_bundle(tmp_path / "thesis.txt", generator, latents, config=CONFIG)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["cat"]}, "name the generator's 3 classes, got 1"),
        ({"normalization": {"mean": [0.5]}}, "missing 1 required positional argument: 'std'"),
        ({"normalization": {"mean": [0.5], "std": [0.0]}}, "std must be positive"),
    ],
)
def test_an_inconsistent_configuration_is_not_saved(
    tmp_path: Path, generator: BigGAN, latents: LatentSet, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_bundle(tmp_path / "bundle", generator, latents, config=CONFIG | changes)
    assert list(tmp_path.iterdir()) == []


def test_missing_keys_are_named(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> None:
    with pytest.raises(ValueError, match="lacks normalization, method, training, metrics"):
        save_bundle(tmp_path / "b", generator, latents, config={"dataset": "toy", "class_names": []})


def test_a_generator_of_black_images_is_not_saved(tmp_path: Path, generator: BigGAN, latents: LatentSet) -> None:
    black = fold(generator)
    black.output_conv.bias.data.fill_(-20.0)
    black.output_conv.weight.data.zero_()
    with pytest.raises(ValueError, match="makes the same image whatever its latents are"):
        save_bundle(tmp_path / "bundle", black, latents, config=CONFIG)
    assert not (tmp_path / "bundle").exists()


def test_latents_of_another_generator_are_not_saved(tmp_path: Path, generator: BigGAN) -> None:
    with pytest.raises(ValueError, match="width 16, got 15"):
        save_bundle(tmp_path / "b", generator, LatentSet(torch.ones(1, 15), torch.tensor([0])), config=CONFIG)


@pytest.mark.parametrize("name", ["config.json", "generator.safetensors", "latents.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}; it is incomplete") as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "generator.safetensors", "latents.safetensors"])
def test_a_truncated_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(ValueError, match=name) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["generator.safetensors", "latents.safetensors"])
def test_a_changed_byte_is_noticed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="does not match its sha256"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.ones(2, 15), torch.tensor([0, 1]), "takes latents of width 16, got 15"),
        (torch.ones(2, 16), torch.tensor([0, 3]), r"labels must lie in 0\.\.2 for this generator, got 3"),
        (torch.ones(2, 16), torch.tensor([0, -1]), "labels must not be negative"),
        (torch.full((2, 16), torch.nan), torch.tensor([0, 1]), "latents must be finite"),
    ],
)
def test_latents_that_cannot_be_used_are_refused(
    folder: Path, values: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    replace_tensors(folder, "latents.safetensors", {"latents": values, "labels": labels})
    with pytest.raises(ValueError, match=message) as error:
        load_bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format 'other', expected 'itgan-data-bundle'"),
        ({"format_version": 3}, "format version 3, this release reads 1 to 2"),
        ({"sha256": None}, "no object 'sha256'"),
        ({"class_names": ["cat"]}, "name the generator's 3 classes"),
    ],
)
def test_a_configuration_of_something_else_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_bundle(folder)


def test_no_folder_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no bundle at"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.skipif(not packaged_bundle("cifar10").is_dir(), reason="this checkout has no bundle in the package")
def test_the_package_holds_a_bundle() -> None:
    bundle = load_bundle()
    assert bundle.generator.image_shape == (3, 32, 32)
    assert len(bundle.class_names) == 10
    assert min(bundle.latents.images_per_class) > 0
