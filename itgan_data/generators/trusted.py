"""Generators that are not of this package: named by their class, and built only if the user trusts that class.

Nothing is ever imported because a file says so: the user passes the class itself.
"""

import json
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from .contract import ImageGenerator, as_generator

Trust = type[nn.Module] | Sequence[type[nn.Module]]
"""One class, or several, of generators whose code the user has read."""

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_IMPORT_PATH = re.compile(f"(?=.{{3,200}}$){_DOTTED}:{_DOTTED}")


def is_import_path(architecture: object) -> TypeGuard[str]:
    """Whether it has the form of a class's name, "package.module:Class"."""
    return isinstance(architecture, str) and _IMPORT_PATH.fullmatch(architecture) is not None


def import_path(cls: type[nn.Module]) -> str:
    """The name "package.module:Class" of a class; in a running script, as other programs would import it.

    Raises:
        ValueError: no other program could import it.
    """
    module = cls.__module__
    if module in ("__main__", "__mp_main__"):
        script = sys.modules[module]
        module = script.__spec__.name if script.__spec__ else Path(getattr(script, "__file__", None) or "").stem
    path = f"{module}:{cls.__qualname__}"
    if not is_import_path(path):
        raise ValueError(
            f"{cls.__qualname__} cannot be imported by other programs; define it at the top level of a .py file whose "
            "name is an identifier, and import it from there"
        )
    return path


def find_trusted(architecture: str, trust: Trust) -> type[nn.Module]:
    """The trusted class that an import path names.

    Raises:
        ValueError: it is not among them, or they are no classes of modules.
    """
    classes = (trust,) if isinstance(trust, type) else tuple(trust)
    if unfit := [cls for cls in classes if not (isinstance(cls, type) and issubclass(cls, nn.Module))]:
        got = " ".join(reprlib.repr(unfit[0]).split())
        raise ValueError(f"trust takes classes of modules, such as trust=Decoder, got {got}")
    trusted = {import_path(cls): cls for cls in classes}
    if architecture not in trusted:
        passed = f" (trusted so far: {', '.join(trusted)})" if trusted else ""
        raise ValueError(
            f"the generator is a {architecture}, which is not of this package{passed}; if you have read its code, "
            "import that class and pass it as `trust`, on the command line with --trust MODULE:CLASS"
        )
    return trusted[architecture]


def outline(cls: type[nn.Module], arguments: object) -> ImageGenerator:
    """A generator without memory for its tensors, in evaluation mode.

    Raises:
        ValueError: not the arguments of this class, or a class that cannot be built on the meta device.
    """
    with torch.device("meta"):
        return _construct(cls, arguments)


def restore(cls: type[nn.Module], arguments: object, tensors: Mapping[str, torch.Tensor]) -> ImageGenerator:
    """The frozen generator of a trusted class and tensors that were found to fit its `outline`."""
    generator = _construct(cls, arguments)  # and not the outline: buffers that are in no file have values here
    generator.load_state_dict(tensors)
    return generator.requires_grad_(False)


def _construct(cls: type[nn.Module], arguments: object) -> ImageGenerator:
    try:
        if not isinstance(arguments, Mapping):
            raise TypeError(f"expected an object, got {type(arguments).__name__}")
        with torch.random.fork_rng(devices=[]):
            return as_generator(cls(**arguments).eval())
    except Exception as error:  # arguments from anyone, in code that expects its author's
        first = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"the arguments {reprlib.repr(arguments)} do not build a {cls.__name__} ({type(error).__name__}: {first}); "
            "it is built on torch.device('meta') first, so its constructor must not look at values of tensors"
        ) from error


def describe(generator: nn.Module) -> dict[str, Any]:
    """The architecture and the arguments by which a generator is built again.

    Raises:
        ValueError: a class that cannot be imported, or no `arguments` of JSON values.
    """
    cls = type(generator)
    path, arguments = import_path(cls), getattr(generator, "arguments", None)
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{cls.__name__} has no attribute `arguments`; give it one: the mapping of JSON values with which "
            f"{cls.__name__}(**arguments) builds it again"
        )
    try:
        return {"architecture": path, "arguments": json.loads(json.dumps(dict(arguments), allow_nan=False))}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{cls.__name__}.arguments must hold JSON values ({error})") from error
