from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TinyGenerator
from torch import nn

from itgan_data.generators.contract import as_generator, probe_images


class Making(nn.Module):
    """A generator without weights that makes what it is told to."""

    latent_dim = 2
    num_classes = 3
    image_shape = (1, 2, 2)

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.make(latents)


def images_of(latents: torch.Tensor) -> torch.Tensor:
    return latents.tanh().repeat(1, 2).view(-1, 1, 2, 2)


def test_a_few_images_of_several_classes_are_made(tiny_generator: nn.Module, global_rng_untouched: None) -> None:
    seen = []
    tiny_generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    images = probe_images(tiny_generator)
    ((latents, labels),) = seen
    assert images.shape == (len(latents), 3, 8, 8)
    assert not images.requires_grad
    assert set(labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_that_keeps_the_contract_is_itself(channels: int) -> None:
    module = Making(images_of)
    module.image_shape = [channels, 2, 2]  # type: ignore[assignment]  # as JSON gives it
    assert as_generator(module) is module


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latent_dim", 0),
        ("latent_dim", 2.0),
        ("num_classes", None),
        ("image_shape", 32),
        ("image_shape", (2, 2)),
        ("image_shape", (1, 2, -2)),
    ],
)
def test_sizes_that_cannot_be_are_refused(name: str, value: object) -> None:
    module = Making(images_of)
    setattr(module, name, value)
    with pytest.raises(ValueError, match=rf"a generator has the attributes .*; Making has .*{name}=.*"):
        as_generator(module)


def test_a_module_that_is_no_generator_is_told_what_one_has() -> None:
    with pytest.raises(
        ValueError, match=r"latent_dim and num_classes, .* Linear has latent_dim=None, num_classes=None"
    ):
        probe_images(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda latents: latents, r"must make float images \[8, 1, 2, 2\] of 8 latents, got torch.float32 \[8, 2\]"),
        (lambda latents: [latents], "of 8 latents, got list"),
        (lambda latents: (images_of(latents) * 255).to(torch.uint8), r"float images .*, got torch.uint8"),
        (lambda latents: images_of(latents) / 0, "makes images with NaN or infinity"),
        (
            lambda latents: images_of(latents) * 0 - 1,
            r"the same image whatever its latents are \(values from -1 to -1\)",
        ),
        (lambda latents: images_of(latents) * 1e-4, "so none can be learned; train it, or load its trained weights"),
    ],
    ids=["shape", "list", "bytes", "infinite", "black", "grey"],
)
def test_images_that_are_of_no_use_are_refused(make: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe_images(Making(make))


def test_one_picture_a_class_is_not_enough(tiny_generator: TinyGenerator) -> None:
    with torch.no_grad():
        tiny_generator.directions.zero_()
    with pytest.raises(ValueError, match="TinyGenerator makes the same image whatever its latents are"):
        probe_images(tiny_generator)
