"""Generating many images at once."""

from pathlib import Path

import pytest
import torch
from conftest import TinyGenerator
from torch import nn

from itgan_data.generators.biggan import BigGAN, BigGANConfig
from itgan_data.generators.frozen import fold
from itgan_data.generators.importers import import_generator
from itgan_data.generators.sampling import default_chunk, generate
from itgan_data.storage.files import load_tensors

CPU = torch.device("cpu")
COUNT = 11
LABELS = torch.arange(COUNT) % 3


def make_latents() -> torch.Tensor:
    return torch.randn(COUNT, TinyGenerator.latent_dim, generator=torch.Generator().manual_seed(1))


class Recording(TinyGenerator):
    """Notes the sizes of its batches, and returns its images in the same memory each time, as a CUDA graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.memory = torch.empty(COUNT, *self.image_shape)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(latents))
        return self.memory[: len(latents)].copy_(super().forward(latents, labels))


@pytest.mark.parametrize(("chunk", "sizes"), [(1, [1] * COUNT), (4, [4, 4, 3]), (COUNT, [COUNT]), (50, [COUNT])])
def test_chunks_are_joined_in_order(chunk: int, sizes: list[int]) -> None:
    recording = Recording()
    images = generate(recording, make_latents(), LABELS, chunk=chunk)
    assert recording.sizes == sizes
    torch.testing.assert_close(images, TinyGenerator()(make_latents(), LABELS).detach())


def test_images_are_float32_without_a_graph(tiny_generator: TinyGenerator) -> None:
    for dtype in (None, torch.float32, torch.bfloat16):
        images = generate(tiny_generator, make_latents().requires_grad_(True), LABELS, dtype=dtype)
        assert images.dtype == torch.float32
        assert not images.requires_grad
        assert images.is_contiguous()


def test_no_latents_give_no_images(tiny_generator: TinyGenerator) -> None:
    assert generate(tiny_generator, make_latents()[:0], LABELS[:0]).shape == (0, 3, 8, 8)


def test_images_may_be_trained_on(tiny_generator: TinyGenerator) -> None:
    layer = nn.Conv2d(3, 2, 3)
    layer(generate(tiny_generator, make_latents(), LABELS)).sum().backward()
    assert layer.weight.grad is not None


class TestTrainedWeights:
    """A released checkpoint, and the images that the code it came with makes of it."""

    @pytest.fixture
    def reference(self, fixture_folder: Path) -> dict[str, torch.Tensor]:
        return load_tensors(fixture_folder / "biggan_itgan_cifar10.io.safetensors")

    @pytest.mark.parametrize("chunk", [None, 3])
    def test_float32_gives_the_images_of_the_training_form(
        self, fixture_folder: Path, reference: dict[str, torch.Tensor], chunk: int | None
    ) -> None:
        generator = import_generator(fixture_folder / "biggan_itgan_cifar10.pth")
        images = generate(generator, reference["latents"], reference["labels"], chunk=chunk)
        torch.testing.assert_close(images, reference["images"], rtol=0, atol=1e-5)

    def test_bfloat16_is_near_them_but_another_arithmetic(
        self, fixture_folder: Path, reference: dict[str, torch.Tensor]
    ) -> None:
        generator = import_generator(fixture_folder / "biggan_itgan_cifar10.pth")
        images = generate(generator, reference["latents"], reference["labels"], dtype=torch.bfloat16)
        error = (images - reference["images"]).abs() / reference["images"].std()
        assert 1e-5 < error.mean() < 0.02


class TestDefaultChunk:
    @pytest.mark.parametrize(("channels", "expected"), [((256,) * 4, 16), ((64,) * 4, 64), ((8, 8, 8, 512), 8)])
    def test_is_ruled_by_the_largest_map(self, channels: tuple[int, ...], expected: int) -> None:
        generator = fold(BigGAN(BigGANConfig(channels=channels)))
        assert default_chunk(generator, CPU) == expected
        assert default_chunk(generator, torch.device("cuda")) == 16 * expected

    def test_is_never_empty(self) -> None:
        generator = fold(BigGAN(BigGANConfig(channels=(4, 4))))
        generator.largest_map = 1 << 30
        assert default_chunk(generator, CPU) == 1

    def test_an_unknown_generator_is_taken_for_a_large_one(self, tiny_generator: TinyGenerator) -> None:
        assert default_chunk(tiny_generator, CPU) == (1 << 22) // (256 * 8 * 8)


def test_what_does_not_fit_is_refused(tiny_generator: TinyGenerator) -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        generate(tiny_generator, make_latents(), LABELS, chunk=0)
    tiny_generator.image_shape = (3, 4, 4)
    with pytest.raises(ValueError, match=r"must return images \(11, 3, 4, 4\), got \(44, 3, 4, 4\)"):
        generate(tiny_generator, make_latents(), LABELS)
