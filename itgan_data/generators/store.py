"""A frozen generator on disk: described, saved, and read as untrusted data."""

import copy
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import from_json
from ..images import to_class_names
from ..storage.files import (
    TensorInfo,
    all_finite,
    check_sha256,
    open_tensors,
    read_json,
    save_tensors,
    sha256_of,
    write_atomically,
    write_json,
)
from . import trusted
from .biggan import BigGAN, BigGANConfig
from .codec import Codec, CodecConfig
from .contract import ImageGenerator, probe_images
from .frozen import FrozenBigGAN
from .packed_codec import check_packed_header, pack_codec, unpack_codec
from .pixels import Pixels, build_pixels
from .trusted import Trust

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "generator.safetensors"
WEIGHTS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNKNOWN_DATASET = "unknown"
"""What a bundle's `dataset` is where latents were imported with labels alone: its class names are numbers only."""
_SAME = 1e-3  # of signed images; rounding changes them by less


def describe_generator(generator: nn.Module) -> dict[str, Any]:
    """What `build_generator` needs to build it again, besides its tensors; of a user's own class this is tried.

    Raises:
        ValueError: it is a `BigGAN`, or of a class that does not build it again (see `trusted.describe`).
    """
    if isinstance(generator, BigGAN):
        raise ValueError("a BigGAN is stored in its frozen form; fold it first")
    if type(generator) is Pixels:
        return {"architecture": "pixels", "arguments": generator.arguments}
    if type(generator) is Codec:
        return {"architecture": "codec", "arguments": generator.arguments}
    if type(generator) is FrozenBigGAN:
        return {"architecture": "biggan", "arguments": asdict(generator.config)}
    description = trusted.describe(generator)
    _check_rebuilt(generator, description)
    return description


def _check_rebuilt(generator: nn.Module, description: Mapping[str, Any]) -> None:
    original = copy.deepcopy(generator).cpu().float().eval()
    images = probe_images(original)
    rebuilt = build_generator(description, original.state_dict(), trust=type(generator))
    if (probe_images(rebuilt) - images).abs().max() > _SAME:
        name = type(generator).__name__
        raise ValueError(
            f"{name}(**arguments) with the same tensors makes other images; let `arguments` hold all that its "
            "constructor takes, and parameters and buffers all that is learned"
        )


def build_generator(
    description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, trust: Trust = ()
) -> ImageGenerator:
    """The frozen generator of a description and its tensors, in float32 (a trusted class: in the dtypes it chooses).

    Raises:
        ValueError: another architecture, arguments it does not take, or tensors that do not fit.
    """
    outline = _outline(description, trust)
    _check_header(outline, {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()})
    return _filled(outline, description, tensors)


def read_generator(folder: Path, config: Mapping[str, Any], *, trust: Trust = ()) -> ImageGenerator:
    """The generator of a folder whose `config.json` was read; its file is checked before it takes memory.

    Raises:
        ValueError: a checksum, header or tensor that does not fit the configuration, or a class that is not trusted.
    """
    outline = _outline(config["generator"], trust)
    check_sha256(folder / WEIGHTS_FILE, config.get("sha256"))
    file = open_tensors(folder / WEIGHTS_FILE)
    _check_header(outline, file.infos)
    names = _class_names(config, outline.num_classes)
    generator = _filled(outline, config["generator"], file.read())
    generator.class_names = names
    return generator


def _class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """The names of the classes that it was trained on, where they are known."""
    if (names := config.get("class_names")) is None or config.get("dataset") == UNKNOWN_DATASET:
        return None
    if len(found := to_class_names(names)) != num_classes:
        raise ValueError(f"class_names must name the generator's {num_classes} classes, got {len(found)}")
    return found


def _outline(description: object, trust: Trust) -> ImageGenerator:
    """A generator without memory for its weights.

    On the meta device a description that asks for terabytes costs nothing, so its shapes can be compared with those in
    the file before either takes memory. A generator of ours then gets the tensors of the file in place of its own.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"the description of a generator must be an object, got {type(description).__name__}")
    architecture, arguments = description.get("architecture"), description.get("arguments")
    if trusted.is_import_path(architecture):
        return trusted.outline(trusted.find_trusted(architecture, trust), arguments)
    if architecture == "pixels":
        return build_pixels(arguments)
    if architecture == "codec":
        return _outline_codec(arguments)
    if architecture != "biggan":
        raise ValueError(
            f"unknown architecture {reprlib.repr(architecture)}; expected 'biggan', 'codec', 'pixels' or "
            "'package.module:Class'"
        )
    try:
        config = from_json(BigGANConfig, arguments)
    except ValueError as error:
        raise ValueError(f"the arguments of the generator are not those of a BigGAN ({error})") from error
    with torch.device("meta"):
        return FrozenBigGAN(config)


def _filled(
    outline: ImageGenerator, description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> ImageGenerator:
    """The generator of an outline and tensors of its shapes."""
    if infinite := [name for name, tensor in tensors.items() if not all_finite(tensor)]:
        raise ValueError(f"generator tensor {infinite[0]!r} holds values that are not finite")
    if trusted.is_import_path(description["architecture"]):
        return trusted.restore(type(outline), description["arguments"], tensors)
    if isinstance(outline, Codec):
        tensors = unpack_codec(outline, tensors)
    # Copies, because the tensors are mapped: a file cut short under them would end the process.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    outline.load_state_dict(copies, assign=True)
    return outline.to(memory_format=torch.channels_last)


def _outline_codec(arguments: object) -> Codec:
    try:
        if not isinstance(arguments, Mapping) or type(encoder := arguments.get("encoder")) is not bool:
            raise ValueError("encoder must be true or false")
        config = from_json(CodecConfig, {name: value for name, value in arguments.items() if name != "encoder"})
    except ValueError as error:
        raise ValueError(f"the arguments of the generator are not those of a Codec ({error})") from error
    with torch.device("meta"):
        return Codec(config, encoder=encoder).eval().requires_grad_(False)


def _check_header(generator: nn.Module, tensors: Mapping[str, TensorInfo]) -> None:
    if isinstance(generator, Codec):
        check_packed_header(generator, tensors, WEIGHTS_DTYPES)
        return
    expected = generator.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        wanted = tuple(expected[name].shape) if name in expected else None
        got = tensors[name].shape if name in tensors else None
        if wanted != got:
            raise ValueError(f"generator tensor {name[:80]!r}: expected shape {wanted}, got {got}")
        dtypes = WEIGHTS_DTYPES if expected[name].is_floating_point() else (expected[name].dtype,)
        if (dtype := tensors[name].dtype) not in dtypes:
            raise ValueError(f"generator tensor {name!r}: expected one of {dtypes}, got {dtype}")


def save_weights(path: Path, generator: nn.Module, *, dtype: torch.dtype) -> None:
    """Write parameters and buffers, those of floats in `dtype`."""
    if type(generator) is Codec:
        save_tensors(path, pack_codec(generator, dtype))
        return
    tensors = generator.state_dict()
    # Copies, because a file holds no tensor twice and modules may share some.
    save_tensors(path, {k: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) for k, v in tensors.items()})


def save_generator(
    folder: str | os.PathLike[str],
    generator: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write `generator.safetensors`, and `config.json` with its description, checksum and class names if known.

    Raises:
        ValueError: as of `describe_generator`, or the folder is a bundle, whose latents would be left without theirs.
    """
    folder, description = Path(folder), describe_generator(generator)
    if (folder / CONFIG_FILE).is_file() and "format" in read_json(folder / CONFIG_FILE):
        raise ValueError(f"{folder} holds a bundle, whose latents need the generator in it; choose another folder")
    names = class_names or getattr(generator, "class_names", None)
    known = {} if names is None else {"class_names": list(to_class_names(names))}
    with write_atomically(folder / WEIGHTS_FILE) as weights:  # on a full disk the older generator stays whole
        save_weights(weights, generator, dtype=dtype)
        checksum = {WEIGHTS_FILE: sha256_of(weights)}
        write_json(folder / CONFIG_FILE, {"generator": description, **known, "sha256": checksum})


def load_generator(path: str | os.PathLike[str], *, trust: Trust = ()) -> ImageGenerator:
    """Read a frozen generator from a folder: what `GeneratorTrainer` wrote, or a bundle.

    Args:
        path: of the folder.
        trust: classes of generators that are not of this package, as in `load_bundle`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the weights do not fit their description, or the class is not trusted.
    """
    folder = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; expected a bundle or a trained generator")
    config = read_json(folder / CONFIG_FILE)
    if "generator" not in config:
        raise ValueError(f"{folder / CONFIG_FILE} has no key 'generator'; expected a bundle or a trained generator")
    return read_generator(folder, config, trust=trust)
