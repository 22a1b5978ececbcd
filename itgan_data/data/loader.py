"""`SyntheticLoader`: whole batches, generated, standardized and augmented on the device."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from .. import draws
from ..augmentation import Augmentation, Kornia, standardize_and_augment
from ..draws import Stream
from ..images import ImageSource, Normalization, check_source


class SyntheticLoader:
    """Batches of standardized, augmented images, without workers or PIL.

    Order and augmentation are functions of (seed, epoch, index): they do not depend on batch size, device or
    number of processes. Each `iter()` is the next epoch, unless `set_epoch` came before it. With `world_size`
    processes every rank gets as many images: the order is padded with its beginning, or cut short if
    `drop_last`. With `device` on a GPU, a batch is made on a side stream while the one before it is in use.

    Args:
        dataset: a `SyntheticDataset` without transforms, a `SyntheticEnsemble` of them, a `LabeledImages`, or
            anything with `__len__` and `unit_batch(indices, epoch)`.
        batch_size: images per batch on this rank.
        shuffle: a new order every epoch, or the order of the data set.
        drop_last: leave out the last, smaller batch.
        augment: applied to the standardized images, each with its own draws; or a `Kornia`, whose draws depend on
            the batch.
        normalization: takes unit images to standardized ones; None leaves them unit.
        device: where batches go; where the data set makes them by default.
        seed: of order and augmentation.
        rank, world_size: this process and how many there are.

    Raises:
        ValueError: sizes out of range, no whole batch to yield, or a data set with transforms.
    """

    def __init__(
        self,
        dataset: ImageSource,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        augment: Augmentation | Kornia | None = None,
        normalization: Normalization | None = None,
        device: str | torch.device | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        check_source(dataset, "SyntheticLoader")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1, got rank {rank} of {world_size}")
        if drop_last and len(dataset) // world_size < batch_size:
            raise ValueError(
                f"{len(dataset)} images on {world_size} ranks make no batch of {batch_size}; "
                "lower batch_size or set drop_last=False"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augment = augment
        self.normalization = normalization
        self.device = None if device is None else torch.device(device)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._start = self._position = (0, 0)  # epoch and batch: of the next iter(), and of the batch to come

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        images = self._images_per_rank
        return images // self.batch_size if self.drop_last else -(-images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch, first = self._position = self._start
        self._start = (epoch + 1, 0)
        return self._batches(epoch, first)

    def set_epoch(self, epoch: int) -> None:
        """Make the next `iter()` yield epoch `epoch`, or the rest of it if a state of that epoch was loaded."""
        if epoch != self._start[0]:
            self._start = (epoch, 0)
        self._position = self._start

    def state_dict(self) -> dict[str, int]:
        """Where the loader is (the epoch, and how many of its batches were yielded) and what fixes them."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next `iter()` continue where `state` was taken.

        Raises:
            ValueError: the state is of a loader that yields other batches.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"the state is of a loader with {name} {state.get(name)}, this one has {value}")
        self._start = self._position = (state["epoch"], state["batch"])

    def batch(self, indices: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The images `[B, C, H, W]` and labels of `indices`, as an iteration yields them in `epoch`.

        Labels are int64 `[B]`, or soft, float `[B, num_classes]`, where the data set gives them or a `Kornia` mixes.
        """
        images, labels = self.dataset.unit_batch(indices, epoch)
        if self.device is not None:
            images = images.to(self.device, non_blocking=True)
        return standardize_and_augment(
            images,
            labels.to(images.device, non_blocking=True),
            indices,
            self.augment,
            self.normalization,
            seed=self.seed,
            epoch=epoch,
        )

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        splits = torch.split(self._order(epoch), self.batch_size)[first : len(self)]
        batches: Iterator[tuple[torch.Tensor, torch.Tensor]] = map(self.batch, splits, itertools.repeat(epoch))
        if self.device is not None and self.device.type == "cuda":
            batches = _made_ahead(batches, self.device)
        for number, batch in enumerate(batches, first + 1):
            self._position = (epoch, number)
            yield batch
        self._position = (epoch + 1, 0)

    def _order(self, epoch: int) -> torch.Tensor:
        """The indices of this rank in one epoch."""
        size = len(self.dataset)
        order = torch.arange(size)
        if self.shuffle:
            order = draws.permutation(self.seed, epoch, size, stream=Stream.SHUFFLE)
        total = self._images_per_rank * self.world_size
        return order.repeat(-(-total // size))[self.rank : total : self.world_size]

    @property
    def _images_per_rank(self) -> int:
        size = len(self.dataset)
        return size // self.world_size if self.drop_last else -(-size // self.world_size)

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "size": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
            "world_size": self.world_size,
        }


def _made_ahead(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same batches, made on a side stream: the next one is enqueued before the current one is given out."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # for what the data set is still being copied from

    def enqueue() -> tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return next(batches, None), stream.record_event()

    batch, made = enqueue()
    while batch is not None:
        following = enqueue()
        user = torch.cuda.current_stream(device)
        user.wait_event(made)  # not wait_stream: that would wait for the following batch too
        for tensor in batch:
            tensor.record_stream(user)  # its memory is not given to the side stream before the user is done
        yield batch
        batch, made = following


def collate_dicts(samples: list[tuple[Any, Any]]) -> dict[str, torch.Tensor]:
    """A batch as Hugging Face image classifiers take it: the `data_collator` of a `Trainer`.

    Args:
        samples: `(image, label)` as a data set yields them to a `DataLoader`; images are tensors.

    Returns:
        `pixel_values` `[B, C, H, W]`, in the samples' range, and int64 `labels` `[B]`.
    """
    images, labels = default_collate(samples)
    return {"pixel_values": images, "labels": labels}
