"""How commands end: errors in one line, a stop that says how to go on, and torchrun's ranks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
from torch import distributed

from ..running.shards import Shard, under_torchrun
from ..running.stopping import OutOfTimeError


class OneLineErrors(click.Group):
    """Turns an error of the library into one line on stderr and exit code 1; with --debug into its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # such as in `itgan-data info | head`; click ends quietly
            raise
        except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
            if ctx.params["debug"] or isinstance(error, (click.Abort, click.exceptions.Exit)):  # click's RuntimeErrors
                raise
            text = str(error).encode("utf-8", "backslashreplace").decode()  # a path may not be UTF-8
            message = " ".join(text.split()) or type(error).__name__
            raise click.ClickException(message) from error


class LongCommand(click.Command):
    """A command with checkpoints, which goes on when it is run again."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, SystemExit) as stop:  # Ctrl-C; SIGTERM, see `running.stopping`
            word, status = ("terminated", stop.code) if isinstance(stop, SystemExit) else ("interrupted", 1)
            if Shard.of_this_process().leads:
                click.echo(f"Error: {word}; run the same command again to go on", err=True)
            raise SystemExit(status) from None
        except OutOfTimeError as error:
            if not under_torchrun():
                raise
            click.echo(error, err=True)  # and exit with 0: at 1, torchrun would stop or restart all ranks
            return None


def device_of_rank(device: str | None) -> str:
    """`device`, by default CUDA where there is one; under torchrun CUDA is the rank's own GPU."""
    if device not in (None, "cuda") or not torch.cuda.is_available():
        return device or "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if under_torchrun() else "cuda"


@contextmanager
def process_group() -> Iterator[None]:
    """A process group of torchrun's ranks; does nothing without torchrun."""
    if not under_torchrun():
        yield
        return
    distributed.init_process_group()
    yield  # not in a `finally`: after an error the other ranks may never answer
    distributed.destroy_process_group()
