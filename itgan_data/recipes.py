"""Train a fresh classifier on batches of images, and test it.

Work is counted in updates, not epochs, so that training sets of different sizes can be given the same number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from . import draws
from .augmentation import DSA, Augmentation, CropFlip, Kornia, standardize_and_augment, without_flip
from .config import Above, AtLeast, HalfOpen, Precision, autocast, check
from .draws import Stream
from .images import ImageSource, Normalization, check_source


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained: SGD with momentum on augmented batches."""

    steps: Annotated[int, AtLeast(1)]
    """Updates of the weights."""
    batch_size: Annotated[int, AtLeast(1)]
    """Images per update; a smaller training set is taken whole."""
    lr: Annotated[float, Above(0)]
    """The highest learning rate of the schedule."""
    schedule: Literal["one-cycle", "halves"] = "one-cycle"
    """`one-cycle`: linear up to `lr` over `warmup`, then linear down to 0. `halves`: `lr`, then `lr / 10`."""
    warmup: Annotated[float, HalfOpen(0, 1)] = 0.2
    """Share of the steps on the way up (`one-cycle` only)."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    """On all parameters."""
    augmentation: Augmentation | Kornia | None = None
    """Applied to standardized images (a `Kornia`: to unit ones, with draws that depend on the batch); None for none."""
    shared_draws: int = 0
    """How many of the first draws a whole batch shares; 1 gives `DSA` one operation per batch."""
    precision: Precision = "float32"
    """`float32`, or `bfloat16` for autocast (weights stay float32)."""
    compile: bool = False
    """Train through torch.compile: faster from a few hundred steps on, but needs a C++ compiler."""

    def __post_init__(self) -> None:
        check(self)

    def to_json(self) -> dict[str, Any]:
        """JSON values, to be written next to what the recipe produced."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "augmentation": repr(self.augmentation)}

    def learning_rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if self.schedule == "halves":
            return self.lr if step < self.steps / 2 else self.lr / 10
        rising = self.warmup * self.steps
        if step < rising:
            return self.lr * (step + 1) / math.ceil(rising)
        return self.lr * (self.steps - step) / (self.steps - rising)


def paper_recipe(epochs: int = 200, *, num_images: int = 50_000, batch_size: int = 256, flip: bool = True) -> Recipe:
    """The IT-GAN paper's evaluation: learning rate .01, from half on .001, one DSA operation per batch.

    `flip` is as in `fast_recipe`.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN", 2022.
    """
    steps = epochs * math.ceil(num_images / batch_size)
    augmentation = DSA() if flip else DSA(without_flip(DSA.strategy))
    return Recipe(
        steps=steps, batch_size=batch_size, lr=0.01, schedule="halves", augmentation=augmentation, shared_draws=1
    )


def fast_recipe(steps: int = 2000, batch_size: int = 128, *, flip: bool = True) -> Recipe:
    """One cycle with Nesterov momentum on crops and flips, for a few thousand updates.

    Set `flip=False` for images whose mirror images belong to no class, such as digits.
    """
    return Recipe(steps=steps, batch_size=batch_size, lr=0.05, nesterov=True, augmentation=CropFlip(flip=flip))


class ClassifierTraining:
    """A classifier in training, one update at a time; `network`, `optimizer` and `step` are all that an update changes.

    Arguments and errors: see `train_classifier`. The network is put in training mode.
    """

    def __init__(
        self,
        network: nn.Module,
        source: ImageSource,
        recipe: Recipe,
        *,
        normalization: Normalization,
        seed: int,
        device: str | torch.device | None = None,
        observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:
        check_source(source, "training")
        self.network = network
        self.source = source
        self.recipe = recipe
        self.normalization = normalization
        self.seed = seed
        self.device = torch.device(device) if device is not None else _device_of(network)
        self.observe = observe
        self.step = 0
        """Updates so far."""
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
        self._model = torch.compile(network, dynamic=False) if recipe.compile else network
        self._epoch = -1
        self._batches: list[torch.Tensor] = []

    def update(self) -> torch.Tensor:
        """One update; the loss before it, on the device."""
        recipe = self.recipe
        epoch, place = divmod(self.step, max(len(self.source) // recipe.batch_size, 1))
        if epoch != self._epoch:
            self._batches = epoch_batches(len(self.source), recipe.batch_size, seed=self.seed, epoch=epoch)
            self._epoch = epoch
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.step)
        images, labels = self.batch(self._batches[place], epoch)
        with autocast(self.device, recipe.precision):
            logits = self._model(images)
        if self.observe is not None:
            self.observe(self._batches[place], logits.detach())
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def batch(self, indices: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardized, augmented images and their labels, which `Kornia` may make soft, on `device`."""
        unit, labels = self.source.unit_batch(indices, epoch)
        images, labels = standardize_and_augment(
            unit.to(self.device, non_blocking=True),
            labels.to(self.device, non_blocking=True),
            indices,
            self.recipe.augmentation,
            self.normalization,
            seed=self.seed,
            epoch=epoch,
            shared_draws=self.recipe.shared_draws,
        )
        return images.contiguous(memory_format=torch.channels_last), labels


def train_classifier(
    network: nn.Module,
    source: ImageSource,
    recipe: Recipe,
    *,
    normalization: Normalization,
    seed: int,
    device: str | torch.device | None = None,
    progress: Callable[[int, torch.Tensor], None] | None = None,
    observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Train `network` in place; it is left on `device`, in evaluation mode.

    Each epoch is a random order of the whole source, cut into whole batches. Order and augmentation depend on
    `seed` only, not on the device or the global RNG.

    Args:
        network: takes standardized images to logits.
        source: the training images.
        recipe: how to train.
        normalization: takes unit images to what the network sees.
        seed: of the order and the augmentation.
        device: by default where the network is.
        progress: called after each update with the number of updates so far and the loss, on `device`.
        observe: called before each update with the indices `[B]` of its images and their logits
            `[B, num_classes]`, on `device`.

    Returns:
        The loss of the last update, on `device`.

    Raises:
        ValueError: no images, or a transform, which would not be called.
    """
    training = ClassifierTraining(
        network, source, recipe, normalization=normalization, seed=seed, device=device, observe=observe
    )
    while training.step < recipe.steps:
        loss = training.update()
        if progress is not None:
            progress(training.step, loss)
    network.eval()
    return loss


def epoch_batches(size: int, batch_size: int, *, seed: int, epoch: int) -> list[torch.Tensor]:
    """A random order of `range(size)` in whole batches; the rest is left out of this epoch."""
    order = draws.permutation(seed, epoch, size, stream=Stream.SHUFFLE)
    whole = max(size // batch_size, 1) * batch_size
    return list(torch.split(order[:whole], batch_size))


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    source: ImageSource,
    normalization: Normalization,
    *,
    batch_size: int = 500,
    precision: str = "float32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all images of `source`, in evaluation mode.

    Returns:
        Logits `[N, num_classes]`, float32, and the labels of the images, both on the CPU.

    Raises:
        ValueError: no images, or a transform, which would not be called.
    """
    check_source(source, "a test")
    device = _device_of(network)
    was_training = network.training
    network.eval()
    all_logits, all_labels = [], []
    for indices in torch.split(torch.arange(len(source)), batch_size):
        unit, labels = source.unit_batch(indices, 0)
        images = normalization.standardize(unit.to(device)).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = network(images)
        all_logits.append(logits.float())
        all_labels.append(labels)
    network.train(was_training)
    return torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()


def accuracy(
    network: nn.Module, source: ImageSource, normalization: Normalization, *, precision: str = "float32"
) -> float:
    """Share, in [0, 1], of the images of `source` that the network takes for their label (of soft ones the likeliest).

    On synthetic images and a network trained on real ones this is the agreement with the conditioning label.
    """
    logits, labels = predict_logits(network, source, normalization, precision=precision)
    labels = labels.argmax(dim=1) if labels.is_floating_point() else labels
    return float((logits.argmax(dim=1) == labels).double().mean())


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
