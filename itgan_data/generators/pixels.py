"""Pixels as parameters: a generator without weights, whose latent is the image."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..config import AtLeast, AtMost, check, from_json
from ..images import Normalization, unit_to_signed
from .contract import ImageGenerator

_Size = Annotated[int, AtLeast(1), AtMost(1 << 16)]  # of a side, and the number of classes, in a file


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    image_shape: tuple[_Size, _Size, _Size]
    num_classes: _Size
    normalization: Normalization

    def __post_init__(self) -> None:
        check(self)


class Pixels(ImageGenerator):
    """Shows latents as images: a latent is a standardized image `[C * H * W]`, one value per pixel and channel.

    With it whatever learns latents learns pixels, on the scale that published learning rates of pixels are meant for.
    Values are not clamped, so an image can leave [-1, 1].

    Args:
        image_shape: `(C, H, W)`.
        num_classes: of the labels, which do not change an image.
        normalization: of the networks that the images are for.

    Raises:
        ValueError: sizes below 1, or a normalisation of other channels.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, normalization: Normalization) -> None:
        super().__init__()
        given = _Arguments(image_shape=image_shape, num_classes=num_classes, normalization=normalization)
        self.image_shape = given.image_shape  # no longer a list or a mapping, as in JSON
        self.latent_dim = math.prod(self.image_shape)
        self.num_classes = num_classes
        self.normalization = normalization = given.normalization
        if len(normalization.mean) != self.image_shape[0]:
            raise ValueError(
                f"normalization has {len(normalization.mean)} channels and images of {self.image_shape} have "
                f"{self.image_shape[0]}; give one mean and std per channel"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON values that build it again."""
        return {
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "normalization": {"mean": list(self.normalization.mean), "std": list(self.normalization.std)},
        }

    def extra_repr(self) -> str:
        return str(self.arguments)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Signed images `[N, C, H, W]` of latents `[N, latent_dim]`."""
        return unit_to_signed(self.normalization.to_unit(latents.view(-1, *self.image_shape)))

    def encode(self, unit_images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The latents `[N, latent_dim]` of unit images `[N, C, H, W]`."""
        return self.normalization.standardize(unit_images).flatten(1)


def build_pixels(arguments: object) -> Pixels:
    """`Pixels` of the JSON values in `Pixels.arguments`.

    Raises:
        ValueError: other values.
    """
    try:
        return from_json(Pixels, arguments)
    except ValueError as error:
        raise ValueError(f"the arguments of the generator do not fit Pixels ({error})") from error
