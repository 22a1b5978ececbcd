"""Read the checkpoints that other implementations released."""

import os
import pickle
import re
from collections.abc import Mapping

import torch

from .biggan import BigGAN, BigGANConfig
from .inference import FrozenBigGAN, fold

# Our names for theirs, in the family of IT-GAN, DiffAugment and ajbrock's BigGAN-PyTorch.
_RENAMES = (
    (re.compile(r"^blocks\.(\d+)\.0\."), r"blocks.\1."),
    (re.compile(r"\.conv_sc\."), ".shortcut."),
    (re.compile(r"\.(gain|bias)\.weight$"), r".\1"),
    (re.compile(r"^output_layer\.0\.(gain|bias)$"), r"output.\1"),
    (re.compile(r"^output_layer\.0\.stored_"), "output.bn.stored_"),
    (re.compile(r"^output_layer\.2\."), "output.conv."),
    (re.compile(r"\.stored_"), ".running_"),
    (re.compile(r"\.u0$"), ".u"),
)

_MARKS = {"linear.weight", "linear.u0", "blocks.0.0.bn1.gain.weight"}  # sizes are read off them


def import_generator(path: str | os.PathLike[str]) -> FrozenBigGAN:
    """Read a released generator checkpoint and freeze it.

    The sizes (classes, latent dimension, channels, resolution) are read off the shapes of the tensors.

    Args:
        path: a `.pth` state dict of the IT-GAN / DiffAugment / BigGAN-PyTorch family.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load, or is of another family.
    """
    state = _load_state_dict(path)
    if not state.keys() >= _MARKS:
        raise ValueError(
            f"{path} is of an unknown family (first keys {list(state)[:4]}); "
            "expected IT-GAN / DiffAugment / BigGAN-PyTorch with keys such as 'linear.u0', 'blocks.0.0.conv1.weight'"
        )
    return fold(_from_biggan_pytorch(state))


def _load_state_dict(path: str | os.PathLike[str]) -> Mapping[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or needs code to load, which is refused") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        keys = list(state)[:4] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"{path} must hold a bare state dict of tensors, got {keys}")
    return state


def _from_biggan_pytorch(state: Mapping[str, torch.Tensor]) -> BigGAN:
    num_classes, first_width = state["blocks.0.0.bn1.gain.weight"].shape
    widths = [first_width]
    while (key := f"blocks.{len(widths) - 1}.0.conv1.weight") in state:
        widths.append(state[key].shape[0])
    config = BigGANConfig(num_classes=num_classes, latent_dim=state["linear.weight"].shape[1], channels=tuple(widths))
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        if not name.endswith(".sv0"):  # the last singular value is computed anew from u0
            renamed[name] = tensor
    generator = BigGAN(config)
    try:
        generator.load_state_dict(renamed)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise ValueError(f"the checkpoint does not fit a BigGAN of {config}: {reasons}") from error
    return generator.eval()
