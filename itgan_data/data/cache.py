"""Images that are kept once made: in memory that forked workers share, and in a file once all of them are there."""

import hashlib
import logging
import math
import mmap
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..storage.files import write_atomically

FOLDER_VARIABLE = "ITGAN_DATA_CACHE"
CAPACITY = 8 << 30  # bytes the folder may hold: fifty sets of the size of CIFAR-10
SUFFIX = ".uint8"
_DIGEST_BYTES = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Where files of images are kept; its content may be removed at any time.

    The environment variable `ITGAN_DATA_CACHE`, or else `itgan_data` in `XDG_CACHE_HOME` or in `~/.cache`. None,
    which is no files at all, where the variable is set but empty or where the user has no home.
    """
    general = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "itgan_data")
    chosen = os.environ.get(FOLDER_VARIABLE, general)
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # the name of a user whom the machine does not know
        return None


class ImageCache:
    """The images of one data set, in the form they are kept.

    Memory is shared with forked workers: what one of them puts, all have. A complete uint8 set can be stored in a
    file, from which the next process maps it. The mapping is copy-on-write: edits of `pixels` never reach the file.
    Pickling sends the name of the file if it holds these very images, and the images otherwise.

    Args:
        shape: `(N, C, H, W)`.
        dtype: np.uint8 or np.float32.
        file: read now if it is there and whole; None keeps the images in memory alone.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], file: Path | None = None) -> None:
        self.file = file
        stored = None if file is None else _read_pixels(file, shape)
        self.pixels: npt.NDArray[Any] = _shared_zeros(shape, dtype) if stored is None else stored
        self.made: npt.NDArray[np.bool_] = _shared_zeros(shape[:1], np.bool_)
        self.made[:] = stored is not None

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.pixels.shape, self.pixels.dtype.type)
        with suppress(OSError):  # a file that is not there, or must not be read
            stored = _stored_digest(self.file, self.pixels.nbytes) if self.file is not None and self.complete else None
            if stored is not None and stored == _digest(self.pixels):
                return ImageCache, (*arguments, self.file)
        return ImageCache, arguments, self.__dict__

    @property
    def complete(self) -> bool:
        return bool(self.made.all())

    def missing(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The `places` whose images are not there yet, each once."""
        missing = places[~self.made[places]]
        return np.unique(missing) if len(missing) else missing

    def put(self, places: npt.NDArray[np.int64], images: npt.NDArray[Any]) -> None:
        self.pixels[places] = images
        self.made[places] = True

    def forget(self) -> None:
        """Start again, with no image put; what the file holds is replaced by the next `store`."""
        self.pixels = _shared_zeros(self.pixels.shape, self.pixels.dtype.type)
        self.made[:] = False

    def store(self) -> None:
        """Write images and the SHA-256 of their bytes, atomically; warn, and leave no file, where that fails."""
        assert self.file is not None
        try:
            with write_atomically(self.file) as temporary, open(temporary, "wb") as stream:
                stream.write(self.pixels.data)
                stream.write(_digest(self.pixels))
        except OSError as error:
            warnings.warn(
                f"generated images stay in memory and will be made again by the next process: {self.file} cannot be "
                f"written ({error}); free some space or set {FOLDER_VARIABLE} to another folder",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            _remove_oldest(self.file)


def _read_pixels(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """Map what `ImageCache.store` wrote, copy-on-write; None where it is missing, damaged or must not be read.

    All bytes are hashed once: about 0.15 s for 50,000 images of 32 px.
    """
    try:
        digest = _stored_digest(file, math.prod(shape))
        if digest is not None:
            pixels = np.asarray(np.memmap(file, np.uint8, mode="c", shape=shape))
            if _digest(pixels) == digest:
                with suppress(OSError):  # a folder that may only be read
                    os.utime(file)  # the files used longest ago are the first to go
                return pixels
        logger.warning("%s is damaged; its images are made again", file)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s cannot be read (%s); its images are made again", file, error)
    return None


def _digest(pixels: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(pixels.data).digest()


def _stored_digest(file: Path, size: int) -> bytes | None:
    """The SHA-256 at the end of a file of `size` bytes of pixels; None if it is of another size."""
    with open(file, "rb") as stream:
        if stream.seek(0, os.SEEK_END) != size + _DIGEST_BYTES:
            return None
        stream.seek(size)
        return stream.read()


def _remove_oldest(kept: Path) -> None:
    """Remove the files used longest ago, but not `kept`, until the folder is within its capacity."""
    with suppress(OSError):  # another process may do the same
        files = [(file.stat().st_mtime, file.stat().st_size, file) for file in kept.parent.glob(f"*{SUFFIX}")]
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total > CAPACITY and file != kept:
                file.unlink()
                total -= size


def _shared_zeros(shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes of images cannot be kept in memory ({error}); use cache=None") from error
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
