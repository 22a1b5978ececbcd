import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import run_on
from torch import nn

from itgan_data.condense.inversion import InversionConfig, invert, starting_latents
from itgan_data.images import LabeledImages, Normalization, signed_to_uint8, uint8_to_unit, unit_to_signed
from itgan_data.pretraining.encoder import Encoder, train_encoder
from itgan_data.running.checkpoint import Checkpointer
from itgan_data.running.stopping import OutOfTimeError, TimeLimit

NORMALIZATION = Normalization((0.5,) * 3, (0.25,) * 3)
CONFIG = InversionConfig(encoder_steps=120, encoder_batch_size=32, lr_encoder=3e-3, steps=30, batch_size=250)
CPU = torch.device("cpu")


def embed(images: torch.Tensor) -> torch.Tensor:
    """Fixed random features."""
    directions = torch.randn(3 * 8 * 8, 16, generator=torch.Generator().manual_seed(0)) / 14
    return torch.relu(images.flatten(1) @ directions)


@pytest.fixture
def latents() -> torch.Tensor:
    """Of the images to invert."""
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(99))


@pytest.fixture
def images(tiny_generator: nn.Module, latents: torch.Tensor) -> LabeledImages:
    """Images that the generator can make."""
    labels = torch.arange(12) % 3
    pixels = signed_to_uint8(tiny_generator(latents, labels).detach())
    return LabeledImages(pixels, labels, ("a", "b", "c"))


def inverted(
    generator: nn.Module, images: LabeledImages, start: torch.Tensor, **change: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    generator.requires_grad_(False)
    return invert(generator, embed, images, start, replace(CONFIG, **change), normalization=NORMALIZATION)


def normal_start(generator: nn.Module, images: LabeledImages) -> torch.Tensor:
    return starting_latents(generator, None, images, CONFIG, seed=0)


def trained_encoder(generator: nn.Module, config: InversionConfig, **options: Any) -> Encoder:
    return train_encoder(
        generator, steps=config.encoder_steps, batch_size=config.encoder_batch_size, lr=config.lr_encoder, **options
    )


class TestEncoder:
    def test_recovers_latents_where_normal_draws_do_not(
        self, tiny_generator: nn.Module, images: LabeledImages, latents: torch.Tensor, global_rng_untouched: None
    ) -> None:
        encoder = trained_encoder(tiny_generator, CONFIG, seed=0, device=CPU)
        guess = starting_latents(tiny_generator, encoder, images, CONFIG, seed=0)
        assert (guess - latents).square().mean() < 0.5  # 1 for a guess of zero
        assert (normal_start(tiny_generator, images) - latents).square().mean() > 1

    def test_gives_inversion_a_better_start(self, tiny_generator: nn.Module, images: LabeledImages) -> None:
        encoder = trained_encoder(tiny_generator, CONFIG, seed=0, device=CPU)
        guess = starting_latents(tiny_generator, encoder, images, CONFIG, seed=0)
        normal = normal_start(tiny_generator, images)
        for steps in (0, 5):
            losses, from_normal = (inverted(tiny_generator, images, z, steps=steps)[1] for z in (guess, normal))
            assert losses.mean() < 0.5 * from_normal.mean()

    def test_the_seed_decides(self, tiny_generator: nn.Module) -> None:
        short = replace(CONFIG, encoder_steps=2)
        first, again, other = (
            trained_encoder(tiny_generator, short, seed=seed, device=CPU).latent.weight for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_its_guess_does_not_depend_on_the_batch_size(
        self, tiny_generator: nn.Module, images: LabeledImages
    ) -> None:
        encoder = trained_encoder(tiny_generator, replace(CONFIG, encoder_steps=2), seed=0, device=CPU)
        whole, parts = (
            starting_latents(tiny_generator, encoder, images, replace(CONFIG, batch_size=size), seed=0)
            for size in (12, 5)
        )
        torch.testing.assert_close(whole, parts)

    @pytest.mark.parametrize("minutes", [1, 2, 4])
    def test_stopped_again_and_again_it_becomes_the_same(
        self, tiny_generator: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int
    ) -> None:
        config = replace(CONFIG, encoder_steps=7)
        whole = trained_encoder(tiny_generator, config, seed=0, device=CPU)
        looks = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: 60.0 * next(looks))  # whoever looks at it takes a minute
        run_on(monkeypatch, clock)
        stops = 0
        while True:
            time_limit = TimeLimit(minutes, tmp_path)
            try:
                checkpointer = Checkpointer(tmp_path / "encoder", {}, minutes=1000, time_limit=time_limit)
                encoder = trained_encoder(tiny_generator, config, seed=0, device=CPU, checkpointer=checkpointer)
                break
            except OutOfTimeError:
                stops += 1
                assert stops < 10
        assert stops >= 2
        for name, tensor in whole.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], tensor)

    @pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 12), (28, 28), (32, 32), (8, 16), (20, 3)])
    def test_takes_images_of_any_size(self, size: tuple[int, int]) -> None:
        encoder = Encoder((1, *size), num_classes=3, latent_dim=5, width=8)
        assert encoder(torch.zeros(2, 1, *size), torch.tensor([0, 2])).shape == (2, 5)


class TestInvert:
    def test_lowers_the_loss_of_every_image(self, tiny_generator: nn.Module, images: LabeledImages) -> None:
        start = normal_start(tiny_generator, images)
        _, before = inverted(tiny_generator, images, start, steps=0)
        found, after = inverted(tiny_generator, images, start)
        assert (after < 0.5 * before).all()
        assert not torch.equal(found, start)

    def test_finds_the_latents_of_the_generators_own_images(
        self, tiny_generator: nn.Module, images: LabeledImages, latents: torch.Tensor
    ) -> None:
        found, _ = inverted(tiny_generator, images, normal_start(tiny_generator, images), steps=300)
        torch.testing.assert_close(found, latents, rtol=0, atol=0.15)

    def test_the_batch_size_does_not_change_the_result(self, tiny_generator: nn.Module, images: LabeledImages) -> None:
        start = normal_start(tiny_generator, images)
        whole, losses = inverted(tiny_generator, images, start)
        for rows in torch.arange(12).split(5):
            part, part_losses = inverted(tiny_generator, images.select(rows), start[rows])
            torch.testing.assert_close(part, whole[rows], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(part_losses, losses[rows], rtol=1e-3, atol=1e-5)

    def test_reports_the_losses_before_each_step_and_at_the_end(
        self, tiny_generator: nn.Module, images: LabeledImages
    ) -> None:
        reports: list[tuple[int, torch.Tensor]] = []
        _, losses = invert(
            tiny_generator,
            embed,
            images,
            normal_start(tiny_generator, images),
            CONFIG,
            normalization=NORMALIZATION,
            on_step=lambda step, losses: reports.append((step, losses)),
        )
        assert [step for step, _ in reports] == list(range(CONFIG.steps + 1))
        assert torch.equal(reports[-1][1], losses)
        assert not any(losses.requires_grad for _, losses in reports)

    def test_no_steps_return_the_start(self, tiny_generator: nn.Module, images: LabeledImages) -> None:
        start = normal_start(tiny_generator, images)
        assert torch.equal(inverted(tiny_generator, images, start, steps=0)[0], start)

    def test_the_loss_is_that_of_equation_1_on_standardized_images(
        self, tiny_generator: nn.Module, images: LabeledImages
    ) -> None:
        start = normal_start(tiny_generator, images)
        _, losses = inverted(tiny_generator, images, start, steps=0, pixel_weight=0.3)
        signed, made = unit_to_signed(uint8_to_unit(images.images)), tiny_generator(start, images.labels)
        # (unit - 0.5) / 0.25 is twice the signed image
        features = (embed(2 * made) - embed(2 * signed)).square().mean(dim=1)
        torch.testing.assert_close(losses, features + 0.3 * (made - signed).square().mean(dim=(1, 2, 3)))

    def test_gradients_reach_the_latents_only(self, tiny_generator: nn.Module, images: LabeledImages) -> None:
        inverted(tiny_generator, images, normal_start(tiny_generator, images), steps=2)
        assert not [parameter for parameter in tiny_generator.parameters() if parameter.grad is not None]
