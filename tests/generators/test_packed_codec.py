import json
from pathlib import Path

import pytest
import torch

from itgan_data.generators.codec import Codec, CodecConfig
from itgan_data.generators.contract import probe_images
from itgan_data.generators.packed_codec import pack_codec
from itgan_data.generators.store import build_generator, describe_generator, load_generator, save_generator
from itgan_data.storage.files import load_tensors, save_tensors, sha256_of

CONFIG = CodecConfig(
    num_classes=3, image_size=16, channels=12, decoder_widths=(6, 4), decoder_blocks=(1, 1), encoder_widths=(4, 6, 8)
)


def drawn_codec(*, encoder: bool = False) -> Codec:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        codec = Codec(CONFIG, encoder=encoder).eval().requires_grad_(False)
    codec.round_weights()
    codec.step.fill_(0.75)
    return codec


@pytest.mark.parametrize("encoder", [False, True])
def test_a_stored_codec_makes_the_same_images(tmp_path: Path, encoder: bool) -> None:
    codec = drawn_codec(encoder=encoder)
    save_generator(tmp_path, codec)
    again = load_generator(tmp_path)
    assert isinstance(again, Codec)
    torch.testing.assert_close(probe_images(again), probe_images(codec))
    assert again.arguments == codec.arguments
    assert float(again.step) == 0.75


def test_packed_twice_it_has_the_same_bytes() -> None:
    codec = drawn_codec()
    packed = pack_codec(codec, torch.float16)
    again = build_generator(json.loads(json.dumps(describe_generator(codec))), packed)
    assert isinstance(again, Codec)
    assert all(torch.equal(tensor, packed[name]) for name, tensor in pack_codec(again, torch.float16).items())


def test_a_weight_takes_less_than_a_byte() -> None:
    codec = drawn_codec()
    weights = sum(module.weight.numel() for module in codec.decoder.modules() if isinstance(module, torch.nn.Conv2d))
    packed = pack_codec(codec, torch.float16)
    assert len(packed["weights"]) < 0.9 * weights


def test_a_codec_without_steps_is_not_stored(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        codec = Codec(CONFIG, encoder=False)
    with pytest.raises(ValueError, match="have no step"):
        save_generator(tmp_path, codec)


@pytest.mark.parametrize("damage", ["weights", "tables", "floats", "extra", "nan"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    save_generator(tmp_path, drawn_codec())
    path = tmp_path / "generator.safetensors"
    tensors = load_tensors(path)
    if damage == "extra":
        tensors["more"] = torch.zeros(3)
    elif damage == "nan":
        tensors["floats"][5] = torch.nan
    else:
        tensors[damage] = tensors[damage][:-2]
    before = sha256_of(path)
    save_tensors(path, tensors)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(before, sha256_of(path)))
    with pytest.raises(ValueError, match=r"damaged|not finite"):
        load_generator(tmp_path)


@pytest.mark.parametrize("change", [{"encoder": 1}, {"channels": 1000}, {"image_size": 20}, {"unknown": 3}], ids=str)
def test_arguments_of_a_damaged_file_are_refused(change: dict[str, object]) -> None:
    codec = drawn_codec()
    description = {"architecture": "codec", "arguments": {**codec.arguments, **change}}
    with pytest.raises(ValueError, match="the arguments of the generator are not those of a Codec"):
        build_generator(description, pack_codec(codec, torch.float32))
