"""Networks that give the features in which images are compared."""

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..config import needs_extra
from ..images import uint8_to_unit, unit_to_uint8


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that gives the features in which images are compared.

    Args:
        name: written next to every number computed with it; says which network it is and how well it was trained.
        embed: maps unit images `[B, C, H, W]` to features `[B, d]`, each image on its own: a network in evaluation
            mode, after the normalization that it expects.
    """

    name: str
    embed: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def features(self, images: torch.Tensor, *, batch_size: int = 250) -> torch.Tensor:
        """Features `[N, d]`, float32 on the CPU, of uint8 images `[N, C, H, W]`."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be uint8 [N, C, H, W], not empty, got {images.dtype} {tuple(images.shape)}")
        return torch.cat([self.embed(uint8_to_unit(batch)).float().cpu() for batch in torch.split(images, batch_size)])


def inception(weights: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """The Inception v3 of the usual FID: 2,048 features of images resized to 299 px as TensorFlow 1 did.

    Args:
        weights: the state dict that torch-fidelity publishes (`weights-inception-2015-12-05-6726825d.pth`). Nothing
            is downloaded.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load, or holds other weights.
        RuntimeError: the extra `metrics` is not installed.
    """
    with needs_extra("metrics"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        tensors = io.BytesIO()  # torch-fidelity would run what code the file holds; it gets the tensors alone
        torch.save(state, tensors)
        tensors.seek(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=tensors)
    except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{weights} is damaged, needs code to load (which is refused) or is no state dict of the FID's Inception; "
            "expected torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        ) from error
    network.to(device)

    def embed(unit: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network(unit_to_uint8(unit).to(device))[0]
        return features

    return FeatureNetwork("Inception v3", embed)
