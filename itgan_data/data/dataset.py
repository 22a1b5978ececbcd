"""`SyntheticDataset`: a torchvision-style data set whose images a generator makes from latents."""

import operator
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import VisionDataset

from ..generators.contract import ImageGenerator, as_generator
from ..images import label_to_int, to_class_names, uint8_to_unit
from ..latents.stored import LatentSet, LatentSource
from .batch import Batch
from .generated import Cache, GeneratedImages


class SyntheticDataset(VisionDataset):  # type: ignore[misc]  # torchvision has no types
    """A data set whose images are generated from latents, used as any torchvision data set.

    `dataset[i]` is `(PIL image, int)`, or `(transform(PIL image), ...)`. A `DataLoader` over it without a
    transform makes a whole batch in one generator call and yields float32 unit images `[B, C, H, W]` (what
    `ToTensor` would give) on the CPU and int64 targets. An image depends on its own latents alone, not on its
    batch or on the order.

    `targets` is an ordinary list, read at every access. It never changes the images: the generator is
    conditioned on the labels of the latents. `data` is the uint8 array torchvision has; assigning it detaches
    the data set from its generator. A `collate_fn` other than torch's gets a list of `(PIL image, int)`, or of what
    the transforms make of them.

    Args:
        generator: any module called as `generator(latents, labels) -> signed images`, with the attributes
            `latent_dim`, `num_classes` and `image_shape`, or a compiled or `DataParallel` one. It is moved to
            `device` and set to evaluation.
        latents: a `LatentSet`, or for new images every epoch (see `set_epoch`) a fresh source: `RandomLatents`,
            `JitteredLatents`, `MixedLatents` or `FilteredLatents`.
        transform: called with each PIL image.
        target_transform: called with each target.
        batch_transform: called with each batch of unit images `[B, C, H, W]` on the CPU, if `transform` is
            None.
        device: where to generate; where the generator is by default.
        cache: "auto" keeps images as uint8, each within half a level of what the generator gives. They are made as
            they are asked for; once all are made they go into a file of the user's cache (see
            `cache.cache_folder`), which the next data set of equal weights, latents and dtype maps; `make_all` does
            so at once. "float" keeps float32, in memory alone. None keeps nothing, as for sets larger than memory.
            Images of fresh latents are never kept.
        dtype: torch.bfloat16 or torch.float16 generate under autocast.
        classes: names of the generator's classes; by default those that it was saved with, or "0", "1", ...
        soft_labels: give the soft labels of the latents as targets, float32 probabilities `[num_classes]`. `targets`
            stays a list of ints.
        length: repeat the latents up to this number of images, for scripts that count on 50,000: image i is image
            `i % len(latents)`. Images that are then held out for validation have copies among the rest.

    Raises:
        ValueError: latents, classes or options that do not fit.
    """

    soft_labels = False

    def __init__(
        self,
        generator: nn.Module,
        latents: LatentSource,
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: str | torch.device | None = None,
        cache: Cache = "auto",
        dtype: torch.dtype | None = None,
        classes: Sequence[str] | None = None,
        soft_labels: bool = False,
        length: int | None = None,
    ) -> None:
        num_classes = as_generator(generator).num_classes
        images = GeneratedImages(generator, latents, device=device, cache=cache, dtype=dtype, length=length)
        known = getattr(generator, "class_names", None) if classes is None else classes
        names = list(to_class_names([str(label) for label in range(num_classes)] if known is None else known))
        if len(names) != num_classes:
            raise ValueError(f"classes must name the generator's {num_classes}, got {len(names)} names")
        first = torch.tensor([0])
        if soft_labels and not (isinstance(latents, LatentSet) and latents.soft_batch(first).shape[1] == num_classes):
            raise ValueError(f"soft_labels=True needs a LatentSet with such for {num_classes} classes, got {latents!r}")
        # Not super().__init__: a subclass may also derive from CIFAR10, whose __init__ would read files.
        VisionDataset.__init__(self, transform=transform, target_transform=target_transform)
        self._generated: GeneratedImages | None = images
        self.classes = names
        self.class_to_idx = {name: label for label, name in enumerate(names)}
        self.soft_labels = soft_labels
        self.targets: list[Any] = latents.labels.repeat(-(-len(images) // len(latents)))[: len(images)].tolist()
        self._hold(None)
        self._init_batches(batch_transform)

    def _init_batches(self, batch_transform: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        if batch_transform is not None and self.transform is not None:
            warnings.warn("batch_transform has no effect while transform is set", stacklevel=3)
        self.batch_transform = batch_transform
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # persistent workers see set_epoch

    @property
    def data(self) -> Any:
        """All images as uint8 `[N, H, W, C]`; reading it makes and keeps them."""
        if self._data is None:
            assert self._generated is not None
            if self._generated.latents.fresh:
                raise AttributeError("fresh latents change every epoch, so there is no `data`; use a LatentSet")
            self._hold(self._generated.uint8_array())
        return self._data  # a plain attribute: scripts that read `dataset.data[i]` do so for each image

    @data.setter
    def data(self, images: Any) -> None:
        if self.soft_labels:
            warnings.warn("`data` was assigned, so soft labels no longer fit; `targets` are given", stacklevel=2)
        self.soft_labels = False
        self._generated = None
        self._hold(images)

    def _hold(self, data: Any) -> None:
        """Keep `data`, None until they are made, under its own name too: scripts look into `vars(dataset)`."""
        self._data = self.__dict__["data"] = data

    @property
    def generator(self) -> ImageGenerator | None:
        """The generator, or None once `data` was assigned."""
        return None if self._generated is None else self._generated.generator

    @property
    def latents(self) -> LatentSource | None:
        """The latents, or None once `data` was assigned."""
        return None if self._generated is None else self._generated.latents

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of fresh latents; stored latents are the same in every epoch."""
        self._epoch.fill_(epoch)

    def make_all(self) -> None:
        """Generate all images of the cache now, not when they are first read.

        Useful where no process reads them all, as under a `DistributedSampler`, or where workers cannot
        generate, as on a GPU.
        """
        if self._generated is not None:
            self._generated.make_all()

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # a copy or a file may do without
            self._check_transforms_pickle()
        # `data` is a view of what `_generated` keeps, which pickling would write a second time.
        held = {} if self._generated is None else {"data": None, "_data": None}
        return {**self.__dict__, **held}

    def _check_transforms_pickle(self) -> None:
        for name in ("transform", "target_transform", "batch_transform"):
            try:
                pickle.dumps(getattr(self, name))
            except Exception as error:  # whatever an object's own pickling raises
                raise ValueError(
                    f"{name} must be picklable for workers that are spawned, got {getattr(self, name)!r} ({error}); "
                    "use a function or class defined at the top of a module, multiprocessing_context='fork' or "
                    "num_workers=0"
                ) from error

    def __len__(self) -> int:
        return self._num_images

    @property
    def _num_images(self) -> int:
        """The bound of indices, even if a subclass has another `__len__`."""
        return len(self._data if self._generated is None else self._generated)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        place = _place(index, self._num_images)
        image: Any = self._pil_image(place)
        if self.transform is not None:
            image = self.transform(image)
        return image, self._given_targets([place])[0]

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], Batch] | None:
        """What `DataLoader` calls for a batch, or None where each item must go through `__getitem__`."""
        overridden = type(self).__getitem__ is not SyntheticDataset.__getitem__
        # `DataLoader` asks `hasattr(dataset, "__getitems__")`. A wrapper whose `__getattr__` hands on every attribute
        # to this data set would say yes, and its own `__getitem__` would be bypassed in silence. Nothing but the
        # caller's frame tells that the question came by way of such a wrapper.
        delegated = sys._getframe(1).f_code.co_name in ("__getattr__", "__getattribute__")
        return None if overridden or delegated or self.transform is not None else self._batch

    def unit_batch(self, indices: torch.Tensor, epoch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch without transforms.

        Args:
            indices: int64 `[B]` in 0..len-1.
            epoch: for fresh latents; by default that of `set_epoch`.

        Returns:
            Unit float32 images `[B, C, H, W]` on the generator's device, and on the CPU int64 targets `[B]`, or float32
            soft labels `[B, num_classes]`.
        """
        targets = self._targets(indices.tolist())
        if not isinstance(targets, torch.Tensor):
            targets = torch.tensor([label_to_int(target) for target in targets])
        return self._unit_images(indices, self.epoch if epoch is None else epoch, None), targets

    def _unit_images(self, indices: torch.Tensor, epoch: int, device: torch.device | None) -> torch.Tensor:
        """On `device`, by default the generator's; assigned data stay on the CPU."""
        if self._generated is not None:
            return self._generated.unit_batch(indices, epoch, device or self._generated.device)
        pixels = torch.from_numpy(np.asarray(self._data)[indices.cpu().numpy()])
        return uint8_to_unit(pixels.permute(0, 3, 1, 2)).contiguous()

    def _batch(self, indices: Sequence[int]) -> Batch:
        places = [_place(index, self._num_images) for index in indices]
        images = self._unit_images(torch.tensor(places), self.epoch, torch.device("cpu"))
        if self.batch_transform is not None:
            images = self.batch_transform(images)
        return Batch.of(images, self._given_targets(places), as_pil=self.batch_transform is None)

    def _targets(self, places: Sequence[int]) -> Any:
        """Targets, or soft labels `[B, num_classes]`."""
        if not self.soft_labels:
            return [self.targets[place] for place in places]
        assert isinstance(self.latents, LatentSet)
        return self.latents.soft_batch(torch.tensor(places) % len(self.latents))

    def _given_targets(self, places: Sequence[int]) -> Any:
        targets = self._targets(places)
        return targets if self.target_transform is None else [self.target_transform(target) for target in targets]

    def _pil_image(self, place: int) -> Image.Image:
        if self._data is None and self._generated is not None:
            pixels = self._generated.uint8_image(place, self.epoch)
        else:
            pixels = np.asarray(self._data[place])
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _place(index: int, size: int) -> int:
    """Where `index` is, counted from the start; negative ones count from the end."""
    place = operator.index(index)
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for {size} images")
    return place % size
