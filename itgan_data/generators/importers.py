"""Read the generator checkpoints that other implementations released; their images are reproduced to 1e-5.

    IT-GAN, DiffAugment, BigGAN-PyTorch   a bare state dict; shared embedding, hierarchical latents, attention
    StudioGAN `big_resnet`                `state_dict`; the same three, batch norm with eps 1e-4
    mimicry cGAN-PD                       `model_state_dict`; bilinear upsampling, no spectral norm

A family is a `_Family`: how its names become ours, and what of `BigGANConfig` its tensors do not tell. Everything else
of the configuration is read off the shapes, alike for all families.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..storage.torch_files import read_torch_file
from .biggan import BigGAN, BigGANConfig
from .contract import probe_images
from .frozen import FrozenBigGAN, fold

_Tensors = dict[str, torch.Tensor]
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # the second where a layer alone was compiled


@dataclass(frozen=True, kw_only=True)
class _Family:
    name: str
    marks: tuple[str, ...]
    """Keys that only its checkpoints have together."""
    rename: tuple[tuple[str, str], ...]
    """Patterns and what replaces them, one after the other."""
    adapt: Callable[[_Tensors], _Tensors]
    """Brings its tensors to our conventions, before names are replaced."""
    constants: Mapping[str, Any]
    """Options of `BigGANConfig`."""


def import_generator(path: str | os.PathLike[str]) -> FrozenBigGAN:
    """Read a released generator checkpoint and freeze it.

    The family is known by the keys, without what DataParallel (`module.`) and torch.compile (`_orig_mod.`) put before
    them; sizes (classes, latent, channels, resolution, shared embedding, attention) are read off the shapes of the
    tensors. Of several generators in a file the moving average is taken: the one with "ema" in its name.

    Args:
        path: a `.pth` file of IT-GAN, DiffAugment or BigGAN-PyTorch, of StudioGAN's `big_resnet`, or of mimicry's
            cGAN-PD.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file needs code to load, is of another family, its tensors do not fit together, or it makes one
            image of all latents, such as an all-black one.
    """
    frozen = fold(import_training_form(path))
    if not all(tensor.isfinite().all() for tensor in frozen.state_dict().values()):
        raise ValueError(f"{path} holds weights that are not finite; fetch or make it again")
    try:
        probe_images(frozen)
    except ValueError as error:
        raise ValueError(f"{path} is of no use: {error}") from error
    return frozen


def import_training_form(path: str | os.PathLike[str]) -> BigGAN:
    """What `import_generator` freezes: the same checkpoint as a `BigGAN` in evaluation mode, float32."""
    family, state = _find_generator(path, read_torch_file(path))
    try:
        return _build(family, state)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        reasons = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} does not fit a BigGAN of {family.name}: {reasons:.1000}") from error


def _find_generator(path: str | os.PathLike[str], content: Mapping[str, Any]) -> tuple[_Family, _Tensors]:
    """The family and the tensors of the one generator in a checkpoint: all of it, or a dictionary in it."""
    parts = {name: part for name, part in content.items() if isinstance(part, Mapping)} | {"": content}
    states = {name: _unwrapped(part) for name, part in parts.items()}
    found = {n: family for n, state in states.items() for family in _FAMILIES if state.keys() >= set(family.marks)}
    inner = [name for name in found if name]
    names = [name for name in inner if "ema" in name.lower()] or inner or list(found)
    if not names:
        expected = "; ".join(f"{family.name} (with {', '.join(family.marks)})" for family in _FAMILIES)
        first = list(next(iter(states.values())))[:4]
        raise ValueError(f"{path} is of an unknown family (first keys {first!r:.200}); expected {expected}")
    if len(names) > 1:
        raise ValueError(f"{path} holds several generators ({', '.join(names):.200}); save one of them alone")
    return found[names[0]], states[names[0]]


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors under the names that they had before DataParallel and torch.compile wrapped the module, in any order."""
    unwrapped = {_WRAPPERS.sub("", str(name)): value for name, value in state.items()}
    return unwrapped if len(unwrapped) == len(state) else dict(state)  # names that would become equal are left alone


def _build(family: _Family, state: Mapping[str, Any]) -> BigGAN:
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name!r:.80} is a {type(tensor).__name__}, expected names of tensors")
    renamed = {}
    for name, tensor in family.adapt(dict(state)).items():
        for pattern, replacement in family.rename:
            name = re.sub(pattern, replacement, name)
        if not tensor.is_floating_point():
            raise ValueError(f"{name!r:.80} holds {tensor.dtype}, expected floats")
        renamed[name] = tensor.detach().float()
    config = _config(renamed, family.constants)
    with torch.device("meta"):  # shapes are compared before they take memory
        generator = BigGAN(config)
    generator.load_state_dict(renamed, assign=True)
    return generator.requires_grad_(True).eval()


def _config(tensors: _Tensors, constants: Mapping[str, Any]) -> BigGANConfig:
    """The configuration of tensors under our names."""
    linear, first_gain = tensors["linear.weight"], tensors.get("blocks.0.bn1.gain")
    blocks = [int(match[1]) for match in map(re.compile(r"blocks\.(\d{1,4})\.").match, tensors) if match]
    channels = [tensors["blocks.0.conv1.weight"].shape[1]]
    for number in range(1 + max(blocks)):
        channels.append(tensors[f"blocks.{number}.conv1.weight"].shape[0])
    attention = [number for number in range(len(channels)) if f"blocks.{number}.attention.strength" in tensors]
    shared_dim, hierarchical = 0, False
    if first_gain is None:
        shared_dim = tensors["shared"].shape[1]
        hierarchical = tensors["blocks.0.bn1.gain.weight"].shape[1] > shared_dim
    return BigGANConfig(
        num_classes=len(tensors["shared"] if first_gain is None else first_gain),
        latent_dim=linear.shape[1] * (len(channels) if hierarchical else 1),
        channels=tuple(channels),
        shared_dim=shared_dim,
        hierarchical=hierarchical,
        attention_size=8 << attention[0] if attention else 0,
        **constants,
    )


def _adapt_biggan_pytorch(state: _Tensors) -> _Tensors:
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(".sv0")}  # computed again from u0
    if "shared.weight" in kept:
        return kept
    return {re.sub(r"\.(gain|bias)\.weight$", r".\1", name): tensor for name, tensor in kept.items()}  # tables


def _adapt_studiogan(state: _Tensors) -> _Tensors:
    """Weights divided by their norm, which torch holds constant in evaluation; attention in the block before it."""
    adapted: _Tensors = {}
    attention = [int(name.split(".")[1]) for name in state if re.fullmatch(r"blocks\.\d+\.0\.sigma", name)]
    for name, tensor in state.items():
        if name.endswith((".weight_u", ".weight_v", ".num_batches_tracked")):
            continue
        if (layer := name.removesuffix(".weight_orig")) != name:
            norm = state[f"{layer}.weight_u"].dot(tensor.flatten(1).mv(state[f"{layer}.weight_v"]))
            name, tensor = f"{layer}.weight", tensor / norm
        if match := re.match(r"blocks\.(\d+)\.0\.", name):
            place = int(match[1])
            room = "attention." if place in attention else ""
            name = f"blocks.{place - sum(other <= place for other in attention)}.{room}{name[match.end() :]}"
        adapted[name] = tensor.reshape(()) if name.endswith(".sigma") else tensor
    return adapted


def _adapt_mimicry(state: _Tensors) -> _Tensors:
    """Blocks counted from 0, and the embedding as a table of gains less 1, and one of biases."""
    adapted: _Tensors = {}
    for name, tensor in state.items():
        if match := re.match(r"block(\d+)\.", name):
            name = f"blocks.{int(match[1]) - 2}.{name[match.end() :]}"
        if (norm := name.removesuffix(".embed.weight")) != name:
            gain, bias = tensor.chunk(2, dim=1)
            adapted |= {f"{norm}.gain": gain - 1.0, f"{norm}.bias": bias}
        elif not name.endswith(".num_batches_tracked"):
            adapted[name] = tensor
    return adapted


_FAMILIES = (
    _Family(
        name="IT-GAN / DiffAugment / BigGAN-PyTorch",
        marks=("linear.weight", "linear.u0", "blocks.0.0.bn1.gain.weight"),
        rename=(
            (r"^blocks\.(\d+)\.0\.", r"blocks.\1."),
            (r"^blocks\.(\d+)\.1\.", r"blocks.\1.attention."),
            (r"\.attention\.gamma$", ".attention.strength"),
            (r"\.attention\.theta\.", ".attention.query."),
            (r"\.attention\.phi\.", ".attention.key."),
            (r"\.attention\.g\.", ".attention.value."),
            (r"\.attention\.o\.", ".attention.output."),
            (r"^shared\.weight$", "shared"),
            (r"\.conv_sc\.", ".shortcut."),
            (r"^output_layer\.0\.(gain|bias)$", r"output.\1"),
            (r"^output_layer\.0\.stored_", "output.bn.stored_"),
            (r"^output_layer\.2\.", "output.conv."),
            (r"\.stored_", ".running_"),
            (r"\.u0$", ".u"),
        ),
        adapt=_adapt_biggan_pytorch,
        constants={},
    ),
    _Family(
        name="StudioGAN big_resnet",
        marks=("linear0.weight_orig", "shared.weight", "bn4.weight"),
        rename=(
            (r"^linear0\.", "linear."),
            (r"\.attention\.sigma$", ".attention.strength"),
            (r"\.conv1x1_theta\.", ".query."),
            (r"\.conv1x1_phi\.", ".key."),
            (r"\.conv1x1_g\.", ".value."),
            (r"\.conv1x1_attn\.", ".output."),
            (r"^shared\.weight$", "shared"),
            (r"\.bn\.running_", ".running_"),
            (r"\.conv2d0\.", ".shortcut."),
            (r"\.conv2d([12])\.", r".conv\1."),
            (r"^bn4\.running_", "output.bn.running_"),
            (r"^bn4\.weight$", "output.gain"),
            (r"^bn4\.bias$", "output.bias"),
            (r"^conv2d5\.", "output.conv."),
        ),
        adapt=_adapt_studiogan,
        constants={"bn_eps": 1e-4, "spectral_norm": False},
    ),
    _Family(
        name="mimicry cGAN-PD",
        marks=("l1.weight", "block2.c1.weight", "block2.b1.embed.weight"),
        rename=(
            (r"^l1\.", "linear."),
            (r"\.b([12])\.", r".bn\1."),
            (r"\.bn\.running_", ".running_"),
            (r"\.c([12])\.", r".conv\1."),
            (r"\.c_sc\.", ".shortcut."),
            (r"^b\d+\.running_", "output.bn.running_"),
            (r"^b\d+\.weight$", "output.gain"),
            (r"^b\d+\.bias$", "output.bias"),
            (r"^c\d+\.", "output.conv."),
        ),
        adapt=_adapt_mimicry,
        constants={"upsampling": "bilinear", "spectral_norm": False},
    ),
)
