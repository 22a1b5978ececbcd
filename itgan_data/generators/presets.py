"""The presets of `itgan_data.pretraining.presets`, which can be imported from here too."""

from ..pretraining.presets import digits, paper, small

__all__ = ["digits", "paper", "small"]
