"""`GeneratedImages`: the images of a generator at some latents, made when first asked for."""

import copy
import hashlib
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import get_worker_info
from tqdm import trange

from ..generators.contract import ImageGenerator, as_generator
from ..generators.sampling import generate
from ..images import signed_to_unit, uint8_to_unit, unit_to_uint8
from ..latents.filtered import check_filter
from ..latents.stored import LatentSource, check_fit
from ..storage.files import fingerprint
from .cache import CAPACITY, SUFFIX, ImageCache, cache_folder

Cache = Literal["auto", "float", None]
AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)
CACHE_VERSION = 1  # to be raised when a change of the code changes the images of the same tensors
_CHUNK = 256  # images that are made with the one that was asked for
_PATIENCE = 2  # seconds before a progress bar is shown
_HASHED_AT_ONCE = 100_000  # latents: 51 MB of float32 at width 128


class GeneratedImages:
    """The images of a generator at some latents, made when first asked for and then kept.

    An image depends on its latent and label alone. In float32 on the CPU its last bits may differ with the batch it
    is made in (by less than 1e-5), so that a kept uint8 image is within one level of any other way to make it.

    Arguments and errors as for `SyntheticDataset`.
    """

    def __init__(
        self,
        generator: nn.Module,
        latents: LatentSource,
        *,
        device: str | torch.device | None,
        cache: Cache,
        dtype: torch.dtype | None,
        length: int | None,
    ) -> None:
        if len(latents) == 0:
            raise ValueError("there are no latents, so there would be no images; expected at least one")
        generator = as_generator(generator)
        check_fit(latents, generator)
        if cache not in get_args(Cache):
            raise ValueError(f"cache must be one of {get_args(Cache)}, got {cache!r}")
        if cache == "float" and latents.fresh:
            raise ValueError("fresh latents change every epoch and cannot be kept; use cache='auto' or None")
        if dtype not in (*AUTOCAST_DTYPES, torch.float32, None):
            raise ValueError(f"dtype must be None, float32 or one of {AUTOCAST_DTYPES}, got {dtype}")
        if length is not None and (latents.fresh or length < len(latents)):
            raise ValueError(
                f"length repeats stored latents, so it must be at least {len(latents)}, got {length}; for fewer images "
                "take a Subset, and choose the size of fresh latents when they are made"
            )
        parameter = next(generator.parameters(), torch.empty(0))
        self.device = torch.device(device) if device is not None else parameter.device
        self.generator: ImageGenerator = generator.to(self.device).eval()
        check_filter(latents, self.generator)
        self.latents = latents
        self.dtype = dtype
        self.image_shape = tuple(generator.image_shape)
        self._length = length or len(latents)
        self._kept = None if cache is None or latents.fresh else self._keep(cache)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        """Complete the cache and leave the accelerator, so that a worker this is sent to only has to read.

        So pickling generates, which may take its time, where otherwise each of the workers would.
        """
        self.make_all()
        cpu = torch.device("cpu")
        generator = self._uncompiled if self.device == cpu else copy.deepcopy(self._uncompiled).to(cpu)
        return {**self.__dict__, "generator": generator, "device": cpu}

    @property
    def _uncompiled(self) -> nn.Module:
        """What torch.compile was given; compiled code cannot be sent to another process."""
        return getattr(self.generator, "_orig_mod", self.generator)

    def unit_batch(self, indices: torch.Tensor, epoch: int, device: torch.device) -> torch.Tensor:
        """Unit float32 images `[B, C, H, W]` on `device`; those not kept yet are made in one call."""
        if self._kept is None:
            return self._generate(indices, epoch).to(device)
        places = indices.cpu() % len(self._kept.pixels)
        self._make(places.numpy())
        pixels = torch.from_numpy(self._kept.pixels).index_select(0, places).to(device)
        return uint8_to_unit(pixels) if pixels.dtype == torch.uint8 else pixels

    def uint8_image(self, index: int, epoch: int) -> npt.NDArray[np.uint8]:
        """One image, uint8 `[H, W, C]`. Where images are kept, its neighbours are made with it."""
        if self._kept is None:
            pixels = self._generate(torch.tensor([index]), epoch)[0].cpu().numpy()
        else:
            place = index % len(self._kept.pixels)
            if not self._kept.made[place]:
                first = place - place % _CHUNK
                self._make(np.arange(first, min(first + _CHUNK, len(self._kept.pixels))))
            pixels = self._kept.pixels[place]
        return _as_uint8(pixels).transpose(1, 2, 0)

    def make_all(self) -> None:
        """Make all images that the cache keeps; do nothing without a cache."""
        if self._kept is not None:
            missing = self._kept.missing(np.arange(len(self._kept.pixels)))
            for first in trange(0, len(missing), _CHUNK, desc="generating", delay=_PATIENCE):
                self._make(missing[first : first + _CHUNK])

    def uint8_array(self) -> npt.NDArray[np.uint8]:
        """All images as uint8 `[N, H, W, C]`, a view of what is kept: edits change the images, but not the file.

        Whatever the cache was, from now on the images are kept as uint8, and repeated ones one by one.
        """
        if self._kept is None:
            self._kept = ImageCache((len(self.latents), *self.image_shape), np.uint8)
        self.make_all()
        made = self._kept.pixels
        if made.dtype != np.uint8 or len(made) < len(self):
            self._kept = ImageCache((len(self), *self.image_shape), np.uint8)
            for first in range(0, len(self), _CHUNK):
                places = np.arange(first, min(first + _CHUNK, len(self)))
                self._kept.put(places, _as_uint8(made[places % len(made)]))
        return self._kept.pixels.transpose(0, 2, 3, 1)

    def _keep(self, cache: Cache) -> ImageCache:
        """The images that an earlier process stored, or none yet."""
        shape = (len(self.latents), *self.image_shape)
        if cache == "float":
            return ImageCache(shape, np.float32)
        kept = ImageCache(shape, np.uint8, self._file())
        if kept.complete and not self._agrees(kept.pixels):
            kept.forget()
        return kept

    def _file(self) -> Path | None:
        """Where the images belong, named after all that goes into them but the generator's code; see `_agrees`."""
        folder = cache_folder()
        count = len(self.latents)
        if folder is None or count * math.prod(self.image_shape) > CAPACITY:
            return None
        generator = self._uncompiled
        tensors = dict(generator.named_parameters()) | dict(generator.named_buffers())
        parts = [f"{CACHE_VERSION} {type(generator)} {self.image_shape} {self.dtype}", fingerprint(tensors)]
        for first in range(0, count, _HASHED_AT_ONCE):
            latents, labels = self.latents.batch(torch.arange(first, min(first + _HASHED_AT_ONCE, count)))
            parts.append(fingerprint({"latents": latents, "labels": labels}))
        return folder / (hashlib.sha256("\n".join(parts).encode()).hexdigest() + SUFFIX)

    def _agrees(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Whether three images made now are those stored, but for the rounding of another device.

        A key of tensors cannot see that the code of a generator was edited.
        """
        places = torch.tensor([0, len(pixels) // 2, len(pixels) - 1])
        made = self._generate(places, epoch=0).cpu()
        stored = uint8_to_unit(torch.from_numpy(pixels[places.numpy()]))
        return bool((made - stored).abs().mean() < 2 / 255)  # bfloat16 alone errs by nearly one level

    def _make(self, places: npt.NDArray[np.int64]) -> None:
        """Generate, in one call, the images at `places` that are not kept yet. The last ones bring the file."""
        assert self._kept is not None
        missing = self._kept.missing(places)
        if len(missing) == 0:
            return
        images = self._generate(torch.from_numpy(missing), epoch=0)
        images = unit_to_uint8(images) if self._kept.pixels.dtype == np.uint8 else images
        self._kept.put(missing, images.cpu().numpy())
        if self._kept.file is not None and self._kept.complete and self._kept.file == self._file():
            self._kept.store()  # not so if other weights were loaded on the way

    @torch.no_grad()
    def _generate(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        if self.device.type == "cuda" and get_worker_info() is not None:
            raise RuntimeError(
                "a DataLoader worker cannot generate on the GPU: use num_workers=0 or SyntheticLoader, or keep the "
                "images (cache='auto') and call make_all() on the data set before the first epoch"
            )
        latents, labels = self.latents.batch(indices % len(self.latents), epoch)
        latents, labels = latents.to(self.device), labels.to(self.device)
        images = generate(self.generator, latents, labels, dtype=self.dtype)
        return signed_to_unit(images).clamp_(0.0, 1.0)


def _as_uint8(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Unit images as uint8; what is uint8 already, as it is."""
    return pixels if pixels.dtype == np.uint8 else unit_to_uint8(torch.from_numpy(pixels)).numpy()
