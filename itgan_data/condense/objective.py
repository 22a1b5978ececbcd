"""The objective of distribution matching as a function of latents, all classes in one pass."""

import torch

from .. import draws
from ..augmentation import DSA
from ..images import LabeledImages, signed_to_unit, uint8_to_unit
from ..latents import LatentSet
from .config import CondenserConfig
from .embedding import EmbeddingPool
from .inversion import Embedding, Images
from .matching import distribution_matching, pairwise_regularizer, total_loss

# Streams of `draws`, one a use, so that no two share numbers.
_REAL, _AUGMENT, _NETWORK = range(20, 23)


class MatchingObjective:
    """The loss of Algorithm 1 and its gradient, for one draw of network, real images and augmentation a step.

    The paper loops over classes; here the images of all classes are one batch, and each class has its own row of
    augmentation draws, shared by its real and synthetic images.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 2-4.

    Args:
        generate: the frozen generator.
        embed: the embedding of the pool's network.
        pool: puts that network in another state each step.
        real_images: the whole real set.
        by_class: the places of each class's images in it.
        config: weight, batch size, augmentation.
    """

    def __init__(
        self,
        generate: Images,
        embed: Embedding,
        pool: EmbeddingPool,
        real_images: LabeledImages,
        by_class: list[torch.Tensor],
        config: CondenserConfig,
    ) -> None:
        self.real_images = real_images
        self.by_class = by_class
        self.pool = pool
        self.config = config
        self.augment = DSA(config.strategy)
        self.device = real_images.images.device
        self.generate = generate
        self.embed = embed

    def gradient(
        self, latents: torch.Tensor, start: LatentSet, *, group: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and its gradient with respect to `latents`.

        Args:
            latents: `[num_classes * n, latent_dim]`, class after class, requiring gradients.
            start: their labels and, in `source_index`, the real image each one is paired with.
            group, step: choose the random numbers.
        """
        rows = torch.arange(len(self.by_class)) + group * len(self.by_class)
        uniforms = draws.uniform(self.config.seed, step, rows, self.augment.num_draws, stream=_AUGMENT)
        self.pool.load_drawn(draws.make_seed(self.config.seed, _NETWORK, group), step)
        weight = self.config.regularizer_weight
        with torch.no_grad():
            real_means = self._embeddings(self._real_unit(self._real_indices(rows, step)), uniforms).mean(dim=1)
        images = self.generate(latents, start.labels.to(self.device))
        synthetic = self._embeddings(signed_to_unit(images), uniforms)
        loss = distribution_matching(real_means, synthetic.mean(dim=1))
        if weight > 0 and start.source_index is not None:
            with torch.no_grad():
                paired = self._embeddings(self._real_unit(start.source_index), uniforms)
            loss = total_loss(loss, pairwise_regularizer(paired, synthetic), weight)
        (gradient,) = torch.autograd.grad(loss, latents)
        return loss.detach(), gradient

    def _embeddings(self, unit: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Embeddings `[num_classes, n, dim]` of unit images, each class augmented under its row of draws."""
        rows = uniforms.repeat_interleave(len(unit) // len(uniforms), dim=0)
        images = self.augment(self.config.normalization.standardize(unit), rows)
        embeddings = self.embed(images.contiguous(memory_format=torch.channels_last))
        return embeddings.view(len(uniforms), -1, embeddings.shape[1])

    def _real_indices(self, rows: torch.Tensor, step: int) -> torch.Tensor:
        """`real_batch_size` real images of each class in turn, drawn with replacement."""
        uniforms = draws.uniform(self.config.seed, step, rows, self.config.real_batch_size, stream=_REAL)
        return torch.cat(
            [places[(row * len(places)).long()] for places, row in zip(self.by_class, uniforms, strict=True)]
        )

    def _real_unit(self, indices: torch.Tensor) -> torch.Tensor:
        return uint8_to_unit(self.real_images.images[indices.to(self.device)])
