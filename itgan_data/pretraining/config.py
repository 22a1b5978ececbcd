"""The configuration of GAN training."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..augmentation import diff_augment
from ..config import Above, AtLeast, HalfOpen, MayDiffer, Precision, check, marked
from ..generators.biggan import BigGANConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorTrainerConfig:
    """How a generator is trained."""

    generator: BigGANConfig = field(default_factory=BigGANConfig)
    discriminator_channels: Annotated[int, AtLeast(1)] = 256
    """Channels of each block of the discriminator."""
    initialization: Literal["n02", "orthogonal"] = "n02"
    """Of weights with spectral norm: normal with standard deviation 0.02, or orthogonal. Embeddings are normal."""
    steps: Annotated[int, AtLeast(1), MayDiffer] = 100_000
    """Updates of the generator."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Real images per update, and as many synthetic ones, on all ranks together."""
    micro_batches: Annotated[int, AtLeast(1)] = 1
    """Parts that a rank's share of the batch is divided into, to save memory. Gradients are accumulated to those of the
    whole batch, but batch norm sees one part at a time: leave 16 images or more in each."""
    discriminator_steps: Annotated[int, AtLeast(1)] = 1
    """Updates of the discriminator per update of the generator."""
    lr_generator: Annotated[float, Above(0)] = 2e-4
    lr_discriminator: Annotated[float, Above(0)] = 2e-4
    beta1: Annotated[float, HalfOpen(0, 1)] = 0.0
    beta2: Annotated[float, HalfOpen(0, 1)] = 0.999
    augmentation: str = "color_crop_cutout"
    """DiffAugment's policy; empty for none."""
    flips: bool = True
    """Mirror real images at random."""
    ema_decay: Annotated[float, HalfOpen(0, 1)] = 0.9999
    """Decay of the generator's moving average, which is the result; lower in the first steps."""
    precision: Precision = "bfloat16"
    """Of convolutions; weights and optimisers stay float32."""
    checkpoint_minutes: Annotated[float, Above(0), MayDiffer] = 5.0
    log_steps: Annotated[int, AtLeast(1), MayDiffer] = 20
    """Steps between two lines of losses in the log."""
    preview_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two grids of sample images."""
    monitor_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two measurements of the Fréchet distance, if there is a feature network."""
    monitor_samples: Annotated[int, AtLeast(2), MayDiffer] = 5000
    """Real images that a measurement uses, at most all of them, and as many synthetic ones."""
    collapse_ratio: Annotated[float, Above(1), MayDiffer] = 2.0
    """A run has collapsed, and stops, after `collapse_checks` measurements in a row above this times the lowest one."""
    collapse_checks: Annotated[int, AtLeast(1), MayDiffer] = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        diff_augment(self.augmentation)  # raises for an unknown operation


MAY_DIFFER = marked(GeneratorTrainerConfig, MayDiffer)
