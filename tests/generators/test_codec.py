import pytest
import torch

from itgan_data.generators.codec import MAX_CODE, Codec, CodecConfig, quantize, quantize_straight_through
from itgan_data.generators.contract import as_generator, probe_images

CONFIG = CodecConfig(
    num_classes=3, image_size=16, channels=12, decoder_widths=(6, 4), decoder_blocks=(1, 1), encoder_widths=(4, 6, 8)
)
LABELS = torch.arange(5) % 3


@pytest.fixture
def codec() -> Codec:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Codec(CONFIG).eval().requires_grad_(False)


def drawn_images(seed: int = 0) -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_it_keeps_the_contract_of_a_generator(codec: Codec) -> None:
    assert as_generator(codec).latent_dim == 12 * 2 * 2
    assert probe_images(codec).shape == (8, 3, 16, 16)


def test_images_become_integers_in_range(codec: Codec) -> None:
    codec.step.fill_(1e-4)
    latents = codec.encode(drawn_images(), LABELS)
    assert latents.shape == (5, codec.latent_dim)
    assert torch.equal(latents, latents.round())
    assert latents.abs().max() == MAX_CODE


def test_an_image_depends_neither_on_its_batch_nor_on_its_label(codec: Codec) -> None:
    latents = codec.encode(drawn_images(), LABELS)
    images = codec(latents, LABELS)
    torch.testing.assert_close(codec(latents[2:3], (LABELS[2:3] + 1) % 3), images[2:3])
    torch.testing.assert_close(codec.encode(drawn_images()[2:3], LABELS[2:3]), latents[2:3])


def test_gradients_reach_the_latents_only(codec: Codec) -> None:
    latents = torch.zeros(5, codec.latent_dim, requires_grad=True)
    codec(latents, LABELS).square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in codec.parameters())


def test_a_wider_step_leaves_fewer_codes(codec: Codec) -> None:
    counts = []
    for step in (0.02, 0.2, 2.0):
        codec.step.fill_(step)
        counts.append(int(codec.encode(drawn_images(), LABELS).count_nonzero()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_without_its_encoder_it_only_decodes(codec: Codec) -> None:
    decoder = Codec(CONFIG, encoder=False).eval()
    decoder.load_state_dict({name: value for name, value in codec.state_dict().items() if not name.startswith("enc")})
    latents = codec.encode(drawn_images(), LABELS)
    assert torch.equal(decoder(latents, LABELS), codec(latents, LABELS))
    with pytest.raises(ValueError, match="has no encoder"):
        decoder.encode(drawn_images(), LABELS)


def test_images_of_another_shape_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="images must be"):
        codec.encode(torch.zeros(5, 3, 32, 32), LABELS)


def test_rounding_favours_zeros_and_lets_gradients_through() -> None:
    values = torch.tensor([-1.61, -0.59, 0.0, 0.59, 0.61, 1.59, 1.61], requires_grad=True)
    rounded = quantize_straight_through(values, 0.4)
    assert rounded.tolist() == [-2, 0, 0, 0, 1, 1, 2]
    assert torch.equal(quantize(values, 0.4), rounded)
    rounded.sum().backward()
    assert torch.equal(values.grad, torch.ones(7))


def test_weights_are_used_as_multiples_of_their_step(codec: Codec) -> None:
    conv = codec.decoder.at_half
    before = conv.weight.clone()
    maps = torch.randn(2, conv.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = conv(maps)
    conv.weight_step.fill_(0.05)
    assert torch.equal(conv.multiples(), (before / 0.05).round())
    rounded = conv(maps)
    assert not torch.equal(rounded, plain)
    conv.weight.copy_(0.05 * conv.multiples())
    torch.testing.assert_close(conv(maps), rounded)


def test_its_arguments_build_it_again(codec: Codec) -> None:
    arguments = dict(codec.arguments)
    assert arguments.pop("encoder")
    assert CodecConfig(**arguments) == CONFIG


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 20},
        {"channels": 0},
        {"channels": 193},
        {"dead_zone": 0.6},
        {"num_classes": 0},
        {"decoder_widths": (0, 4)},
        {"decoder_blocks": (-1, 1)},
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        CodecConfig(**{"num_classes": 3, **change})
