"""Classifiers by name, for small images.

All take standardized images. None has dropout, so a forward pass draws nothing.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import vgg

from .draws import global_rng_seeded

Norm = Literal["instance", "batch", "none"]
DEFAULT_CONVNET = (128, 3, "instance")


class Classifier(nn.Module):
    """A body and a linear layer: standardized images `[N, C, H, W]` to logits `[N, num_classes]`.

    Args:
        features: takes images to `[N, num_features]`, the embedding.
        num_features: its width.
        num_classes: the number of logits.
    """

    def __init__(self, features: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(num_features, num_classes)

    @property
    def num_classes(self) -> int:
        return self.classifier.out_features

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """The embedding `[N, num_features]` that the linear layer reads."""
        embedding: torch.Tensor = self.features(images)
        return embedding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.embed(images))
        return logits


def create_network(
    name: str,
    num_classes: int,
    *,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 128,
    depth: int = 3,
    norm: Norm = "instance",
    rng: torch.Generator | None = None,
) -> Classifier:
    """A fresh classifier in training mode.

    Args:
        name: one of `NETWORKS`.
        num_classes: the number of logits.
        image_shape: `(C, H, W)` of the images; `(3, 32, 32)` is what all bodies are made for.
        width: channels of every ConvNet block (`convnet` only).
        depth: ConvNet blocks, each halving the side (`convnet` only).
        norm: `instance`, `batch` or `none` (`convnet` only).
        rng: gives the seed of the initial weights; a fixed one by default. The global RNG is not touched.

    Raises:
        ValueError: an unknown name or norm, or images too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {', '.join(NETWORKS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if name != "convnet" and (width, depth, norm) != DEFAULT_CONVNET:
        warnings.warn(f"width, depth and norm are options of convnet, {name} ignores them", stacklevel=2)
    seed = int(torch.randint(2**63 - 1, (), generator=rng)) if rng is not None else 0
    with global_rng_seeded(seed):
        if name == "convnet":
            return _convnet(image_shape, num_classes, width, depth, norm)
        features, num_features = _BODIES[name](image_shape[0])
        return Classifier(features, num_features, num_classes)


def _convnet(image_shape: tuple[int, int, int], num_classes: int, width: int, depth: int, norm: Norm) -> Classifier:
    """Blocks of conv 3x3 - norm - ReLU - average pool 2; the embedding is the flattened last pool.

    Source: Gidaris and Komodakis, "Dynamic few-shot visual learning without forgetting", 2018, as used by the
    data set condensation literature, where "instance norm" has one gain and bias per channel.
    """
    norms: dict[Norm, Callable[[], nn.Module]] = {
        "instance": lambda: nn.GroupNorm(width, width),
        "batch": lambda: nn.BatchNorm2d(width),
        "none": nn.Identity,
    }
    if norm not in norms:
        raise ValueError(f"unknown norm {norm!r}; expected one of {', '.join(norms)}")
    channels, height, rows = image_shape[0], image_shape[1] >> depth, image_shape[2] >> depth
    if width < 1 or depth < 1 or min(height, rows) < 1:
        raise ValueError(
            f"a ConvNet needs width and depth of at least 1 and images of {2**depth} px for depth {depth}, "
            f"got width {width} and images of {image_shape}"
        )
    layers: list[nn.Module] = []
    for inputs in [channels] + [width] * (depth - 1):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), norms[norm](), nn.ReLU(inplace=True), nn.AvgPool2d(2)]
    return Classifier(nn.Sequential(*layers, nn.Flatten()), width * height * rows, num_classes)


def _resnet18(channels: int) -> tuple[nn.Module, int]:
    """Torchvision's, with a 3x3 stem of stride 1 and no max pool."""
    body = torchvision.models.resnet18()
    body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    body.maxpool = nn.Identity()
    body.fc = nn.Identity()
    return body, 512


def _vgg19(channels: int) -> tuple[nn.Module, int]:
    """The convolutions of VGG-19 with batch norm, averaged; its three linear layers are for 224 px."""
    layers = vgg.make_layers(vgg.cfgs["E"], batch_norm=True)
    if channels != 3:  # which torchvision takes for granted
        layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _initialize_convolutions(body)
    return body, 512


def _mobilenet_v2(channels: int) -> tuple[nn.Module, int]:
    """Torchvision's, with stem and second stage of stride 1: images of 32 px shrink to 4 px, not to 1 px."""
    # expansion, channels, blocks, stride
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    body = torchvision.models.MobileNetV2(inverted_residual_setting=stages).features
    body[0][0] = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(body[0][0].weight, mode="fan_out")
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1280


class _WideBlock(nn.Module):
    """BN - ReLU - conv - BN - ReLU - conv, plus the input (through a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(maps))
        shortcut = maps if self.shortcut is None else self.shortcut(active)
        output: torch.Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut
        return output


def _wrn16_8(channels: int) -> tuple[nn.Module, int]:
    """A wide residual network of 16 layers, eight times the usual width.

    Source: Zagoruyko and Komodakis, "Wide residual networks", 2016.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    inputs = 16
    for outputs, stride in ((128, 1), (256, 2), (512, 2)):
        layers += [_WideBlock(inputs, outputs, stride), _WideBlock(outputs, outputs, 1)]
        inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    body = nn.Sequential(*layers)
    _initialize_convolutions(body)
    return body, inputs


def _initialize_convolutions(body: nn.Module) -> None:
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


_BODIES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "resnet18": _resnet18,
    "vgg19": _vgg19,
    "wrn16_8": _wrn16_8,
    "mobilenet_v2": _mobilenet_v2,
}
NETWORKS = ("convnet", *_BODIES)
