"""What a generator is asked for: latents and labels, stored or drawn fresh every epoch."""

from .filtered import FilteredLatents
from .fresh import JitteredLatents, MixedLatents, RandomLatents
from .importers import import_latents
from .stored import LatentSet, LatentSource

__all__ = [
    "FilteredLatents",
    "JitteredLatents",
    "LatentSet",
    "LatentSource",
    "MixedLatents",
    "RandomLatents",
    "import_latents",
]
