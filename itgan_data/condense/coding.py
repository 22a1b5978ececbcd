"""Real images as codes: one pass of a codec's encoder, and a context model learned for what it gave."""

import copy
from collections.abc import Callable

import torch

from ..config import Precision, autocast
from ..generators.codec import Codec
from ..generators.context import ContextShape
from ..images import LabeledImages
from ..latents.coded import CodedRows, turns
from ..latents.stored import LatentSet
from ..pretraining.context_fit import ContextFit, fit_context
from ..pretraining.rate import default_groups

_BATCH = 500  # images encoded at a time
_MANY = 25_000  # images whose codes take megabytes, of which a context model of 60 kB saves more than it takes


def decoder_at(codec: Codec, step: float) -> Codec:
    """A codec without its encoder, for codes of a step: what a bundle holds beside them.

    Raises:
        ValueError: a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    decoder = Codec(codec.config, encoder=False).to(codec.step.device)
    state = {name: tensor for name, tensor in codec.state_dict().items() if not name.startswith("encoder.")}
    decoder.load_state_dict({**state, "step": torch.tensor(step)})
    return decoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def default_context(codec: Codec, count: int) -> ContextShape:
    """A context model for the codes of so many images: the more there are, the larger a model repays its own bytes."""
    config = codec.config
    large = count >= _MANY
    return ContextShape(
        map_size=config.map_size,
        groups=default_groups(config.channels),
        num_classes=config.num_classes,
        hidden=64 if large else 32,
        group_hidden=48 if large else 24,
        neighbor_channels=80 if large else 44,
        own_channels=80 if large else 64,
    )


@torch.no_grad()
def code_images(
    codec: Codec,
    images: LabeledImages,
    *,
    step: float,
    fit: ContextFit,
    shape: ContextShape | None = None,
    indices: torch.Tensor | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> LatentSet:
    """Codes of real images, in an order in which classes take turns, with the context model that codes them.

    Args:
        codec: with its encoder.
        images: real ones.
        step: the width of quantisation; wider takes fewer bytes.
        fit: how the context model is learned.
        shape: of the context model; by default one of `default_context`.
        indices: int64, which images; by default all.
        precision: what the encoder computes in.
        seed: of the context model.
        progress: called after each update of the context model with their number and the bytes of an image.

    Raises:
        ValueError: a codec without encoder, images of another shape, or a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    codec = copy.copy(codec)  # shares all weights; only the step is its own
    codec._buffers = {**codec._buffers, "step": torch.tensor(step, device=codec.step.device)}
    indices = torch.arange(len(images)) if indices is None else indices
    indices = indices[turns(images.labels.cpu()[indices])]
    codes = []
    for part in torch.split(indices, _BATCH):
        unit_images, labels = images.unit_batch(part)
        with autocast(codec.step.device, precision):
            latents = codec.encode(unit_images.to(codec.step.device), labels)
        codes.append(latents.to("cpu", torch.int8))
    matrix, labels = torch.cat(codes), images.labels.cpu()[indices]
    shape = shape or default_context(codec, len(indices))
    maps = matrix.view(-1, codec.config.channels, *codec.config.map_size)
    with torch.enable_grad():
        context = fit_context(shape, maps, labels, fit, seed=seed, progress=progress)
    return LatentSet(CodedRows(matrix, context), labels)
