"""A bundle of a codec: latents as codes, packed weights."""

from pathlib import Path

import pytest
import torch

from itgan_data.bundle import load_bundle, save_bundle
from itgan_data.generators.codec import Codec, CodecConfig
from itgan_data.generators.context import ContextShape
from itgan_data.latents.coded import CodedRows, take_turns
from itgan_data.latents.stored import LatentSet
from itgan_data.pretraining.context_fit import ContextFit, fit_context
from itgan_data.storage.files import load_tensors, read_json, save_tensors, sha256_of, write_json

CODEC = CodecConfig(
    num_classes=3, image_size=16, channels=12, decoder_widths=(6, 4), decoder_blocks=(1, 1), encoder_widths=(4, 6, 8)
)
SHAPE = ContextShape(map_size=(2, 2), groups=(4, 8), num_classes=3, hidden=8, group_hidden=8, first_flag=1)
CONFIG = {
    "dataset": "toy",
    "class_names": ["a", "b", "c"],
    "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "method": "codec",
    "training": {},
    "metrics": {},
}


@pytest.fixture(scope="module")
def codec() -> Codec:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        codec = Codec(CODEC, encoder=False).eval().requires_grad_(False)
    codec.round_weights()
    return codec


@pytest.fixture(scope="module")
def latents() -> LatentSet:
    labels = take_turns(torch.tensor([40, 30, 20]))
    codes = torch.randn(len(labels), 48, generator=torch.Generator().manual_seed(0)).mul(2).round().to(torch.int8)
    context = fit_context(SHAPE, codes.view(-1, 12, 2, 2), labels, ContextFit(steps=3))
    return LatentSet(CodedRows(codes, context), labels)


@pytest.fixture
def folder(tmp_path: Path, codec: Codec, latents: LatentSet) -> Path:
    return save_bundle(tmp_path / "bundle", codec, latents, config=CONFIG).path


def rewritten(folder: Path, name: str, change: dict[str, torch.Tensor]) -> None:
    """Change tensors of a file, with the checksum that belongs to them."""
    save_tensors(folder / name, {**load_tensors(folder / name), **change})
    config = read_json(folder / "config.json")
    config["sha256"][name] = sha256_of(folder / name)
    write_json(folder / "config.json", config)


def test_codes_come_back_as_they_were(folder: Path, latents: LatentSet, codec: Codec) -> None:
    bundle = load_bundle(folder)
    assert bundle.latents.coded
    assert torch.equal(bundle.latents.latents, latents.latents)
    assert torch.equal(bundle.latents.labels, latents.labels)
    indices = torch.tensor([5, 17])
    expected = codec(*latents.batch(indices))
    torch.testing.assert_close(bundle.generator(*bundle.latents.batch(indices)), expected, atol=0.02, rtol=0)


def test_it_is_of_format_2_and_says_how_latents_are_stored(folder: Path) -> None:
    config = read_json(folder / "config.json")
    assert config["format_version"] == 2
    assert config["latents"] == {"count": 90, "dim": 48, "dtype": "codes"}


def test_saved_again_it_has_the_same_latents_file(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    save_bundle(tmp_path / "again", bundle.generator, bundle.latents, config=CONFIG)
    for name in ("latents.safetensors", "generator.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_codes_take_fewer_bytes_than_int8(folder: Path, latents: LatentSet, tmp_path: Path) -> None:
    latents.save(tmp_path / "plain.safetensors", torch.int8)
    codes = load_tensors(folder / "latents.safetensors")["codes"]
    assert len(codes) < 0.6 * len(latents) * latents.latent_dim
    plain = LatentSet.load(tmp_path / "plain.safetensors")
    torch.testing.assert_close(plain.latents, latents.latents, atol=0.1, rtol=0)


def test_some_of_the_latents_are_codes_too(latents: LatentSet) -> None:
    some = latents.select(torch.arange(10))
    assert some.coded
    assert LatentSet.concatenate([some, latents]).coded


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("latents.safetensors", {"codes": torch.zeros(100, dtype=torch.uint8)}, "damaged"),
        ("latents.safetensors", {"codes": torch.zeros(100)}, "must be torch.uint8"),
        ("latents.safetensors", {"class_counts": torch.tensor([40, 30, 21])}, "damaged"),
        ("latents.safetensors", {"class_counts": torch.tensor([2**40, 30, 20])}, "damaged"),
        ("latents.safetensors", {"more": torch.zeros(3)}, "'more'"),
        ("generator.safetensors", {"weights": torch.zeros(100, dtype=torch.uint8)}, "damaged"),
    ],
)
def test_damaged_contents_are_refused(folder: Path, name: str, change: dict[str, torch.Tensor], message: str) -> None:
    rewritten(folder, name, change)
    with pytest.raises(ValueError, match=message):
        load_bundle(folder)


def test_another_count_than_the_configuration_says_is_refused(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["latents"]["count"] = 89
    write_json(folder / "config.json", config)
    with pytest.raises(ValueError, match="holds 90 latents of width 48, expected 89 of 48"):
        load_bundle(folder)
