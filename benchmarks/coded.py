"""Real images in standard formats that Pillow reads: how many fit into some bytes, and how they look when decoded.

Decoders of standard formats are free, as this package's own code is. All other bytes count: headers, containers,
padding of a mosaic. Labels are free for a balanced order, in which image k has class k modulo the number of classes.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, features

from itgan_data.images import LabeledImages, to_pil

LOSSLESS = None
NO_LIMIT = 2**62  # bytes
_ENCODINGS = 6  # of a mosaic, to find how many images fit
_FULL = 0.995  # share of the budget at which one more encoding is not worth its time


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A way to store images."""

    fill: Callable[..., tuple[LabeledImages, int]]
    """Called with images, order, budget and quality."""
    qualities: tuple[int | None, ...]
    """Those that are worth a trial."""
    feature: str
    """What Pillow must have been built with."""

    @property
    def is_available(self) -> bool:
        return bool(features.check(self.feature))


def encode(image: torch.Tensor, quality: int | None, file_format: str = "WEBP") -> bytes:
    """A uint8 image `[C, H, W]` as a file, lossless or of a quality in 0..100; colours are kept at full resolution."""
    buffer = io.BytesIO()
    options = {
        "WEBP": {"lossless": quality is LOSSLESS, "method": 6},
        "AVIF": {"subsampling": "4:4:4", "speed": 6},
    }[file_format]
    to_pil(image).save(buffer, file_format, quality=100 if quality is LOSSLESS else quality, **options)
    return buffer.getvalue()


def decode(code: bytes) -> torch.Tensor:
    """A file as a uint8 image `[3, H, W]`."""
    with Image.open(io.BytesIO(code)) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def fill_with_files(
    images: LabeledImages, order: torch.Tensor, *, budget: int, quality: int | None
) -> tuple[LabeledImages, int]:
    """The first images of `order` whose WebP files fit into `budget` bytes, as decoded, and their bytes."""
    decoded: list[torch.Tensor] = []
    num_bytes = 0
    for index in order.tolist():
        code = encode(images.images[index], quality)
        if num_bytes + len(code) > budget:
            break
        num_bytes += len(code)
        decoded.append(decode(code))
    if not decoded:
        raise ValueError(f"not one image of quality {quality} fits into {budget} bytes")
    labels = images.labels[order[: len(decoded)]]
    return LabeledImages(torch.stack(decoded), labels, images.class_names), num_bytes


def fill_with_mosaic(
    images: LabeledImages, order: torch.Tensor, *, budget: int, quality: int | None, file_format: str
) -> tuple[LabeledImages, int]:
    """The first images of `order` that fit into one file of `budget` bytes, side by side; as decoded, and its bytes.

    The size of the file is close to proportional to the number of images, so a few encodings find how many fit.
    """
    count, best = min(1000, len(order)), (0, b"")
    for _ in range(_ENCODINGS):
        code = encode(_mosaic(images.images[order[:count]]), quality, file_format)
        if len(code) <= budget and count > best[0]:
            best = (count, code)
        proposed = min(len(order), int(count * budget * 0.998 / len(code)))
        if proposed <= best[0] or len(best[1]) >= _FULL * budget:
            break
        count = proposed
    if best[0] == 0:
        raise ValueError(f"not one image of quality {quality} fits into {budget} bytes")
    labels = images.labels[order[: best[0]]]
    decoded = _cut(decode(best[1]), best[0], images.image_shape[1:])
    return LabeledImages(decoded, labels, images.class_names), len(best[1])


def _mosaic(images: torch.Tensor) -> torch.Tensor:
    """Images `[N, C, H, W]` as one that is about square, filled up with black."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    places = images.new_zeros(rows * columns, channels, height, width)
    places[:count] = images
    return places.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)


def _cut(mosaic: torch.Tensor, count: int, size: tuple[int, int]) -> torch.Tensor:
    """The images of a mosaic again, `[count, C, H, W]`."""
    height, width = size
    rows, columns = mosaic.shape[1] // height, mosaic.shape[2] // width
    images = mosaic.view(-1, rows, height, columns, width).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return images[:count].contiguous()


def _mosaic_codec(file_format: str, qualities: tuple[int, ...]) -> Codec:
    def fill(
        images: LabeledImages, order: torch.Tensor, *, budget: int, quality: int | None
    ) -> tuple[LabeledImages, int]:
        return fill_with_mosaic(images, order, budget=budget, quality=quality, file_format=file_format)

    return Codec(fill=fill, qualities=qualities, feature=file_format.lower())


CODECS = {
    "lossless": Codec(fill=fill_with_files, qualities=(LOSSLESS,), feature="webp"),
    "webp": Codec(fill=fill_with_files, qualities=(10, 30, 50, 70), feature="webp"),
    "webp-mosaic": _mosaic_codec("WEBP", (10, 30, 50, 70)),
    "avif-mosaic": _mosaic_codec("AVIF", (30, 40, 50, 60)),
}
