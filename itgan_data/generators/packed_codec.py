"""The tensors of a codec on disk: rounded weights entropy-coded, all other numbers in one row of floats."""

from collections.abc import Mapping

import numpy as np
import torch

from ..storage.files import TensorInfo
from .codec import Codec, RoundedConv2d
from .packing import pack_arrays, unpack_arrays

_CODED = ("weights", "tables")
_FLOATS = "floats"
_MAX_PACKED = 64 << 20  # of a tensor of packed weights


def pack_codec(codec: Codec, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a file, floats in `dtype`.

    Raises:
        ValueError: a weight of the decoder without a step, so not rounded.
    """
    convs = _rounded(codec)
    if bare := [name for name, conv in convs.items() if not (conv.weight_step > 0).all()]:
        raise ValueError(f"weights of {bare[0]} have no step to be rounded to; round the codec before it is stored")
    stream, tables = pack_arrays([conv.multiples().detach().cpu().numpy().astype(np.int8) for conv in convs.values()])
    state = codec.state_dict()
    floats = torch.cat([state[name].detach().flatten().to("cpu", dtype) for name in _float_names(codec)])
    return {
        "weights": torch.frombuffer(bytearray(stream), dtype=torch.uint8),
        "tables": torch.frombuffer(bytearray(tables), dtype=torch.uint8),
        _FLOATS: floats,
    }


def check_packed_header(codec: Codec, header: Mapping[str, TensorInfo], dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a file that does not hold the weights of a codec (which may be without memory), before it is read.

    Raises:
        ValueError: other tensors, types or sizes.
    """
    state = codec.state_dict()
    count = sum(state[name].numel() for name in _float_names(codec))
    for name in sorted({*_CODED, _FLOATS} | header.keys()):
        info = header.get(name)
        fits = info is not None and len(info.shape) == 1
        if info is not None and name in _CODED:
            fits = fits and info.dtype == torch.uint8 and info.shape[0] <= _MAX_PACKED
        elif info is not None:
            fits = fits and name == _FLOATS and info.dtype in dtypes and info.shape[0] == count
        if not fits:
            wanted = "uint8 [n]" if name in _CODED else f"[{count}] of floats" if name == _FLOATS else None
            raise ValueError(f"generator tensor {name[:80]!r}: expected {wanted}, got {info}; the file is damaged")


def unpack_codec(codec: Codec, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state in float32 that `pack_codec` packed, of a codec of the same sizes (which may be without memory).

    Raises:
        ValueError: damaged weights.
    """
    expected = codec.state_dict()
    names = _float_names(codec)
    pieces = torch.split(tensors[_FLOATS].float(), [expected[name].numel() for name in names])
    state = {name: piece.view(expected[name].shape) for name, piece in zip(names, pieces, strict=True)}
    convs = _rounded(codec)
    stream, tables = (tensors[name].numpy().tobytes() for name in _CODED)
    arrays = unpack_arrays(stream, tables, [tuple(conv.weight.shape) for conv in convs.values()])
    for name, multiples in zip(convs, arrays, strict=True):
        state[f"{name}.weight"] = torch.from_numpy(multiples).float() * state[f"{name}.weight_step"]
    return {name: state[name] for name in expected}


def _rounded(codec: Codec) -> dict[str, RoundedConv2d]:
    return {name: module for name, module in codec.named_modules() if isinstance(module, RoundedConv2d)}


def _float_names(codec: Codec) -> list[str]:
    """What is not rounded: biases, steps, the few weights that see the rate, and the encoder where there is one."""
    rounded = {f"{name}.weight" for name in _rounded(codec)}
    return [name for name in codec.state_dict() if name not in rounded]
