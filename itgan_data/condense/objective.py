"""The objectives of condensation: for the latents of one step, the losses and their gradient."""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from .. import draws
from ..augmentation import DSA, Augmentation, Compose
from ..draws import Stream
from ..images import LabeledImages, signed_to_unit, uint8_to_unit
from .config import CondenserConfig
from .inversion import Embedding, Images
from .matching import distribution_matching, gradient_distance, pairwise_regularizer, total_loss
from .network_source import NetworkSource

# Pixels of the images in one forward pass. CPU: 32 images of 32 px, whose largest feature maps (128 channels, 16 MiB of
# float32) fit the cache and stay below 32 MiB, above which glibc gets new pages, cleared by the kernel, for every map.
# GPU: 1024 such images, enough to keep it busy.
_PIXELS_CPU = 1 << 15
_PIXELS_GPU = 1 << 20


@dataclass(frozen=True, eq=False)
class Batch:
    """Latents that are learned together, the same number per class."""

    latents: torch.Tensor
    """`[num_classes, n, latent_dim]`."""
    sources: torch.Tensor
    """`[num_classes, n]`: index of the real image that each latent is paired with."""
    classes: torch.Tensor
    """`[num_classes]`: their labels."""

    @property
    def labels(self) -> torch.Tensor:
        """`[num_classes * n]`, sorted by class."""
        return self.classes.repeat_interleave(self.latents.shape[1])

    def of_classes(self, rows: slice) -> "Batch":
        return Batch(self.latents[rows], self.sources[rows], self.classes[rows])

    def select(self, columns: torch.Tensor) -> "Batch":
        """The latents at `columns` `[num_classes, k]`, whose row c has indices within class c."""
        rows = torch.arange(len(columns)).unsqueeze(1)
        return Batch(self.latents[rows, columns], self.sources[rows, columns], self.classes)

    def chunks(self, size: int) -> Iterator["Batch"]:
        """Consecutive batches of at most `size` latents per class."""
        parts = zip(torch.split(self.latents, size, dim=1), torch.split(self.sources, size, dim=1), strict=True)
        return (Batch(latents, sources, self.classes) for latents, sources in parts)


class Objective(Protocol):
    """What the latents of a batch minimise."""

    def gradient(self, batch: Batch, *, group: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each class `[num_classes]`, and the gradient of their sum in the shape of the latents."""
        ...


@dataclass(eq=False)
class Matching:
    """What all objectives share: the network, the real images and the augmentation of each (group, step).

    Every class has its own random numbers, so its losses do not depend on which other classes are in the step. Real and
    synthetic images of a class share one row of augmentation draws.
    """

    generate: Images
    networks: NetworkSource
    real_images: LabeledImages
    by_class: list[torch.Tensor]
    """Indices of each class's images in `real_images`."""
    config: CondenserConfig

    def __post_init__(self) -> None:
        self.augment: Augmentation = DSA(self.config.strategy) if self.config.strategy else Compose()
        self.device = self.real_images.images.device
        self.images_at_once = _images_at_once(self.real_images, self.config)

    def draw(self, classes: torch.Tensor, *, group: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Load the network of a step and draw its random numbers.

        Returns:
            Augmentation draws `[num_classes, num_draws]`, and indices of real images `[num_classes, real_batch_size]`,
            drawn with replacement.
        """
        self.networks.load(group, step)
        seed, rows = self.config.seed, classes.cpu() + group * len(self.by_class)
        uniforms = draws.uniform(seed, step, rows, self.augment.num_draws, stream=Stream.MATCHING_AUGMENTATION)
        chances = draws.uniform(seed, step, rows, self.config.real_batch_size, stream=Stream.MATCHING_REAL)
        known = [self.by_class[label] for label in classes.tolist()]
        return uniforms, torch.stack([own[(row * len(own)).long()] for own, row in zip(known, chances, strict=True)])

    def real(self, indices: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Augmented real images at `indices` `[num_classes, n]`, sorted by class."""
        return self._augmented(uint8_to_unit(self.real_images.images[indices.flatten().to(self.device)]), uniforms)

    def synthetic(self, batch: Batch, uniforms: torch.Tensor) -> torch.Tensor:
        """Augmented synthetic images, sorted by class."""
        images = self.generate(batch.latents.flatten(0, 1), batch.labels.to(self.device))
        return self._augmented(signed_to_unit(images), uniforms)

    def chunks(self, batch: Batch) -> list[Batch]:
        """The batch in chunks of `chunk_size`, or whole."""
        return list(batch.chunks(self.config.chunk_size or batch.latents.shape[1]))

    def blocks(self, num_classes: int, count: int) -> list[slice]:
        """Blocks of classes, so that a block with `count` images per class fits one forward pass."""
        size = max(1, self.images_at_once // min(count, self.config.chunk_size or count))
        return [slice(first, first + size) for first in range(0, num_classes, size)]

    def share(self, num_classes: int) -> int:
        """Images per class in one forward pass of `num_classes` classes."""
        return max(1, min(self.images_at_once // num_classes, self.config.chunk_size or sys.maxsize))

    def _augmented(self, unit: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        rows = uniforms.repeat_interleave(len(unit) // len(uniforms), dim=0)
        images = self.augment(self.config.normalization.standardize(unit), rows)
        return images.contiguous(memory_format=torch.channels_last)


def _images_at_once(real_images: LabeledImages, config: CondenserConfig) -> int:
    if config.networks is not None and config.networks.batch_norm:
        return sys.maxsize  # each image's embedding depends on all images of the step
    pixels = _PIXELS_CPU if real_images.images.device.type == "cpu" else _PIXELS_GPU
    return max(1, pixels // math.prod(real_images.image_shape[1:]))


class DistributionObjective:
    """Distance between the mean embeddings of each class, with the pairwise regularizer: the loss of Algorithm 1.

    Classes are independent, so the device decides how many are computed together. A class with more latents than
    `chunk_size` gets its exact gradient in two passes over its chunks, in the memory of one chunk.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 2-4.

    Args:
        matching: draws images and augmentation.
        embed: the embedding of the current network.
    """

    def __init__(self, matching: Matching, embed: Embedding) -> None:
        self.matching = matching
        self.embed = embed
        self.weight = matching.config.regularizer_weight

    def gradient(self, batch: Batch, *, group: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        uniforms, indices = self.matching.draw(batch.classes, group=group, step=step)
        blocks = self.matching.blocks(*indices.shape)
        real_means = torch.cat([self._real(indices[rows], uniforms[rows]).mean(dim=1) for rows in blocks])
        losses, gradients = [], []
        for rows in self.matching.blocks(*batch.sources.shape):
            chunks = self.matching.chunks(batch.of_classes(rows))
            gradient_of = self._at_once if len(chunks) == 1 else self._in_chunks
            loss, latent_gradient = gradient_of(chunks, real_means[rows], uniforms[rows])
            losses.append(loss)
            gradients.append(latent_gradient)
        return torch.cat(losses), torch.cat(gradients)

    def _at_once(
        self, chunks: list[Batch], real_means: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = _leaf(chunks[0])
        synthetic = self._synthetic(batch, uniforms)
        losses = distribution_matching(real_means, synthetic.mean(dim=1))
        if self.weight > 0:
            losses = total_loss(losses, self._regularizer(batch, synthetic, uniforms), self.weight)
        (gradient,) = torch.autograd.grad(losses.sum(), batch.latents)
        return losses.detach(), gradient

    def _in_chunks(
        self, chunks: list[Batch], real_means: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The loss of a class with n latents z_i, embeddings e(z_i) and pair distances r_i is
        #     L = (1 - w) |m - m_real|^2 + w/n sum_i r_i   with the mean   m = 1/n sum_i e(z_i).
        # By the chain rule, with the direction d = 2 (1 - w)/n (m - m_real),
        #     dL/dz_i = d/dz_i <d, e(z_i)> + w/n dr_i/dz_i   where d is held constant.
        # The first pass computes m, and so d, without a graph. The second pass differentiates the right side chunk by
        # chunk, so that only the graph of one chunk is in memory.
        count = sum(chunk.latents.shape[1] for chunk in chunks)
        with torch.no_grad():
            sums = [self._synthetic(chunk, uniforms).sum(dim=1) for chunk in chunks]
            means = torch.stack(sums).sum(dim=0) / count
            losses = (1.0 - self.weight) * distribution_matching(real_means, means)
            direction = (2.0 * (1.0 - self.weight) / count) * (means - real_means).unsqueeze(1)
        gradients: list[torch.Tensor] = []
        for chunk in map(_leaf, chunks):
            synthetic = self._synthetic(chunk, uniforms)
            slope = (direction * synthetic).sum()
            if self.weight > 0:
                share = self.weight * chunk.latents.shape[1] / count
                regularizer = share * self._regularizer(chunk, synthetic, uniforms)
                losses = losses + regularizer.detach()
                slope = slope + regularizer.sum()
            gradients += torch.autograd.grad(slope, chunk.latents)
        return losses, torch.cat(gradients, dim=1)

    def _regularizer(self, batch: Batch, synthetic: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return pairwise_regularizer(self._real(batch.sources, uniforms), synthetic)

    @torch.no_grad()
    def _real(self, indices: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        parts = torch.split(indices, self.matching.share(len(indices)), dim=1)
        return torch.cat([self._embeddings(self.matching.real(part, uniforms), len(part)) for part in parts], dim=1)

    def _synthetic(self, batch: Batch, uniforms: torch.Tensor) -> torch.Tensor:
        parts = batch.chunks(self.matching.share(len(batch.classes)))
        shown = (self.matching.synthetic(part, uniforms) for part in parts)
        return torch.cat([self._embeddings(images, len(uniforms)) for images in shown], dim=1)

    def _embeddings(self, images: torch.Tensor, num_classes: int) -> torch.Tensor:
        embeddings = self.embed(images)
        return embeddings.view(num_classes, -1, embeddings.shape[1])


class GradientObjective:
    """Distance between the network's weight gradients on the real and on the synthetic images of each class.

    A class with more latents than `chunk_size` takes two passes here too, with the exact gradient.

    Source: Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching" (DC), 2021, Algorithm 1; with
    augmentation Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation" (DSA), 2021.

    Args:
        matching: draws images and augmentation.
        classify: the logits of the current network.
    """

    def __init__(self, matching: Matching, classify: Embedding) -> None:
        self.matching = matching
        self.classify = classify
        network = matching.networks.network.requires_grad_(True)
        self.parameters = [parameter for parameter in network.parameters() if parameter.ndim > 1]

    def gradient(self, batch: Batch, *, group: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        uniforms, indices = self.matching.draw(batch.classes, group=group, step=step)
        losses, gradients = [], []
        for row in range(len(batch.classes)):
            own = slice(row, row + 1)
            label = batch.classes[own].to(self.matching.device)
            part = batch.of_classes(own)
            real_parts = torch.split(indices[own], self.matching.config.chunk_size or indices.shape[1], dim=1)
            shown = (self.matching.real(part, uniforms[own]) for part in real_parts)
            real = self._mean_gradient(shown, label, indices.shape[1])
            chunks = self.matching.chunks(part)
            gradient_of = self._at_once if len(chunks) == 1 else self._in_chunks
            loss, latent_gradient = gradient_of(chunks, real, label, uniforms[own])
            losses.append(loss)
            gradients.append(latent_gradient)
        return torch.stack(losses), torch.cat(gradients)

    def _at_once(
        self, chunks: list[Batch], real: list[torch.Tensor], label: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = _leaf(chunks[0])
        images = self.matching.synthetic(batch, uniforms)
        loss = gradient_distance(real, self._weight_gradient(images, label, len(images), create_graph=True))
        (gradient,) = torch.autograd.grad(loss, batch.latents)
        return loss.detach(), gradient

    def _in_chunks(
        self, chunks: list[Batch], real: list[torch.Tensor], label: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # L = D(g_real, g), where g = 1/n sum_i g_i is the mean weight gradient on the n synthetic images. With the
        # direction d = dD/dg held constant,
        #     dL/dz_i = d/dz_i <d, g_i / n>.
        # As in DistributionObjective: the first pass computes g and d, the second differentiates chunk by chunk.
        count = sum(chunk.latents.shape[1] for chunk in chunks)
        means = self._mean_gradient((self._shown(chunk, uniforms) for chunk in chunks), label, count)
        loss = gradient_distance(real, [mean.requires_grad_(True) for mean in means])
        directions = torch.autograd.grad(loss, means)
        gradients: list[torch.Tensor] = []
        for chunk in map(_leaf, chunks):
            images = self.matching.synthetic(chunk, uniforms)
            parts = self._weight_gradient(images, label, count, create_graph=True)
            slope = torch.stack([(way * part).sum() for way, part in zip(directions, parts, strict=True)]).sum()
            gradients += torch.autograd.grad(slope, chunk.latents)
        return loss.detach(), torch.cat(gradients, dim=1)

    @torch.no_grad()
    def _shown(self, batch: Batch, uniforms: torch.Tensor) -> torch.Tensor:
        return self.matching.synthetic(batch, uniforms)

    def _mean_gradient(self, parts: Iterable[torch.Tensor], label: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Weight gradient, averaged over `count` images that come in parts."""
        means = [torch.zeros_like(parameter) for parameter in self.parameters]
        for images in parts:
            for mean, part in zip(means, self._weight_gradient(images, label, count), strict=True):
                mean += part
        return means

    def _weight_gradient(
        self, images: torch.Tensor, label: torch.Tensor, count: int, *, create_graph: bool = False
    ) -> list[torch.Tensor]:
        """Gradient of the cross entropy, summed over images and divided by `count`, one tensor per parameter."""
        entropy = F.cross_entropy(self.classify(images), label.expand(len(images)), reduction="sum") / count
        return list(torch.autograd.grad(entropy, self.parameters, create_graph=create_graph))


def _leaf(batch: Batch) -> Batch:
    """The same batch with latents that are a leaf of a new graph."""
    return Batch(batch.latents.detach().requires_grad_(True), batch.sources, batch.classes)
