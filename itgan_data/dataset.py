"""`SyntheticDataset`: a torchvision-style data set whose images a generator makes from latents."""

import copy
import math
import mmap
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.utils.data import get_worker_info
from torchvision.datasets import VisionDataset

from .images import signed_to_unit, to_pil, uint8_to_unit, unit_to_uint8
from .latents import LatentSource, check_fit

Cache = Literal["auto", "float"] | None
CACHES = ("auto", "float", None)
AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)
_CHUNK = 250  # images a generator call where nobody asked for a batch: 262 MB a map of 256 channels at 32 px


class GeneratedImages:
    """The images of a generator at some latents, made when first asked for and then kept.

    Args:
        generator: called as `generator(latents, labels)`, returns signed images. It is moved to `device` and
            set to evaluation, so that an image does not depend on its batch.
        latents: a `LatentSet` or `RandomLatents`.
        device: where to generate; where the generator is by default.
        cache: "auto" keeps uint8, "float" float32 (four times the memory), None nothing. Fresh latents differ
            every epoch, so "auto" keeps nothing for them.
        dtype: torch.bfloat16 or torch.float16 generate under autocast; None in the generator's precision.
    """

    def __init__(
        self,
        generator: nn.Module,
        latents: LatentSource,
        *,
        device: str | torch.device | None,
        cache: Cache,
        dtype: torch.dtype | None,
    ) -> None:
        described: Any = generator
        check_fit(latents, latent_dim=described.latent_dim, num_classes=described.num_classes)
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {CACHES}, got {cache!r}")
        if cache == "float" and latents.fresh:
            raise ValueError("fresh latents change every epoch and cannot be kept; use cache='auto' or None")
        if dtype not in (*AUTOCAST_DTYPES, torch.float32, None):
            raise ValueError(f"dtype must be None, float32 or one of {AUTOCAST_DTYPES}, got {dtype}")
        parameter = next(generator.parameters(), torch.empty(0))
        self.device = torch.device(device) if device is not None else parameter.device
        self.generator = generator.to(self.device).eval()
        self.latents = latents
        self.dtype = dtype
        self.image_shape: tuple[int, ...] = tuple(described.image_shape)
        self._made = _shared_zeros((len(latents),), np.bool_)
        self._pixels: npt.NDArray[Any] | None = None
        if cache is not None and not latents.fresh:
            self._pixels = self._empty_pixels(np.float32 if cache == "float" else np.uint8)

    def __len__(self) -> int:
        return len(self.latents)

    def __getstate__(self) -> dict[str, Any]:
        """Complete the cache and leave the accelerator, so that a worker this is sent to only has to read."""
        self.make_all()
        cpu = torch.device("cpu")
        generator = self.generator if self.device == cpu else copy.deepcopy(self.generator).to(cpu)
        return {**self.__dict__, "generator": generator, "device": cpu}

    def unit_batch(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """Unit float32 images `[B, C, H, W]` on `device`; those not kept yet are made in one call."""
        if self._pixels is None:
            return self._generate(indices, epoch)
        places = indices.cpu().numpy()
        self._make(np.unique(places))
        pixels = torch.from_numpy(self._pixels[places]).to(self.device)
        return uint8_to_unit(pixels) if pixels.dtype == torch.uint8 else pixels

    def uint8_image(self, index: int, epoch: int) -> torch.Tensor:
        """One image, uint8 `[C, H, W]`. Where images are kept, its neighbours are made with it."""
        if self._pixels is None:
            return unit_to_uint8(self._generate(torch.tensor([index]), epoch)[0]).cpu()
        if not self._made[index]:
            first = index - index % _CHUNK
            self._make(np.arange(first, min(first + _CHUNK, len(self))))
        pixels = torch.from_numpy(self._pixels[index])
        return pixels if pixels.dtype == torch.uint8 else unit_to_uint8(pixels)

    def make_all(self) -> None:
        """Make all images that are to be kept; nothing where none are."""
        if self._pixels is not None:
            missing = np.flatnonzero(~self._made)
            for first in range(0, len(missing), _CHUNK):
                self._make(missing[first : first + _CHUNK])

    def uint8_array(self) -> npt.NDArray[np.uint8]:
        """All images as uint8 `[N, H, W, C]`, a view of what is kept: edits change the images.

        Whatever the cache was, from now on the images are kept as uint8.
        """
        if self._pixels is None:
            self._pixels = self._empty_pixels(np.uint8)
        self.make_all()
        if self._pixels.dtype != np.uint8:
            self._pixels = unit_to_uint8(torch.from_numpy(self._pixels)).numpy()
        return self._pixels.transpose(0, 2, 3, 1)

    def _empty_pixels(self, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return _shared_zeros((len(self), *self.image_shape), dtype)

    def _make(self, places: npt.NDArray[np.int64]) -> None:
        """Generate, in one call, the images at `places` that are not kept yet."""
        assert self._pixels is not None
        missing = places[~self._made[places]]
        if len(missing) == 0:
            return
        images = self._generate(torch.from_numpy(missing), epoch=0)
        kept = unit_to_uint8(images) if self._pixels.dtype == np.uint8 else images
        self._pixels[missing] = kept.cpu().numpy()
        self._made[missing] = True

    @torch.no_grad()
    def _generate(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        if self.device.type == "cuda" and get_worker_info() is not None:
            raise RuntimeError(
                "a DataLoader worker cannot generate on the GPU: call make_all() on the data set before the "
                "first epoch, or use num_workers=0 or SyntheticLoader"
            )
        latents, labels = self.latents.batch(indices, epoch)
        latents, labels = latents.to(self.device), labels.to(self.device)
        reduced = self.dtype in AUTOCAST_DTYPES
        with torch.autocast(self.device.type, dtype=self.dtype if reduced else None, enabled=reduced):
            images = self.generator(latents, labels)
        expected = (len(indices), *self.image_shape)
        if tuple(images.shape) != expected:
            raise ValueError(f"the generator must return images {expected}, got {tuple(images.shape)}")
        return signed_to_unit(images.float()).clamp_(0.0, 1.0).contiguous()


class SyntheticDataset(VisionDataset):  # type: ignore[misc]  # torchvision has no types
    """A data set whose images are generated from latents, used as any torchvision data set.

    `dataset[i]` is `(PIL image, int)`, or `(transform(PIL image), ...)`. A `DataLoader` over it without a
    transform makes a whole batch in one generator call and yields float32 unit images `[B, C, H, W]` (what
    `ToTensor` would give) on the CPU and int64 targets. An image depends on its own latents alone, not on its
    batch or on the order.

    `targets` is an ordinary list, read at every access. It never changes the images: the generator is
    conditioned on the labels of the latents. `data` is the uint8 array torchvision has; assigning it detaches
    the data set from its generator.

    Args:
        generator: any module called as `generator(latents, labels) -> signed images`, with the attributes
            `latent_dim`, `num_classes` and `image_shape`. It is moved to `device` and set to evaluation.
        latents: a `LatentSet`, or `RandomLatents` for new images every epoch (see `set_epoch`).
        transform: called with each PIL image.
        target_transform: called with each target.
        batch_transform: called with each batch of unit images `[B, C, H, W]` on the CPU, if `transform` is
            None.
        device: where to generate; where the generator is by default.
        cache: "auto" keeps images in memory as uint8 once made, "float" as float32, None not at all.
            `RandomLatents` are never kept.
        dtype: torch.bfloat16 or torch.float16 generate under autocast.
        classes: names of the generator's classes; "0", "1", ... by default.

    Raises:
        ValueError: latents, classes or options that do not fit.
    """

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
    ) -> None:
        images = GeneratedImages(generator, latents, device=device, cache=cache, dtype=dtype)
        described: Any = generator
        names = [str(label) for label in range(described.num_classes)] if classes is None else list(classes)
        if len(names) != described.num_classes:
            raise ValueError(f"classes must name the generator's {described.num_classes}, got {len(names)} names")
        # Not super().__init__: a subclass may also derive from CIFAR10, whose __init__ would read files.
        VisionDataset.__init__(self, transform=transform, target_transform=target_transform)
        self._generated: GeneratedImages | None = images
        self.classes = names
        self.class_to_idx = {name: label for label, name in enumerate(names)}
        self.targets: list[Any] = latents.labels.tolist()
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
        if self._generated is None:
            return self._data
        if self._generated.latents.fresh:
            raise AttributeError("fresh latents change every epoch, so there is no `data`; use a LatentSet")
        return self._generated.uint8_array()

    @data.setter
    def data(self, images: Any) -> None:
        self._generated = None
        self._data = images

    @property
    def generator(self) -> nn.Module | None:
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
        """Choose the draws of `RandomLatents`; stored latents are the same in every epoch."""
        self._epoch.fill_(epoch)

    def make_all(self) -> None:
        """Make all images that the cache is to hold now, rather than as they are asked for."""
        if self._generated is not None:
            self._generated.make_all()

    def __len__(self) -> int:
        return len(self._data if self._generated is None else self._generated)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        place = self._place(index)
        image: Any = self._pil_image(place)
        target = self.targets[place]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], list[tuple[torch.Tensor, Any]]] | None:
        """What `DataLoader` calls for a batch, or None where each item must go through `__getitem__`."""
        overridden = type(self).__getitem__ is not SyntheticDataset.__getitem__
        return None if overridden or self.transform is not None else self._batch_items

    def unit_batch(self, indices: torch.Tensor, epoch: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch without transforms.

        Args:
            indices: int64 `[B]` in 0..len-1.
            epoch: for `RandomLatents`; by default that of `set_epoch`.

        Returns:
            Unit float32 images `[B, C, H, W]` on the generator's device, and int64 targets `[B]` on the CPU.
        """
        targets = torch.tensor([int(self.targets[place]) for place in indices.tolist()])
        return self._unit_images(indices, self.epoch if epoch is None else epoch), targets

    def _unit_images(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        if self._generated is not None:
            return self._generated.unit_batch(indices, epoch)
        pixels = torch.from_numpy(np.asarray(self._data)[indices.cpu().numpy()])
        return uint8_to_unit(pixels.permute(0, 3, 1, 2)).contiguous()

    def _batch_items(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, Any]]:
        """The samples of one batch, as every `collate_fn` takes them; the images are views of one tensor."""
        places = [self._place(index) for index in indices]
        images = self._unit_images(torch.tensor(places), self.epoch).cpu()
        if self.batch_transform is not None:
            images = self.batch_transform(images)
        targets = [self.targets[place] for place in places]
        if self.target_transform is not None:
            targets = [self.target_transform(target) for target in targets]
        return list(zip(images, targets, strict=True))

    def _pil_image(self, place: int) -> Image.Image:
        if self._generated is None:
            return Image.fromarray(np.asarray(self._data[place]))
        return to_pil(self._generated.uint8_image(place, self.epoch))

    def _place(self, index: int) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index {place} is out of range for {len(self)} images")
        return place % len(self)


def _shared_zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """An array in memory that forked workers share: what one of them makes, all have."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype).reshape(shape)
