"""What every configuration shares: fields that say what they allow, precision, optional packages, the release.

A configuration is a frozen dataclass whose annotations are the only place that says what a field allows and whether it
may differ when work is resumed; `check`, called in its `__post_init__`, reads them::

    steps: Annotated[int, AtLeast(1), MayDiffer] = 5000
    optimizer: Literal["adam", "sgd"] = "adam"
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

Precision = Literal["float32", "bfloat16"]
Config = TypeVar("Config")


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


class Rule:
    """What the value of a field must do, in words, and whether a value does it."""

    def __init__(self, words: str, holds: Callable[[Any], bool]) -> None:
        self.words = words
        self.holds = holds


class AtLeast(Rule):
    def __init__(self, low: float) -> None:
        super().__init__(f"be at least {low}", lambda value: value >= low)


class AtMost(Rule):
    def __init__(self, high: float) -> None:
        super().__init__(f"be at most {high}", lambda value: value <= high)


class Above(Rule):
    def __init__(self, low: float) -> None:
        super().__init__(f"be above {low}" if low else "be positive", lambda value: value > low)


class Between(Rule):
    """Both ends included."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(f"lie in [{low}, {high}]", lambda value: low <= value <= high)


class HalfOpen(Rule):
    """`low` included, `high` not."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(f"lie in [{low}, {high})", lambda value: low <= value < high)


class OneOf(Rule):
    """For choices that are the keys of a table; others are a `Literal`."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        *others, last = map(repr, choices)
        super().__init__(f"be {', '.join(others)} or {last}", choices.__contains__)


class MayDiffer:
    """Marks a field that may have another value when work is resumed. Every other field determines the work."""


def _is_number(value: object) -> bool:
    # Not math.isfinite, which raises for the whole numbers of hundreds of digits that a file may hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_KINDS = {
    int: Rule("be a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Rule("be a finite number", _is_number),
    bool: Rule("be true or false", lambda value: isinstance(value, bool)),
    str: Rule("be text", lambda value: isinstance(value, str)),
}


def check(config: Any) -> None:
    """Refuse values that are not what their fields ask for; turn JSON's lists and objects into what they stand for.

    Args:
        config: a dataclass. Types are whole and finite numbers, truth values, text, `Literal`, tuples of these, other
            configurations, and each of them `| None`; fields of other types are passed over.

    Raises:
        ValueError: a value of another type (numbers of NumPy too), NaN or infinity: configurations are kept as JSON;
            or a value that breaks a `Rule`.
    """
    for name, hint in _hints(config.__class__).items():
        object.__setattr__(config, name, _fit(name, getattr(config, name), hint))  # the dataclass may be frozen


def from_json(kind: Callable[..., Config], values: object) -> Config:
    """The configuration whose fields have these JSON values.

    Raises:
        ValueError: no object, unknown or missing names, or values that do not fit.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object, got {type(values).__name__}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{error!s:.200}") from error


def marked(kind: type, mark: type) -> tuple[str, ...]:
    """Names of the fields of a configuration that carry a mark, such as `MayDiffer`."""
    return tuple(name for name, hint in _hints(kind).items() if mark in getattr(hint, "__metadata__", ()))


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _fit(name: str, value: Any, hint: Any) -> Any:
    extras = getattr(hint, "__metadata__", ())
    plain = get_args(hint)[0] if extras else hint
    kind, *others = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    if value is None and NoneType in others:
        return None
    if get_origin(kind) is tuple:
        value = _fit_items(name, value, get_args(kind))
    elif is_dataclass(kind) and isinstance(value, Mapping):
        value = from_json(kind, value)  # type: ignore[arg-type]
    for rule in (_rule(kind), *extras):
        if isinstance(rule, Rule) and not rule.holds(value):
            raise ValueError(f"{name} must {rule.words}, got {value!r:.80}")
    return value


def _fit_items(name: str, values: object, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {values!r:.80}")
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise ValueError(f"{name} must be a list of {len(kinds)}, got {values!r:.80}")
    return tuple(_fit(f"each of {name}", value, kind) for value, kind in zip(values, kinds, strict=True))


def _rule(kind: Any) -> Rule | None:
    """What a value of this type must be."""
    if get_origin(kind) is Literal:
        return OneOf(get_args(kind))
    if is_dataclass(kind) and isinstance(kind, type):
        return Rule(f"be of type {kind.__name__}", lambda value: isinstance(value, kind))
    return _KINDS.get(kind)


def package_version(package: str = "itgan_data") -> str | None:
    """The installed release of a package; None when it runs from a source tree."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
