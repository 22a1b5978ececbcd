"""What every configuration checks first: values of the types that its fields are annotated with."""

import math
from collections.abc import Callable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, get_args


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
