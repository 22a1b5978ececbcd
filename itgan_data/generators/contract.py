"""What the package requires of any generator: the sizes it states, and the images it makes."""

import itertools
import reprlib
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import draws
from ..draws import Stream

_PAIRS = 4  # of latents with one label
_LEVEL = 2 / 255  # between two values of uint8, in signed images


class ImageGenerator(nn.Module):
    """The type of a generator: called as `generator(latents, labels)`, it returns signed images `[N, *image_shape]`.

    Latents are float `[N, latent_dim]`, labels int64 `[N]`. It adds nothing to `nn.Module` but the types of three
    attributes, so a module need not be derived from it: `as_generator` takes any module that has them.
    """

    latent_dim: int
    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    """Of one that was read from a file with them, else None or missing."""


def as_generator(module: nn.Module) -> ImageGenerator:
    """The module, out of `DataParallel` or `DistributedDataParallel` if it is in one, after a check of its sizes.

    Raises:
        ValueError: one of `latent_dim`, `num_classes` and `image_shape` is missing or impossible.
    """
    while isinstance(wrapper := getattr(module, "_orig_mod", module), (nn.DataParallel, DistributedDataParallel)):
        module = wrapper.module  # torch.compile keeps the module in `_orig_mod` and hands its attributes on
    sizes = {name: getattr(module, name, None) for name in ("latent_dim", "num_classes", "image_shape")}
    shape = sizes["image_shape"]
    sides = shape if isinstance(shape, (tuple, list)) and len(shape) == 3 else (None,)
    if not all(isinstance(size, int) and size > 0 for size in (sizes["latent_dim"], sizes["num_classes"], *sides)):
        raise ValueError(
            "a generator has the attributes latent_dim and num_classes, positive integers, and image_shape, (C, H, W); "
            f"{type(module).__name__} has {', '.join(f'{name}={reprlib.repr(size)}' for name, size in sizes.items())}"
        )
    return cast(ImageGenerator, module)


@torch.no_grad()
def probe_images(module: nn.Module) -> torch.Tensor:
    """Generate a few signed images `[8, C, H, W]` from normal draws, to see whether the module is of any use.

    Args:
        module: in evaluation mode.

    Raises:
        ValueError: its sizes are not stated, or its images are of another shape, not finite, or all the same.
    """
    generator, name = as_generator(module), type(module).__name__
    device = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0)).device
    rows = torch.arange(2 * _PAIRS, device=device)
    latents = draws.normal(0, 0, rows, generator.latent_dim, stream=Stream.PROBE)
    images = generator(latents, rows // 2 % generator.num_classes)
    expected = (len(rows), *generator.image_shape)
    if not isinstance(images, torch.Tensor) or images.shape != expected or not images.is_floating_point():
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"{name} must make float images {list(expected)} of {len(rows)} latents, got {got}")
    if not images.isfinite().all():
        raise ValueError(f"{name} makes images with NaN or infinity; expected signed ones, load its trained weights")
    if (images[0::2] - images[1::2]).abs().max() < _LEVEL:
        raise ValueError(
            f"{name} makes the same image whatever its latents are (values from {images.min():.3g} to "
            f"{images.max():.3g}), so none can be learned; train it, or load its trained weights"
        )
    return images
