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
"""Returns the current standardized synthetic images `[N, C, H, W]` and their labels `[N]`."""


@dataclass(frozen=True, kw_only=True)
class FreshNetworks:
    """Random networks instead of the pool.

    `outer_steps=1` draws a new one at every step, as distribution matching (DM) does. More make the inner loop of
    gradient matching (DC, DSA), in which the network learns from the synthetic images.
    """

    network: Annotated[str, OneOf(NETWORKS)] = "convnet"
    width: Annotated[int, AtLeast(1)] = 128
    """Channels of each block of a ConvNet; other networks have a fixed width."""
    norm: Norm = "instance"
    """Of a ConvNet. Batch norm computes its statistics over all classes of a step together."""
    outer_steps: Annotated[int, AtLeast(1)] = 1
    """Matching steps per network."""
    inner_epochs: Annotated[int, AtLeast(0)] = 0
    """Passes over the synthetic images that train the network after each of these steps."""
    lr: Annotated[float, Above(0)] = 0.01
    momentum: Annotated[float, HalfOpen(0, 1)] = 0.0
    batch_size: Annotated[int, AtLeast(1)] = 256
    """Synthetic images per update of the network."""

    def __post_init__(self) -> None:
        check(self)
        if self.inner_epochs and self.outer_steps == 1:
            raise ValueError("inner_epochs train a network between its outer_steps; raise outer_steps above 1")

    @property
    def batch_norm(self) -> bool:
        """Whether an embedding depends on the other images of its batch; only the ConvNet can do without batch norm."""
        return self.norm == "batch" or self.network != "convnet"


class NetworkSource:
    """Gives the embedding network of each step. All states are loaded into one module, so it is compiled once."""

    network: Classifier

    def load(self, group: int, step: int) -> None:
        """Load the network's weights for a step."""

    def train_along(self, synthetic: Standardized, group: int, step: int) -> None:
        """Train the network on the synthetic images after `step`, if a later step uses it."""

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """What a checkpoint after `step` steps has to hold."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `state` returned."""


class PoolSource(NetworkSource):
    """States of a pool, drawn uniformly for each (group, step)."""

    def __init__(self, pool: EmbeddingPool, seed: int) -> None:
        self.pool = pool
        self.network = pool.network
        self.seed = seed

    def load(self, group: int, step: int) -> None:
        self.pool.load_drawn(self.seed, group, step)


@dataclass(eq=False)
class FreshSource(NetworkSource):
    """A random network for every `outer_steps` steps of a group, trained along in between."""

    config: FreshNetworks
    num_classes: int
    image_shape: tuple[int, int, int]
    augment: Augmentation
    """Applied to the images that the network is trained on."""
    seed: int
    """Of weights, order and augmentation."""
    device: torch.device

    def __post_init__(self) -> None:
        network = self._create(0, 0).requires_grad_(False)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=self.config.lr, momentum=self.config.momentum)

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
            order = draws.permutation(seed, epoch, len(images), stream=Stream.FRESH_ORDER)
            for indices in torch.split(order, self.config.batch_size):
                uniforms = draws.uniform(seed, epoch, indices, self.augment.num_draws, stream=Stream.FRESH_AUGMENTATION)
                uniforms[:, :1] = uniforms[:1, :1]  # the published training picks one operation per batch
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
        with self._trainable():
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(images), labels).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        # Outside of it weights are frozen for distribution matching, which would compute their gradients in vain.
        required = next(self.network.parameters()).requires_grad
        self.network.requires_grad_(True)
        yield
        self.network.requires_grad_(required)
