from pathlib import Path

import pytest
import torch

from itgan_data.bundle import load_bundle, save_bundle
from itgan_data.condense.coding import code_images, decoder_at
from itgan_data.generators.codec import Codec, CodecConfig
from itgan_data.images import LabeledImages, uint8_to_unit
from itgan_data.latents.coded import turns
from itgan_data.pretraining.codec_state import start_from_components
from itgan_data.pretraining.context_fit import ContextFit

CODEC = CodecConfig(
    num_classes=3, image_size=16, channels=24, decoder_widths=(6, 4), decoder_blocks=(1, 1), encoder_widths=(4, 6, 8)
)
FIT = ContextFit(steps=20, batch_size=16)


@pytest.fixture(scope="module")
def images() -> LabeledImages:
    coarse = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    return LabeledImages((255 * pictures).round().to(torch.uint8), torch.arange(40) // 14, ["a", "b", "c"])


@pytest.fixture(scope="module")
def codec(images: LabeledImages) -> Codec:
    codec = Codec(CODEC).eval().requires_grad_(False)
    start_from_components(codec, images, step_size=0.2)
    codec.round_weights()
    return codec


def test_codes_decode_to_the_images_they_are_of(codec: Codec, images: LabeledImages) -> None:
    latents = code_images(codec, images, step=0.3, fit=FIT)
    assert latents.coded
    order = turns(images.labels)
    assert torch.equal(latents.labels, images.labels[order])
    decoded = decoder_at(codec, 0.3)(*latents.batch(torch.arange(40)))
    assert (decoded - (2 * uint8_to_unit(images.images[order]) - 1)).square().mean() < 0.02


def test_a_wider_step_takes_fewer_bytes_and_leaves_the_codec_as_it_is(
    tmp_path: Path, codec: Codec, images: LabeledImages
) -> None:
    sizes = []
    for step in (0.1, 0.4, 1.6):
        code_images(codec, images, step=step, fit=FIT).save(tmp_path / "latents.safetensors")
        sizes.append((tmp_path / "latents.safetensors").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert float(codec.step) == 1


def test_some_of_the_images_make_a_bundle(tmp_path: Path, codec: Codec, images: LabeledImages) -> None:
    latents = code_images(codec, images, step=0.5, fit=FIT, indices=torch.tensor([3, 30, 20, 8]))
    config = {
        "dataset": "toy",
        "class_names": ["a", "b", "c"],
        "normalization": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "method": "codec",
        "training": {},
        "metrics": {},
    }
    bundle = save_bundle(tmp_path / "bundle", decoder_at(codec, 0.5), latents, config=config)
    again = load_bundle(bundle.path)
    assert again.latents.images_per_class == [2, 1, 1]
    assert torch.equal(again.latents.latents, latents.latents)


def test_a_step_that_is_not_positive_is_refused(codec: Codec, images: LabeledImages) -> None:
    with pytest.raises(ValueError, match="step must be positive"):
        code_images(codec, images, step=0.0, fit=FIT)
    with pytest.raises(ValueError, match="step must be positive"):
        decoder_at(codec, -1.0)
