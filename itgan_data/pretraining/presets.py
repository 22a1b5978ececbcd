"""Ways to train a generator that were tried: functions that return its trainer's configuration.

`dataclasses.replace` changes single fields.
"""

from ..generators.biggan import BigGANConfig
from ..generators.codec import CodecConfig
from .codec_config import CodecTrainerConfig
from .config import GeneratorTrainerConfig


def digits(num_classes: int = 10) -> GeneratorTrainerConfig:
    """For scikit-learn's digits, about a minute on two cores: 32 channels."""
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
    """For images of 32 px, some hours on two cores: 64 channels.

    In 12 passes over the data the discriminator cannot overfit yet, and heavy DiffAugment only weakens it. Two updates
    of the discriminator per update of the generator helped more than twice the steps.
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
    """For images of 32 px on a GPU, in the size of the paper: 256 channels and all of DiffAugment."""
    return GeneratorTrainerConfig(generator=BigGANConfig(num_classes=num_classes), discriminator_steps=4)


def codec_digits(num_classes: int = 10) -> CodecTrainerConfig:
    """A codec of scikit-learn's digits in about a minute on two cores."""
    return CodecTrainerConfig(
        codec=CodecConfig(num_classes=num_classes, channels=32, decoder_widths=(16, 16), decoder_blocks=(1, 1)),
        steps=600,
        feature_width=32,
        feature_steps=100,
        feature_networks=1,
        precision="float32",
        compile=False,
        preview_steps=300,
        measure_steps=300,
    )


def codec_small(num_classes: int = 10) -> CodecTrainerConfig:
    """A codec of images of 32 px in about half an hour on one core: 24 passes over 50,000 images.

    After some ten passes it gains little: the transform, the small networks and the prior are at what they can do.
    """
    return CodecTrainerConfig(codec=CodecConfig(num_classes=num_classes), steps=18_000)


def codec_paper(num_classes: int = 10) -> CodecTrainerConfig:
    """A codec of images of 32 px on a GPU: a larger encoder, which takes no bytes, and ten times the steps."""
    return CodecTrainerConfig(
        codec=CodecConfig(num_classes=num_classes, encoder_widths=(64, 128, 256), decoder_blocks=(2, 4)),
        steps=200_000,
        batch_size=128,
        lr=5e-4,
        feature_width=128,
        feature_networks=8,
    )
