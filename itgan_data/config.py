"""What every configuration shares: checked types, what convolutions compute in, optional packages, the release."""

import importlib.metadata
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args

import torch

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Refuse what is not one of `PRECISIONS`.

    Raises:
        ValueError: another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which matrix products and convolutions on `device` compute in `precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def computing(
    function: Callable[..., torch.Tensor], device: torch.device, precision: str, *, compiled: bool
) -> Callable[..., torch.Tensor]:
    """`function` in `precision` on `device`, through torch.compile if that is asked for, with float32 results."""
    compute = torch.compile(function) if compiled else function

    def call(*arguments: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return compute(*arguments).float()

    return call


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of an extra's packages: a missing one is an error that says what to install.

    Raises:
        RuntimeError: an import in the block failed.
    """
    try:
        yield
    except ImportError as error:
        raise RuntimeError(f"{error.name} cannot be imported ({error}); pip install 'itgan_data[{extra}]'") from error


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_KINDS: dict[type, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", _is_whole),
    float: ("a finite number", _is_finite),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
}


def check_types(config: Any) -> None:
    """Refuse values that are not what a field asks for: whole and finite numbers, truth values, text.

    Args:
        config: a dataclass; fields annotated otherwise are passed over.

    Raises:
        ValueError: a value of another type (numbers of NumPy too), NaN or infinity: configurations are kept as JSON.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        if value is None and NoneType in kinds:
            continue
        for kind, (expected, fits) in _KINDS.items():
            if kind in kinds and not fits(value):
                raise ValueError(f"{field.name} must be {expected}, got {value!r:.80}")


def package_version() -> str | None:
    """The installed release of this package; None when it runs from a source tree."""
    try:
        return importlib.metadata.version("itgan_data")
    except importlib.metadata.PackageNotFoundError:
        return None
