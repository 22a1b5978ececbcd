"""`SyntheticEnsemble`: batches of several generators, each batch of one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from .. import draws
from ..draws import Stream
from .dataset import SyntheticDataset


def _of_all(name: str) -> Any:
    """An attribute that is the first data set's, and is assigned to all of them."""

    def read(ensemble: "SyntheticEnsemble") -> Any:
        return getattr(ensemble.datasets[0], name)

    def assign(ensemble: "SyntheticEnsemble", value: Any) -> None:
        for dataset in ensemble.datasets:
            setattr(dataset, name, value)

    return property(read, assign)


class SyntheticEnsemble(Dataset[tuple[Any, Any]]):
    """Data sets of several generators; each batch comes from one of them, drawn at random.

    Latents, cache, transforms and device are the data sets' own. They have the same targets, and index i of a batch is
    item i of the data set that was drawn. A transform assigned to the ensemble, as timm's loader does, is assigned to
    all of them.

    The draw is a function of (seed, epoch, first index of the batch), so a run can be repeated and resumed exactly, and
    each rank draws for itself. Which generator makes an image depends on its batch, and so on batch size and order; the
    image that this generator makes does not. A single item is a batch of one.

    Args:
        datasets: `SyntheticDataset`s or those derived from it, such as `ITGANCIFAR10`.
        weights: how often each is drawn, relative to the others; equally often by default.
        seed: any integer.

    Raises:
        ValueError: no data sets; other targets, classes or image shapes than the first one's; weights that are
            negative, not finite, all zero, or not one per data set.

    Source: Slim, "Boosting generative networks for incremental learning", 2020, section 5.1, after Pham et al., 2019.
    """

    transform = _of_all("transform")
    target_transform = _of_all("target_transform")
    batch_transform = _of_all("batch_transform")

    def __init__(
        self, datasets: Sequence[SyntheticDataset], *, weights: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        _check_alike(datasets)
        given = [1.0] * len(datasets) if weights is None else list(weights)
        numbers = all(isinstance(weight, (int, float)) and 0 <= weight < math.inf for weight in given)
        if len(given) != len(datasets) or not numbers or not any(given):
            raise ValueError(
                f"weights must be {len(datasets)} finite numbers, not negative and not all zero, got {weights}"
            )
        self.datasets = list(datasets)
        self.seed = seed
        shares = torch.tensor(given, dtype=torch.float64).cumsum(0)
        self._bounds = shares[:-1] / shares[-1]

    def __len__(self) -> int:
        return len(self.datasets[0])

    @property
    def classes(self) -> list[str]:
        return self.datasets[0].classes

    @property
    def targets(self) -> list[Any]:
        """The targets, which are the same in all data sets; to change them, change them in each."""
        return list(self.datasets[0].targets)

    @property
    def epoch(self) -> int:
        return self.datasets[0].epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of generators and of fresh latents."""
        for dataset in self.datasets:
            dataset.set_epoch(epoch)

    def make_all(self) -> None:
        """Make all images that the data sets' caches are to hold."""
        for dataset in self.datasets:
            dataset.make_all()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._draw(index % len(self), self.epoch)[index]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        """What `DataLoader` calls for a batch."""
        dataset = self._draw(indices[0] % len(self), self.epoch)
        whole = dataset.__getitems__
        return [dataset[index] for index in indices] if whole is None else whole(indices)

    def unit_batch(self, indices: torch.Tensor, epoch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of one generator, without transforms; as `SyntheticDataset.unit_batch`."""
        epoch = self.epoch if epoch is None else epoch
        return self._draw(int(indices[0]), epoch).unit_batch(indices, epoch)

    def _draw(self, first: int, epoch: int) -> SyntheticDataset:
        number = draws.uniform(self.seed, epoch, torch.tensor([first]), 1, stream=Stream.ENSEMBLE).double()
        return self.datasets[int(torch.searchsorted(self._bounds, number.flatten(), right=True))]


def _check_alike(datasets: Sequence[SyntheticDataset]) -> None:
    """Refuse data sets whose batches are not interchangeable."""
    if not datasets:
        raise ValueError("there are no data sets; expected at least one")
    for number, dataset in enumerate(datasets):
        for name, (value, expected) in {
            "image shape": (_image_shape(dataset), _image_shape(datasets[0])),
            "classes": (dataset.classes, datasets[0].classes),
            "soft_labels": (dataset.soft_labels, datasets[0].soft_labels),
        }.items():
            if value != expected:
                raise ValueError(
                    f"all data sets must have the {name} of the first, {expected}, got {value} in {number}"
                )
        if dataset.targets != datasets[0].targets:
            raise ValueError(
                f"all data sets must have the targets of the first in its order, got other ones in {number} "
                f"({len(dataset)} and {len(datasets[0])} images)"
            )


def _image_shape(dataset: SyntheticDataset) -> tuple[int, ...]:
    if dataset.generator is None:
        raise ValueError("a data set has no generator, for its `data` were assigned; expected generated images")
    return tuple(dataset.generator.image_shape)
