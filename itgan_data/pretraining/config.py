"""What the training of a generator is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..augmentation import diff_augment
from ..config import check_precision, check_types
from ..generators.biggan import BigGANConfig

Initialization = Literal["n02", "orthogonal"]

# A run may be prolonged, saved and looked at more or less often, and judged otherwise; its steps stay the same.
MAY_DIFFER = (
    "steps",
    "checkpoint_minutes",
    "log_steps",
    "preview_steps",
    "monitor_steps",
    "monitor_samples",
    "collapse_ratio",
    "collapse_checks",
)


@dataclass(frozen=True, kw_only=True)
class GeneratorTrainerConfig:
    """How a generator is trained."""

    generator: BigGANConfig = field(default_factory=BigGANConfig)
    discriminator_channels: int = 256
    """Channels of every block of the discriminator."""
    initialization: Initialization = "n02"
    """Of the weights under spectral norm: normal of standard deviation 0.02, or orthogonal. Class tables are normal."""
    steps: int = 100_000
    """Updates of the generator."""
    batch_size: int = 64
    """Real images, and synthetic ones, an update, on all ranks together."""
    micro_batches: int = 1
    """Equal parts that a rank's share of the batch is computed in, one after the other: memory falls, time rises a
    little. Gradients are those of the whole, but batch norm sees one part at a time: leave it 16 images or more."""
    discriminator_steps: int = 1
    """Updates of the discriminator for each of the generator."""
    lr_generator: float = 2e-4
    lr_discriminator: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.999
    augmentation: str = "color_crop_cutout"
    """DiffAugment's policy; empty for none."""
    flips: bool = True
    """Whether real images are mirrored at random."""
    ema_decay: float = 0.9999
    """Of the moving average of the generator that is returned; lower in the first steps."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What convolutions compute in; weights and optimisers stay float32."""
    checkpoint_minutes: float = 5.0
    log_steps: int = 20
    """Steps between two lines of losses in the log."""
    preview_steps: int = 1000
    """Steps between two grids of sample images."""
    monitor_steps: int = 1000
    """Steps between two measurements of the Fréchet distance, where there is a feature network."""
    monitor_samples: int = 5000
    """Images of each kind that it is measured with, or as many as there are real ones."""
    collapse_ratio: float = 2.0
    """The run has collapsed, and stops, when the distance was more than this times the lowest one ..."""
    collapse_checks: int = 3
    """... so many measurements in a row."""
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.generator, Mapping):  # JSON gives an object
            object.__setattr__(self, "generator", BigGANConfig(**self.generator))
        check_types(self)
        for name in (
            "discriminator_channels",
            "steps",
            "batch_size",
            "micro_batches",
            "discriminator_steps",
            "log_steps",
            "preview_steps",
            "monitor_steps",
            "collapse_checks",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr_generator", "lr_discriminator", "checkpoint_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("ema_decay", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.monitor_samples < 2:
            raise ValueError(f"monitor_samples must be at least 2, got {self.monitor_samples}")
        if not self.collapse_ratio > 1:
            raise ValueError(f"collapse_ratio must be above 1, got {self.collapse_ratio}")
        if self.initialization not in get_args(Initialization):
            raise ValueError(f"initialization must be 'n02' or 'orthogonal', got {self.initialization!r}")
        check_precision(self.precision)
        diff_augment(self.augmentation)
