"""How far decoded images are from real ones in the maps of small ConvNets that were trained on real images."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import draws
from ..draws import Stream
from ..images import LabeledImages, Normalization
from ..networks import Classifier, create_network
from ..recipes import fast_recipe, train_classifier
from ..storage.files import load_tensors, save_tensors
from .codec_config import CodecTrainerConfig

logger = logging.getLogger(__name__)

Blocks = list[torch.Tensor]
"""Weight and bias of the convolution, then gain and bias of the norm, of each block of a ConvNet."""


def feature_networks(
    config: CodecTrainerConfig,
    images: LabeledImages,
    normalization: Normalization,
    folder: Path,
    *,
    device: torch.device,
    flips: bool,
) -> list[Blocks]:
    """ConvNets trained on real images; they are kept in `folder`, and taken from there."""
    found = []
    for number in range(config.feature_networks):
        rng = draws.make_rng(config.seed, number, stream=Stream.CODEC_FEATURES)
        network = create_network(
            "convnet", images.num_classes, image_shape=images.image_shape, width=config.feature_width, rng=rng
        )
        path = folder / f"{number}.safetensors"
        if path.is_file():
            network.load_state_dict(load_tensors(path))
        else:
            logger.info("training feature network %d of %d", number + 1, config.feature_networks)
            recipe = fast_recipe(config.feature_steps, flip=flips)
            train_classifier(network, images, recipe, normalization=normalization, seed=number, device=device)
            save_tensors(path, network.state_dict())
        found.append(_blocks(network.to(device)))
    return found


def _blocks(network: Classifier) -> Blocks:
    layers = [module for module in network.features.modules() if isinstance(module, (nn.Conv2d, nn.GroupNorm))]
    return [parameter.detach() for layer in layers for parameter in (layer.weight, layer.bias) if parameter is not None]


def feature_distance(blocks: Blocks, real: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Mean over blocks of the squared distance of their maps, relative to the real images' maps.

    Images are as the networks were trained on; blocks are conv - instance norm - ReLU - average pool.
    """
    layers = [blocks[first : first + 4] for first in range(0, len(blocks), 4)]
    total = decoded.new_zeros(())
    for weight, bias, gain, offset in layers:
        maps = []
        for images in (real, decoded):
            inner = F.group_norm(F.conv2d(images, weight, bias, padding=1), len(gain), gain, offset)
            maps.append(F.avg_pool2d(F.relu(inner), 2))
        real, decoded = maps
        target = real.float().detach()
        total = total + (decoded.float() - target).square().mean() / target.square().mean()
    mean: torch.Tensor = total / len(layers)
    return mean
