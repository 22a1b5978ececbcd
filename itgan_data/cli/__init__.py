"""`itgan-data`: from a data set to a published bundle, on the command line. Parses, calls the public API, prints."""

import logging

import click

from ..config import package_version
from ..running.shards import Shard
from .judging import evaluate_command, info
from .making import condense, import_command, pretrain
from .pictures import preview
from .running import OneLineErrors
from .sharing import pull, push

__all__ = ["main"]


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_version(), package_name="itgan_data")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Replace a data set with a generator and learned latents: make, evaluate and share such a bundle.

    \b
    itgan-data pretrain --data imagefolder:photos --out runs/generator
    itgan-data condense --data imagefolder:photos --generator runs/generator --out runs/bundle
    itgan-data evaluate runs/bundle --data imagefolder:photos
    itgan-data push runs/bundle org/name

    Results go to stdout, progress and errors to stderr. The exit code is 0, 1 after an error, or 2 for wrong usage.
    A command that was stopped goes on when it is run again.

    \b
    Completion for bash, and likewise for zsh; for fish, pipe fish_source into `source`:
    eval "$(_ITGAN_DATA_COMPLETE=bash_source itgan-data)"
    """
    logging.basicConfig(format="%(message)s")
    # Not the messages of other packages, and under torchrun only those of the first rank.
    logging.getLogger("itgan_data").setLevel(logging.INFO if Shard.of_this_process().leads else logging.ERROR)


for _command in (pretrain, condense, evaluate_command, preview, import_command, info, push, pull):
    main.add_command(_command)
