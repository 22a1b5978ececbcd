"""Where the embedding network of a step comes from: a pool of trained ones, or random ones, trained along or not."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from .. import draws
from ..augmentation import Augmentation
from ..config import Above, AtLeast, HalfOpen, OneOf, check
from ..draws import Stream
from ..networks import NETWORKS, Classifier, Norm, create_network
from ..running.training import fill, prefixed, training_tensors
from .pool import EmbeddingPool

Standardized = Callable[[], tuple[torch.Tensor, torch.Tensor]]
"""Gives the standardized synthetic images `[N, C, H, W]` of the moment and their labels `[N]`."""


@dataclass(frozen=True, kw_only=True)
class FreshNetworks:
    """Random networks in place of the pool: a new one every step, or one that learns from the synthetic images.

    With `outer_steps=1` these are the random networks of distribution matching (DM), with more the inner loop of
    gradient matching (DC, DSA).
    """

    network: Annotated[str, OneOf(NETWORKS)] = "convnet"
    width: Annotated[int, AtLeast(1)] = 128
    """Channels of a ConvNet's blocks; other networks have one width."""
    norm: Norm = "instance"
    """Of a ConvNet. Batch norm takes its statistics from all classes of a step together."""
    outer_steps: Annotated[int, AtLeast(1)] = 1
    """Matching steps after which another network is drawn."""
    inner_epochs: Annotated[int, AtLeast(0)] = 0
    """Passes over the synthetic images, by which the network is trained between two of these steps."""
    lr: Annotated[float, Above(0)] = 0.01
    momentum: Annotated[float, HalfOpen(0, 1)] = 0.0
    batch_size: Annotated[int, AtLeast(1)] = 256
    """Synthetic images an update of the network."""

    def __post_init__(self) -> None:
        check(self)
        if self.inner_epochs and self.outer_steps == 1:
            raise ValueError("inner_epochs train a network between its outer_steps; raise outer_steps above 1")

    @property
    def batch_norm(self) -> bool:
        """Whether an embedding depends on the other images of its batch, as in every network but the ConvNet."""
        return self.norm == "batch" or self.network != "convnet"


class NetworkSource:
    """What learning needs to know of embedding networks. One network serves all states, so it is compiled once."""

    network: Classifier

    def load(self, group: int, step: int) -> None:
        """Put the network in the state of a step."""

    def train_along(self, synthetic: Standardized, group: int, step: int) -> None:
        """Train the network on the synthetic images, if a later step needs that, now that `step` is done."""

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """What a later `load` needs apart from group and step, after `step` steps."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` gave."""


class PoolSource(NetworkSource):
    """States of a pool, drawn uniformly for each (group, step)."""

    def __init__(self, pool: EmbeddingPool, seed: int) -> None:
        self.pool = pool
        self.network = pool.network
        self.seed = seed

    def load(self, group: int, step: int) -> None:
        self.pool.load_drawn(self.seed, group, step)


class FreshSource(NetworkSource):
    """A random network for every `outer_steps` steps of a group, trained along in between.

    Args:
        config: which network, and how it is trained.
        num_classes, image_shape: of the images.
        augment: applied to the images that the network is trained on.
        seed: of weights, order and augmentation.
        device: where the network computes.
    """

    def __init__(
        self,
        config: FreshNetworks,
        num_classes: int,
        image_shape: tuple[int, int, int],
        *,
        augment: Augmentation,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.image_shape = image_shape
        self.augment = augment
        self.seed = seed
        network = self._create(0, 0).requires_grad_(False)
        self.network: Classifier = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=config.lr, momentum=config.momentum)

    def load(self, group: int, step: int) -> None:
        if step % self.config.outer_steps == 0:
            self.network.load_state_dict(self._create(group, step).state_dict())
            self.optimizer.state.clear()

    def train_along(self, synthetic: Standardized, group: int, step: int) -> None:
        if self.config.inner_epochs == 0 or (step + 1) % self.config.outer_steps == 0:
            return
        images, labels = synthetic()
        seed = draws.make_seed(self.seed, group, stream=Stream.FRESH_ORDER)
        for epoch in range(step * self.config.inner_epochs, (step + 1) * self.config.inner_epochs):
            for indices in _batches(len(images), self.config.batch_size, seed, epoch):
                uniforms = draws.uniform(seed, epoch, indices, self.augment.num_draws, stream=Stream.FRESH_AUGMENTATION)
                uniforms[:, :1] = uniforms[:1, :1]  # the published training picks one operation a batch
                rows = indices.to(images.device)
                self._update(self.augment(images[rows], uniforms), labels[rows])

    def state(self, step: int) -> dict[str, torch.Tensor]:
        if step % self.config.outer_steps == 0:
            return {}  # the next step draws another network
        return self._tensors()

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        if any(name.startswith("network.") for name in state):
            fill(self._tensors(), state)

    def _tensors(self) -> dict[str, torch.Tensor]:
        with self._trainable():
            return prefixed("network", training_tensors(self.network, self.optimizer))

    def _create(self, group: int, step: int) -> Classifier:
        return create_network(
            self.config.network,
            self.num_classes,
            image_shape=self.image_shape,
            width=self.config.width,
            norm=self.config.norm,
            rng=draws.make_rng(self.seed, group, step, stream=Stream.FRESH_WEIGHTS),
        )

    def _update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One update by stochastic gradient descent with momentum."""
        with self._trainable():
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(images), labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """Frozen weights are not, for so long: matching by embeddings would only carry their gradients along."""
        required = next(self.network.parameters()).requires_grad
        self.network.requires_grad_(True)
        yield
        self.network.requires_grad_(required)


def _batches(size: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """A random order of all of `range(size)`, with what is left over as a smaller last batch."""
    order = draws.permutation(seed, epoch, size, stream=Stream.FRESH_ORDER)
    return list(torch.split(order, batch_size))
