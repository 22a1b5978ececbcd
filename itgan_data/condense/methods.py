"""The methods of the literature, each a row of choices: functions that return a `CondenserConfig`.

What they return is the published configuration for CIFAR-10. `dataclasses.replace` changes single fields; another data
set needs its own `normalization`, and digits a `strategy` without `flip`. Those that learn pixels are run on a
`Pixels` generator. Fresh samples of a GAN are no condensation: they are `RandomLatents`.
"""

from dataclasses import replace
from typing import Literal

from ..augmentation import DSA
from .config import CondenserConfig, Initialization
from .inversion import InversionConfig
from .network_source import FreshNetworks

# Images per class: outer steps, and passes over the synthetic images after each.
_LOOPS = {1: (1, 0), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def it_gan(*, images_per_class: int | None = None, group_size: int | None = 1250) -> CondenserConfig:
    """Latents of a GAN from inversion, matched in distribution on a pool of trained networks.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Section 4.1: Adam,
    learning rate 1e-3, 5000 steps, groups of 1250 latents per class, lambda 0.

    Args:
        images_per_class: None for all.
        group_size: latents per class that are learned together; None for all, in chunks that fit the memory.
    """
    return CondenserConfig(images_per_class=images_per_class, group_size=group_size, lr_latents=1e-3)


def it_gan_gradient(*, images_per_class: int | None = 100) -> CondenserConfig:
    """IT-GAN with gradient matching, the other objective of its Table 4: learning rate 1e-3, 100 latents per class.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Section 4.5.
    """
    return CondenserConfig(images_per_class=images_per_class, objective="gradient", lr_latents=1e-3)


def gan_inversion(
    *, images_per_class: int | None = None, by: Literal["both", "optimization", "encoder"] = "both"
) -> CondenserConfig:
    """Latents whose images resemble real ones, as they are: no matching.

    Source: Zhao and Bilen, "Synthesizing informative training samples with GAN" (IT-GAN), 2022, Eq. 8 for the
    optimisation, learning rate 0.1; the encoder is ours.

    Args:
        images_per_class: None for all.
        by: Adam on each latent from normal draws, an encoder's prediction, or Adam from there.

    Raises:
        ValueError: another word.
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
    """Pixels from real images, matched in distribution on a fresh random network every step.

    Source: Zhao and Bilen, "Dataset condensation with distribution matching" (DM), 2021: SGD with momentum 0.5,
    learning rate 1 (10 from 100 images per class on), 20,000 steps, 256 real images per class.

    Args:
        images_per_class: 1, 10 and 50 in the paper.
        norm: of the networks; `batch` is its Table 2.
    """
    return CondenserConfig(
        images_per_class=images_per_class,
        steps=20_000,
        optimizer="sgd",
        lr_latents=10.0 if images_per_class >= 100 else 1.0,
        networks=FreshNetworks(norm=norm),
    )


def dc(
    *,
    images_per_class: int = 10,
    initialize: Initialization = "normal",
    draws: int = 1000,
) -> CondenserConfig:
    """Pixels, matched to the gradients of a network that is trained along, without augmentation.

    Source: Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching" (DC), 2021: SGD with momentum 0.5 and
    learning rate 0.1 on pixels, 0.01 and no momentum on networks. The numbers of steps a network are those of the
    released code.

    Args:
        images_per_class: chooses the steps a network, those of the nearest published number of images.
        initialize: noise, or `inversion` for real images.
        draws: how many networks are drawn.
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
    """`dc` with differentiable siamese augmentation, of the matched images and in the training of the network.

    Source: Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation" (DSA), 2021.
    """
    config = dc(images_per_class=images_per_class, initialize=initialize, draws=draws)
    return replace(config, strategy=DSA().strategy)
