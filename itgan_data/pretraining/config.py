"""What the training of a generator is asked to do."""

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
    """Channels of every block of the discriminator."""
    initialization: Literal["n02", "orthogonal"] = "n02"
    """Of the weights under spectral norm: normal of standard deviation 0.02, or orthogonal. Class tables are normal."""
    steps: Annotated[int, AtLeast(1), MayDiffer] = 100_000
    """Updates of the generator."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Real images, and synthetic ones, an update, on all ranks together."""
    micro_batches: Annotated[int, AtLeast(1)] = 1
    """Equal parts that a rank's share of the batch is computed in, one after the other: memory falls, time rises a
    little. Gradients are those of the whole, but batch norm sees one part at a time: leave it 16 images or more."""
    discriminator_steps: Annotated[int, AtLeast(1)] = 1
    """Updates of the discriminator for each of the generator."""
    lr_generator: Annotated[float, Above(0)] = 2e-4
    lr_discriminator: Annotated[float, Above(0)] = 2e-4
    beta1: Annotated[float, HalfOpen(0, 1)] = 0.0
    beta2: Annotated[float, HalfOpen(0, 1)] = 0.999
    augmentation: str = "color_crop_cutout"
    """DiffAugment's policy; empty for none."""
    flips: bool = True
    """Whether real images are mirrored at random."""
    ema_decay: Annotated[float, HalfOpen(0, 1)] = 0.9999
    """Of the moving average of the generator that is returned; lower in the first steps."""
    precision: Precision = "bfloat16"
    """What convolutions compute in; weights and optimisers stay float32."""
    checkpoint_minutes: Annotated[float, Above(0), MayDiffer] = 5.0
    log_steps: Annotated[int, AtLeast(1), MayDiffer] = 20
    """Steps between two lines of losses in the log."""
    preview_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two grids of sample images."""
    monitor_steps: Annotated[int, AtLeast(1), MayDiffer] = 1000
    """Steps between two measurements of the Fréchet distance, where there is a feature network."""
    monitor_samples: Annotated[int, AtLeast(2), MayDiffer] = 5000
    """Images of each kind that it is measured with, or as many as there are real ones."""
    collapse_ratio: Annotated[float, Above(1), MayDiffer] = 2.0
    """The run has collapsed, and stops, when the distance was more than this times the lowest one ..."""
    collapse_checks: Annotated[int, AtLeast(1), MayDiffer] = 3
    """... so many measurements in a row."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
        diff_augment(self.augmentation)


MAY_DIFFER = marked(GeneratorTrainerConfig, MayDiffer)
