"""What a `DataLoader` gets from a `SyntheticDataset`: the samples of a batch, held as whole tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map


class Sample(tuple[Any, ...]):
    """An `(image, target)` of a `Batch`: a tuple, whose type tells `default_collate` what to do."""

    __slots__ = ()


class Batch(Sequence[Sample]):
    """The samples of one batch, as any `collate_fn` takes them; made as they are looked at, from whole tensors.

    `default_collate` would stack 256 views of one tensor, at the price of making the batch a second time. It finds
    the whole tensor here.
    """

    def __init__(self, images: Any, targets: Sequence[Any]) -> None:
        if len(images) != len(targets):
            raise ValueError(f"batch_transform must return {len(targets)} images, one for each, got {len(images)}")
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(self)[place]
        return Sample((self.images[place], self.targets[place]))


def _collate(samples: Sequence[Sample], *, collate_fn_map: Any) -> Any:
    """What `default_collate` does with a list of tuples, without the stacking where that is done already."""
    if isinstance(samples, Batch) and type(samples.images) is torch.Tensor:
        return [samples.images, collate(samples.targets, collate_fn_map=collate_fn_map)]
    return collate([tuple(sample) for sample in samples], collate_fn_map=collate_fn_map)


default_collate_fn_map[Sample] = _collate  # how torch is told of types that are not its own
