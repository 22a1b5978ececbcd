from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from itgan_data.generators.codec import Codec, CodecConfig
from itgan_data.generators.store import load_generator
from itgan_data.images import LabeledImages, uint8_to_unit
from itgan_data.pretraining.codec import CodecTrainer
from itgan_data.pretraining.codec_config import CodecTrainerConfig
from itgan_data.pretraining.codec_state import start_from_components
from itgan_data.pretraining.rate import RatePrior, bits, default_groups
from itgan_data.running.step_log import read_log

CONFIG = CodecTrainerConfig(
    codec=CodecConfig(
        num_classes=3,
        image_size=16,
        channels=24,
        decoder_widths=(8, 8),
        decoder_blocks=(1, 1),
        encoder_widths=(4, 8, 8),
    ),
    steps=8,
    joint_share=0.5,
    batch_size=4,
    feature_networks=2,
    feature_width=4,
    feature_steps=2,
    precision="float32",
    compile=False,
    log_steps=2,
    preview_steps=4,
    measure_steps=4,
)


@pytest.fixture(scope="module")
def real_images() -> LabeledImages:
    """Smooth pictures: coarse noise, enlarged."""
    coarse = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    return LabeledImages((255 * pictures).round().to(torch.uint8), torch.arange(30) % 3, ["a", "b", "c"])


def test_it_starts_as_the_principal_components_of_patches(real_images: LabeledImages) -> None:
    codec = Codec(CONFIG.codec).eval().requires_grad_(False)
    spreads = start_from_components(codec, real_images, step_size=0.05)
    images = uint8_to_unit(real_images.images)
    decoded = codec(codec.encode(images, real_images.labels), real_images.labels)
    assert (spreads[1:] <= spreads[:-1] + 1e-4).all()
    assert codec.encoder is not None
    both = codec.decoder.transform.weight[:, :, 0, 0].T @ codec.decoder.transform.weight[:, :, 0, 0]
    torch.testing.assert_close(both, 0.05**2 * torch.eye(24), atol=1e-6, rtol=0)
    assert (decoded - (2 * images - 1)).square().mean() < 0.01


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, real_images: LabeledImages) -> None:
    whole = CodecTrainer(CONFIG, real_images, workdir=tmp_path / "whole", device="cpu")
    whole.run()
    for stop in (2, 4, 6):  # before, at and after the step that freezes the encoder
        parts = CodecTrainer(CONFIG, real_images, workdir=tmp_path / str(stop), device="cpu")
        parts._features = whole._features
        for _ in range(stop):
            parts.train_step()
        parts.save()
        again = CodecTrainer(CONFIG, real_images, workdir=tmp_path / str(stop), device="cpu")
        assert again.step == stop
        again.run()
        for name, tensor in whole.state.tensors().items():
            assert torch.equal(again.state.tensors()[name], tensor), name


def test_it_leaves_a_generator_that_encodes_and_decodes(tmp_path: Path, real_images: LabeledImages) -> None:
    codec = CodecTrainer(CONFIG, real_images, workdir=tmp_path, device="cpu").run()
    again = load_generator(tmp_path / "generator")
    assert isinstance(again, Codec)
    images = uint8_to_unit(real_images.images)
    latents = codec.encode(images, real_images.labels)
    assert torch.equal(again.encode(images, real_images.labels), latents)
    torch.testing.assert_close(again(latents, real_images.labels), codec(latents, real_images.labels))


def test_after_the_joint_part_the_encoder_stays_and_weights_are_rounded(
    tmp_path: Path, real_images: LabeledImages
) -> None:
    trainer = CodecTrainer(CONFIG, real_images, workdir=tmp_path, device="cpu")
    for _ in range(CONFIG.joint_steps + 1):
        trainer.train_step()
    encoder = {name: value.clone() for name, value in trainer.state.codec.encoder.state_dict().items()}
    decoder = {name: value.clone() for name, value in trainer.state.codec.decoder.state_dict().items()}
    trainer.train_step()
    assert all(torch.equal(value, encoder[name]) for name, value in trainer.state.codec.encoder.state_dict().items())
    assert not all(
        torch.equal(value, decoder[name]) for name, value in trainer.state.codec.decoder.state_dict().items()
    )
    assert all((value > 0).all() for name, value in decoder.items() if name.endswith("weight_step"))


def test_log_and_pictures_say_how_it_goes(tmp_path: Path, real_images: LabeledImages) -> None:
    CodecTrainer(CONFIG, real_images, workdir=tmp_path, device="cpu").run()
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines if "psnr" in line] == [2, 4, 6, 8]
    widths = [line["width"] for line in lines if line["step"] == 8 and "width" in line]
    assert widths == [CONFIG.lowest_step, 1.0, CONFIG.highest_step]
    sizes = [line["average_bytes"] for line in lines if line["step"] == 8 and "width" in line]
    assert sizes == sorted(sizes, reverse=True)
    with Image.open(tmp_path / "pairs" / "0000008.png") as picture:
        assert picture.width == 10 * 18 + 2


@pytest.mark.slow
def test_training_saves_bytes_at_a_like_fidelity(tmp_path: Path, real_images: LabeledImages) -> None:
    config = replace(CONFIG, steps=400, joint_share=0.7, feature_weight=0.0, measure_steps=1000, preview_steps=1000)
    trainer = CodecTrainer(config, real_images, workdir=tmp_path, device="cpu")
    before = trainer.measure(1.0)
    trainer.run()
    after = trainer.measure(1.0)
    assert after[1] < 0.96 * before[1]
    assert after[0] > before[0] - 0.5


@pytest.mark.parametrize("field", ["batch_size", "lr", "seed", "rate_weight"])
def test_a_workdir_of_another_configuration_is_refused(tmp_path: Path, real_images: LabeledImages, field: str) -> None:
    trainer = CodecTrainer(CONFIG, real_images, workdir=tmp_path, device="cpu")
    trainer.save()
    with pytest.raises(ValueError, match=field):
        CodecTrainer(replace(CONFIG, **{field: 7}), real_images, workdir=tmp_path, device="cpu")


def test_a_data_set_of_other_classes_is_refused(tmp_path: Path, real_images: LabeledImages) -> None:
    config = replace(CONFIG, codec=replace(CONFIG.codec, num_classes=4))
    with pytest.raises(ValueError, match="let its num_classes be 3"):
        CodecTrainer(config, real_images, workdir=tmp_path, device="cpu")


class TestRate:
    def prior(self) -> RatePrior:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            prior = RatePrior(CONFIG.codec, torch.ones(24))
            for parameter in prior.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return prior.requires_grad_(False)

    def test_a_prediction_depends_on_what_was_decoded_before_alone(self) -> None:
        prior, labels, log_step = self.prior(), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        values = torch.randn(1, 24, 2, 2, generator=torch.Generator().manual_seed(0))
        before = prior(values, labels, log_step)[0]
        values[0, 5, 0, 1] += 1  # of the second group, in the second patch
        after = prior(values, labels, log_step)[0]
        assert torch.equal(before[0, :, 0, 0], after[0, :, 0, 0])
        assert torch.equal(before[0, :8, 0, 1], after[0, :8, 0, 1])
        assert not torch.equal(before[0, 8:, 0, 1], after[0, 8:, 0, 1])
        assert not torch.equal(before[0, :, 1, 0], after[0, :, 1, 0])

    def test_bits_are_those_of_a_distribution(self) -> None:
        values = torch.arange(-200.0, 201.0)
        for mean, log_scale in ((0.0, 0.0), (0.3, 2.0), (-1.7, -2.0)):
            lengths = bits(values, torch.tensor(mean), torch.tensor(log_scale))
            assert float((2.0**-lengths).sum()) == pytest.approx(1, abs=1e-3)
            assert lengths.isfinite().all()

    @pytest.mark.parametrize("channels", [1, 3, 24, 80, 192])
    def test_groups_make_up_all_channels(self, channels: int) -> None:
        assert sum(default_groups(channels)) == channels
