"""Ways to train a generator that were tried: functions that return a `GeneratorTrainerConfig`.

`dataclasses.replace` changes single fields.
"""

from ..generators.biggan import BigGANConfig
from .config import GeneratorTrainerConfig


def digits(num_classes: int = 10) -> GeneratorTrainerConfig:
    """Scikit-learn's digits in about a minute on two cores: 32 channels."""
    return GeneratorTrainerConfig(
        generator=BigGANConfig(num_classes=num_classes, latent_dim=32, channels=(32, 32, 32, 32)),
        discriminator_channels=32,
        discriminator_steps=2,
        lr_generator=5e-4,
        lr_discriminator=1e-3,
        steps=600,
        batch_size=32,
        augmentation="crop",
        ema_decay=0.99,
        flips=False,
        precision="float32",
        preview_steps=250,
        monitor_steps=100,
        monitor_samples=1000,
    )


def small(num_classes: int = 10) -> GeneratorTrainerConfig:
    """Images of 32 px on two cores, in hours: 64 channels.

    At 12 passes over the data the discriminator cannot overfit yet, and heavy DiffAugment only weakens it; two updates
    of it for each of the generator were worth more than twice the steps.
    """
    return GeneratorTrainerConfig(
        generator=BigGANConfig(num_classes=num_classes, channels=(64, 64, 64, 64)),
        discriminator_channels=64,
        discriminator_steps=2,
        lr_discriminator=4e-4,
        steps=5500,
        augmentation="crop",
        ema_decay=0.999,
        preview_steps=500,
        monitor_steps=500,
    )


def paper(num_classes: int = 10) -> GeneratorTrainerConfig:
    """Images of 32 px on a GPU, at the size of the reference: 256 channels, and all of DiffAugment."""
    return GeneratorTrainerConfig(generator=BigGANConfig(num_classes=num_classes), discriminator_steps=4)
