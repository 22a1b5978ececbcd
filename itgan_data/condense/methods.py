"""Published methods as functions that return a `CondenserConfig`.

Each returns the published configuration for CIFAR-10. `dataclasses.replace` changes single fields: other data sets need
their own `normalization`, and digits a `strategy` without `flip`. `dm`, `dc` and `dsa` learn pixels, so pass the
Condenser a `Pixels` generator. `images_per_class=None` takes all images.
"""

from dataclasses import replace
from typing import Literal

from ..augmentation import DSA
from .config import CondenserConfig, Initialization
from .inversion import InversionConfig
from .network_source import FreshNetworks

# Images per class: (outer steps, passes over the synthetic images after each).
_LOOPS = {1: (1, 0), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def it_gan(*, images_per_class: int | None = None, group_size: int | None = 1250) -> CondenserConfig:
    """GAN latents, initialised by inversion, with distribution matching on a pool of trained networks.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Section 4.1: Adam,
    learning rate 1e-3, 5000 steps, groups of 1250 latents per class, lambda 0.
    """
    return CondenserConfig(images_per_class=images_per_class, group_size=group_size, lr_latents=1e-3)


def it_gan_gradient(*, images_per_class: int | None = 100) -> CondenserConfig:
    """IT-GAN with gradient matching, the other objective of its Table 4.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Section 4.5.
    """
    return CondenserConfig(images_per_class=images_per_class, objective="gradient", lr_latents=1e-3)


def gan_inversion(
    *, images_per_class: int | None = None, by: Literal["both", "optimization", "encoder"] = "both"
) -> CondenserConfig:
    """Latents whose images reconstruct real ones, without matching.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 8 for the
    optimisation, learning rate 0.1; the encoder is ours.

    Args:
        images_per_class: how many real images to invert.
        by: `optimization` is Adam on normal draws, `encoder` an encoder's prediction, `both` Adam on that prediction.
    """
    kinds = {
        "both": InversionConfig(),
        "optimization": InversionConfig(encoder_steps=0, steps=500),
        "encoder": InversionConfig(steps=0),
    }
    if by not in kinds:
        raise ValueError(f"by must be one of {', '.join(kinds)}, got {by!r}")
    return CondenserConfig(images_per_class=images_per_class, steps=0, inversion=kinds[by])


def dm(*, images_per_class: int = 50, norm: Literal["instance", "batch"] = "instance") -> CondenserConfig:
    """Pixels, initialised by real images, with distribution matching on a new random network at every step.

    Source: Zhao and Bilen, "Dataset condensation with distribution matching" (DM), 2021: SGD with momentum 0.5,
    learning rate 1 (10 for 100 and more images per class), 20,000 steps, 256 real images per class.

    Args:
        images_per_class: 1, 10 and 50 in the paper.
        norm: of the networks; `batch` is used in its Table 2.
    """
    return CondenserConfig(
        images_per_class=images_per_class,
        steps=20_000,
        optimizer="sgd",
        lr_latents=10.0 if images_per_class >= 100 else 1.0,
        networks=FreshNetworks(norm=norm),
    )


def dc(*, images_per_class: int = 10, initialize: Initialization = "normal", draws: int = 1000) -> CondenserConfig:
    """Pixels, with gradient matching on a network that is trained on them along the way, without augmentation.

    Source: Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching" (DC), 2021: SGD with momentum 0.5 and
    learning rate 0.1 on pixels, 0.01 and no momentum on networks; steps per network from the released code.

    Args:
        images_per_class: also selects the steps per network: the published ones for the nearest number of images.
        initialize: `normal` for noise, `inversion` for real images.
        draws: how many networks are drawn, one after the other.
    """
    outer_steps, inner_epochs = _LOOPS[min(_LOOPS, key=lambda count: abs(count - images_per_class))]
    return CondenserConfig(
        images_per_class=images_per_class,
        initialize=initialize,
        steps=draws * outer_steps,
        objective="gradient",
        optimizer="sgd",
        lr_latents=0.1,
        strategy="",
        networks=FreshNetworks(outer_steps=outer_steps, inner_epochs=inner_epochs),
    )


def dsa(*, images_per_class: int = 10, initialize: Initialization = "inversion", draws: int = 1000) -> CondenserConfig:
    """`dc` with differentiable siamese augmentation, both in matching and in training the network.

    Source: Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation" (DSA), 2021.
    """
    config = dc(images_per_class=images_per_class, initialize=initialize, draws=draws)
    return replace(config, strategy=DSA().strategy)
