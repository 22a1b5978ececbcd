"""What the updates of a training see: each image, latent and augmentation is a function of (seed, update, row)."""

import torch

from .. import draws
from ..augmentation import Augmentation, CropFlip, diff_augment
from ..draws import Stream
from ..images import LabeledImages, uint8_to_unit, unit_to_signed
from .config import GeneratorTrainerConfig

_FIXED = -1  # no update: what is drawn once and looked at throughout the run


class Batches:
    """The real images, latents and augmentations of every update.

    An update is `(step, substep)`: those of the discriminator are counted from 0, and that of the generator comes
    after them. Rows are positions in the batch, so who asks for some of them gets what the whole batch has there.

    Args:
        config: batch size, number of updates and augmentation.
        real_images: on the device where batches are wanted.
        sample_weights: None for passes over the real images in random order; else float `[N]`, and every row draws an
            image with a probability proportional to its weight.

    Raises:
        ValueError: weights that do not fit the images, are negative or not finite, or leave a class without any.
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
        indices = self._next(step, substep, rows) if self.cumulated is None else self._drawn(step, substep, rows)
        indices = indices.to(self.device)
        images = unit_to_signed(uint8_to_unit(self.real_images.images[indices]))
        if self.config.flips:
            images = CropFlip(padding=0)(images, self._uniform(step, substep, rows, 3, stream=Stream.GAN_FLIP))
        return images, self.real_images.labels[indices]

    def latents(self, step: int, substep: int, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard normal latents, and labels of which all classes are equally likely."""
        latents = self._normal(self._position(step, substep), rows)
        uniforms = self._uniform(step, substep, rows, 1, stream=Stream.GAN_LABELS).squeeze(1)
        return latents, (uniforms * self.config.generator.num_classes).long()

    def augmented(self, images: torch.Tensor, step: int, substep: int, rows: torch.Tensor) -> torch.Tensor:
        """What the discriminator sees of signed images; differentiable. Synthetic ones follow the real rows."""
        uniforms = self._uniform(step, substep, rows, self.augment.num_draws, stream=Stream.GAN_AUGMENTATION)
        return self.augment(images, uniforms).contiguous(memory_format=torch.channels_last)

    def reference(self, count: int) -> LabeledImages:
        """Real images as the discriminator gets them, without mirroring: always the same ones."""
        if self.cumulated is None:
            return self.real_images.select(self._order(_FIXED)[:count].to(self.device))
        return self.real_images.select(self._weighted(_FIXED, torch.arange(count)).to(self.device))

    def fixed_latents(self, count: int) -> torch.Tensor:
        """Standard normal latents `[count, latent_dim]`, always the same ones."""
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
        """Indices of the next images of a pass over the data in random order."""
        config, count = self.config, len(self.real_images)
        positions = (step * config.discriminator_steps + substep) * config.batch_size + rows
        epochs = torch.unique(positions // count)
        order = torch.cat([self._order(int(epoch)) for epoch in epochs])
        return order[positions - epochs[0] * count]

    def _drawn(self, step: int, substep: int, rows: torch.Tensor) -> torch.Tensor:
        return self._weighted(self._position(step, substep), rows)

    def _weighted(self, position: int, rows: torch.Tensor) -> torch.Tensor:
        """Indices drawn with replacement, by inverting the cumulated weights at a uniform number of 48 bits."""
        assert self.cumulated is not None
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
