"""Options that several commands share."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from ..bundle.reading import packaged_bundle
from ..bundle.writing import check_replaceable
from ..datasets import DATASETS, SPECS, parse_spec
from ..storage.files import check_writable
from .running import device_of_rank

PATH = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _usable_device(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    device = device_of_rank(value)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise click.BadParameter(f"{device!r} cannot be used here ({reason:.200})", ctx, param) from error
    return device


def _import_class(name: str) -> type[nn.Module]:
    module, _, qualified = name.partition(":")
    if not (module and qualified):
        raise click.BadParameter(f"expected MODULE:CLASS, such as decoders:Decoder, got {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        found: object = functools.reduce(getattr, qualified.split("."), importlib.import_module(module))
    except Exception as error:  # the module may raise anything
        reason = " ".join(str(error).split())
        raise click.BadParameter(f"{name} cannot be imported ({type(error).__name__}: {reason:.200})") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise click.BadParameter(f"{name} is no class of generators; expected a torch.nn.Module")
    return found


def data_option(text: str, *, required: bool = True) -> Callable[[Any], Any]:
    names = [name + (":" if row.place == ":DIR" else "") for name, row in DATASETS.items()]
    return click.option(
        "--data",
        required=required,
        metavar="SPEC",
        callback=_known,
        help=f"{text}: {SPECS}.",
        shell_complete=lambda ctx, param, start: [name for name in names if name.startswith(start)],
    )


def _known(ctx: click.Context, param: click.Parameter, spec: str | None) -> str | None:
    if spec is not None:
        with _wrong_use():
            parse_spec(spec)
    return spec


def out_option(
    text: str, name: str = "--out", *, folder: bool = True, bundle: bool = False, required: bool = True
) -> Callable[[Any], Any]:
    """The path that a command writes a file, a folder or a bundle to; checked before any work."""

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            with _wrong_use():
                check_replaceable(path) if bundle else check_writable(path, folder=folder)
        return path

    return click.option(name, required=required, type=PATH, callback=check, help=text)


@contextmanager
def _wrong_use() -> Iterator[None]:
    """Turns ValueError into wrong usage, with exit code 2."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that adds options in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


source_argument = click.argument(  # the type completes names of files
    "source", type=click.Path(), default=packaged_bundle("cifar10"), required=False
)
flips_option = click.option(
    "--flips/--no-flips",
    default=None,
    help="Whether a mirrored image keeps its class; by default yes, except for "
    f"{', '.join(name for name, row in DATASETS.items() if not row.flips)}.",
)
device_option = click.option(
    "--device", callback=_usable_device, help="cpu, cuda, ...; by default CUDA where there is one."
)
inception_option = click.option(
    "--inception",
    "weights",
    type=FILE,
    metavar="FILE",
    help="Weights of Inception v3, as published by torch-fidelity: compare its features, for the usual FID.",
)
trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE:CLASS",
    callback=lambda ctx, param, names: tuple(map(_import_class, names)),
    help="Import this class of a generator from outside the package. Only name code that you have read.",
)
endpoint_option = click.option("--endpoint", metavar="URL", help="Another Hub, such as a mirror.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

long_work = with_options(
    click.option("--steps", type=click.IntRange(0), help="Updates; by default as the preset or method says."),
    click.option("--seed", type=int, help="Seed of all random numbers."),
    device_option,
    click.option("--max-minutes", type=click.FloatRange(0, min_open=True), help="Save and stop after this time."),
)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line, that is, are not None."""
    return {name: value for name, value in options.items() if value is not None}


def flips_of(flips: bool | None, data: str) -> bool:
    """The value of --flips, by default as the data set says."""
    return flips if flips is not None else parse_spec(data)[0].flips
