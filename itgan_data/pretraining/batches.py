"""The batches of GAN training: each image, latent and augmentation is a function of (seed, update, row)."""

import torch

from .. import draws
from ..augmentation import Augmentation, CropFlip, diff_augment
from ..draws import Stream
from ..images import LabeledImages, uint8_to_unit, unit_to_signed
from .config import GeneratorTrainerConfig

_FIXED = -1  # in place of an update: for what stays the same throughout the run


class Batches:
    """The real images, latents and augmentations of every update.

    An update is `(step, substep)`: substep k is the k-th update of the discriminator in a step, and the last one that
    of the generator. Rows are positions in the batch: a row has the same contents whichever other rows are asked for.

    Args:
        config: batch size, number of updates and augmentation.
        real_images: on the device of the batches.
        sample_weights: float `[N]`; every row draws an image with probability proportional to its weight. None for
            passes over all images in random order.

    Raises:
        ValueError: weights that do not fit the images, are negative or not finite, or are all zero for a class.
    """

    def __init__(
        self, config: GeneratorTrainerConfig, real_images: LabeledImages, sample_weights: torch.Tensor | None = None
    ) -> None:
        self.config = config
        self.real_images = real_images
        self.device = real_images.images.device
        self.augment: Augmentation = diff_augment(config.augmentation)
        self.cumulated: torch.Tensor | None = None
        if sample_weights is not None:
            _check_weights(sample_weights, real_images)
            self.cumulated = sample_weights.detach().cpu().double().cumsum(0)

    def real(self, step: int, substep: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signed real images and their labels."""
        if self.cumulated is None:
            indices = self._next(step, substep, rows).to(self.device)
        else:
            indices = self._weighted(self._position(step, substep), rows).to(self.device)
        images = unit_to_signed(uint8_to_unit(self.real_images.images[indices]))
        if self.config.flips:
            images = CropFlip(padding=0)(images, self._uniform(step, substep, rows, 3, stream=Stream.GAN_FLIP))
        return images, self.real_images.labels[indices]

    def latents(self, step: int, substep: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard normal latents and uniform labels."""
        latents = self._normal(self._position(step, substep), rows)
        uniforms = self._uniform(step, substep, rows, 1, stream=Stream.GAN_LABELS).squeeze(1)
        return latents, (uniforms * self.config.generator.num_classes).long()

    def augmented(self, images: torch.Tensor, step: int, substep: int, rows: torch.Tensor) -> torch.Tensor:
        """Differentiable augmentation of signed images; rows of synthetic images follow those of the real ones."""
        uniforms = self._uniform(step, substep, rows, self.augment.num_draws, stream=Stream.GAN_AUGMENTATION)
        return self.augment(images, uniforms).contiguous(memory_format=torch.channels_last)

    def reference(self, count: int) -> LabeledImages:
        """A fixed sample of the real images that the discriminator gets, not mirrored."""
        if self.cumulated is None:
            return self.real_images.select(self._order(_FIXED)[:count].to(self.device))
        return self.real_images.select(self._weighted(_FIXED, torch.arange(count)).to(self.device))

    def fixed_latents(self, count: int) -> torch.Tensor:
        """Fixed standard normal latents `[count, latent_dim]`."""
        return self._normal(_FIXED, torch.arange(count))

    def _normal(self, position: int, rows: torch.Tensor) -> torch.Tensor:
        seed, width = self.config.seed, self.config.generator.latent_dim
        return draws.normal(seed, position, rows.to(self.device), width, stream=Stream.GAN_LATENTS)

    def _order(self, epoch: int) -> torch.Tensor:
        return draws.permutation(self.config.seed, epoch, len(self.real_images), stream=Stream.GAN_ORDER)

    def _position(self, step: int, substep: int) -> int:
        return step * (self.config.discriminator_steps + 1) + substep

    def _uniform(self, step: int, substep: int, rows: torch.Tensor, count: int, *, stream: Stream) -> torch.Tensor:
        return draws.uniform(
            self.config.seed, self._position(step, substep), rows.to(self.device), count, stream=stream
        )

    def _next(self, step: int, substep: int, rows: torch.Tensor) -> torch.Tensor:
        """Indices of the next images in passes over the data, each in a new random order."""
        config, count = self.config, len(self.real_images)
        positions = (step * config.discriminator_steps + substep) * config.batch_size + rows
        epochs = torch.unique(positions // count)
        order = torch.cat([self._order(int(epoch)) for epoch in epochs])
        return order[positions - epochs[0] * count]

    def _weighted(self, position: int, rows: torch.Tensor) -> torch.Tensor:
        """Indices drawn with replacement, with probabilities proportional to the weights."""
        assert self.cumulated is not None
        # One draw has 24 bits, too few to reach each of millions of images with the right probability; two have 48.
        coarse, fine = draws.uniform(self.config.seed, position, rows, 2, stream=Stream.GAN_WEIGHTED).double().unbind(1)
        return torch.searchsorted(self.cumulated, (coarse + fine * 2**-24) * self.cumulated[-1], right=True)


def _check_weights(weights: torch.Tensor, real_images: LabeledImages) -> None:
    if weights.shape != (len(real_images),) or not weights.is_floating_point():
        raise ValueError(
            f"sample_weights must be float [{len(real_images)}], one for each real image, "
            f"got {weights.dtype} {tuple(weights.shape)}"
        )
    if not weights.isfinite().all() or weights.min() < 0:
        raise ValueError("sample_weights must be finite and not negative: they are probabilities up to scale")
    shares = torch.zeros(real_images.num_classes, dtype=torch.float64)
    shares.index_add_(0, real_images.labels.cpu(), weights.detach().cpu().double())
    if not shares.all():
        label = int((shares == 0).nonzero()[0])
        raise ValueError(
            f"the sample_weights of class {real_images.class_names[label]!r} are all zero, so its images would never "
            "be seen; give one of them a positive weight"
        )
