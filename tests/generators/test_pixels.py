import json
from typing import Any

import pytest
import torch

from itgan_data.datasets import CIFAR10
from itgan_data.generators.pixels import Pixels
from itgan_data.generators.store import build_generator, describe_generator
from itgan_data.images import Normalization, signed_to_unit

PIXELS = Pixels((3, 4, 5), 7, CIFAR10.normalization)
UNIT = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6)


def test_a_latent_is_the_standardized_image() -> None:
    assert PIXELS.latent_dim == 60
    latents = CIFAR10.normalization.standardize(UNIT).flatten(1)
    torch.testing.assert_close(signed_to_unit(PIXELS(latents, LABELS)), UNIT)
    assert torch.equal(PIXELS.encode(UNIT, LABELS), latents)


def test_a_step_in_latents_is_a_step_of_what_networks_see() -> None:
    latents = torch.zeros(1, 60, requires_grad=True)
    seen = CIFAR10.normalization.standardize(signed_to_unit(PIXELS(latents, LABELS[:1])))
    seen.sum().backward()
    torch.testing.assert_close(latents.grad, torch.ones(1, 60))


def test_it_has_no_weights_and_is_told_by_its_arguments() -> None:
    assert PIXELS.state_dict() == {}
    other = Pixels((3, 4, 5), 7, Normalization((0.5,) * 3, (0.5,) * 3))
    assert repr(PIXELS) != repr(other)


def test_a_description_builds_it_again() -> None:
    description = json.loads(json.dumps(describe_generator(PIXELS)))
    again = build_generator(description, {})
    assert isinstance(again, Pixels)
    assert repr(again) == repr(PIXELS)


@pytest.mark.parametrize(
    "change",
    [
        {"image_shape": [3, 4]},
        {"image_shape": [3, 4, 1 << 40]},
        {"image_shape": None},
        {"num_classes": 0},
        {"num_classes": "7"},
        {"normalization": {"mean": [0.5], "std": [0.5]}},
        {"normalization": {"mean": [0.5] * 3}},
        {"normalization": []},
        {"depth": 3},
    ],
    ids=str,
)
def test_arguments_of_a_damaged_file_are_refused(change: dict[str, Any]) -> None:
    description = {"architecture": "pixels", "arguments": {**PIXELS.arguments, **change}}
    with pytest.raises(ValueError, match="the arguments of the generator do not fit Pixels"):
        build_generator(description, {})


def test_a_normalization_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="normalization has 3 channels and images of"):
        Pixels((1, 8, 8), 2, CIFAR10.normalization)
