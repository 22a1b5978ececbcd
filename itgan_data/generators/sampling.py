"""Many images of a generator: without gradients, in chunks, in a chosen precision."""

import math

import torch
from torch import nn

from .contract import as_generator

# Numbers in the largest map of features of a chunk. CPU: 16 MiB of float32, which stays in the cache and below the
# 32 MiB from which glibc has the kernel clear fresh pages for every map. GPU: 256 MiB, enough to keep it busy.
_MAP_SIZE_CPU = 1 << 22
_MAP_SIZE_GPU = 1 << 26
_CHANNELS_IF_UNKNOWN = 256


@torch.no_grad()
def generate(
    generator: nn.Module,
    latents: torch.Tensor,
    labels: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Generate the images of all latents, in chunks that bound the memory in use.

    The generator may be compiled in place beforehand: `generator.compile()`, or
    `generator.compile(mode="reduce-overhead")`, which replays CUDA graphs.

    Args:
        generator: called as `generator(latents, labels)`, returns signed images; in evaluation mode.
        latents: `[N, latent_dim]` on the generator's device.
        labels: int64 `[N]`, there too.
        dtype: torch.bfloat16 or torch.float16 compute under autocast, others in the generator's own precision.
        chunk: images per call; by default what fits the device (see `default_chunk`).

    Returns:
        Signed float32 images `[N, C, H, W]`.

    Raises:
        ValueError: chunk is not positive, or the generator returns another shape.
    """
    image_shape = as_generator(generator).image_shape
    weights = next(generator.parameters(), latents)  # float64 where that is torch's default dtype
    latents = latents.to(weights.dtype)
    chunk = default_chunk(generator, latents.device) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    images = torch.empty((len(latents), *image_shape), dtype=torch.float32, device=latents.device)
    reduced = dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(latents.device.type, dtype=dtype if reduced else None, enabled=reduced):
        parts = (torch.split(tensor, chunk) for tensor in (images, latents, labels))
        for part, few_latents, few_labels in zip(*parts, strict=True):
            made = generator(few_latents, few_labels)
            if made.shape != part.shape:
                raise ValueError(f"the generator must return images {tuple(part.shape)}, got {tuple(made.shape)}")
            part.copy_(made)  # at once: a CUDA graph returns the same memory every time
    return images


def default_chunk(generator: nn.Module, device: torch.device) -> int:
    """Images per call that keep a device busy.

    A generator without `largest_map` (numbers in its largest map of features per image) is assumed to have 256 channels
    at full resolution.
    """
    unknown = _CHANNELS_IF_UNKNOWN * math.prod(as_generator(generator).image_shape[1:])
    largest: int = getattr(generator, "largest_map", unknown)
    return max(1, (_MAP_SIZE_GPU if device.type == "cuda" else _MAP_SIZE_CPU) // largest)
