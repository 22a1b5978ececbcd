"""What a `DataLoader` gets from a `SyntheticDataset`: the samples of a batch, held as whole tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from ..images import to_pil, unit_to_uint8


class Sample(tuple[Any, ...]):
    """An `(image, target)` of a `Batch`: a tuple, whose type tells `default_collate` what to do."""

    unit: Any
    """The image before it became a PIL image."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


class Batch(list[Any]):
    """The samples of one batch: the list that `DataLoader` promises a `collate_fn`.

    The samples are made when the list is first used as one. `default_collate` does not use it so: it takes the whole
    tensors, where stacking 256 samples would make the batch a second time, through PIL.
    """

    whole: tuple[Any, Sequence[Any]] | None = None
    """Images and targets, until the samples are made."""
    _as_pil = True

    @classmethod
    def of(cls, images: Any, targets: Sequence[Any], *, as_pil: bool) -> "Batch":
        """A batch of unit images, whose samples hold them as they are or as PIL images."""
        if len(images) != len(targets):
            raise ValueError(f"batch_transform must return {len(targets)} images, one for each, got {len(images)}")
        batch = cls([None] * len(targets))
        batch.whole, batch._as_pil = (images, targets), as_pil
        return batch

    def __getitem__(self, place: Any) -> Any:
        # `default_collate` looks at the type of the first sample; that alone does not make all of them.
        if self.whole is not None and isinstance(place, int):
            return self._sample(*(part[place] for part in self.whole))
        self._make_samples()
        return super().__getitem__(place)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + list(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def _make_samples(self) -> None:
        if self.whole is not None:
            whole, self.whole = self.whole, None
            self[:] = map(self._sample, *whole)

    def _sample(self, image: Any, target: Any) -> Sample:
        sample = Sample((to_pil(unit_to_uint8(image)) if self._as_pil else image, target))
        sample.unit = image
        return sample


def _after_making_samples(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Batch, *arguments: Any, **options: Any) -> Any:
        self._make_samples()
        return method(self, *arguments, **options)

    return call


# Every other use of a list, `__iter__` and `sort` and `append` alike, finds the samples made.
_UNCHANGED = {"__new__", "__init__", "__len__", "__getattribute__", "__class_getitem__", "__hash__", "__doc__"}
for _name in vars(list).keys() - vars(Batch).keys() - _UNCHANGED:
    setattr(Batch, _name, _after_making_samples(getattr(list, _name)))


def _collate(samples: Sequence[Sample], *, collate_fn_map: Any) -> list[Any]:
    """What `default_collate` does with a list of tuples of tensors, without the stacking where that is done already."""
    if isinstance(samples, Batch) and samples.whole is not None:
        columns: tuple[Any, ...] = samples.whole
    else:  # some of them, or in another order
        columns = tuple(zip(*((getattr(sample, "unit", sample[0]), *sample[1:]) for sample in samples), strict=True))
    return [
        column if type(column) is torch.Tensor else collate(list(column), collate_fn_map=collate_fn_map)
        for column in columns
    ]


# torch documents this map as the way to add types to `default_collate`, but keeps it in a private module: where it
# moves, the import above fails, which is better than batches that are stacked a second time unnoticed.
default_collate_fn_map[Sample] = _collate
