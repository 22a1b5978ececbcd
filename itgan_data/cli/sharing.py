"""`itgan-data push` and `pull`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from ..bundle.reading import pull_bundle, read_bundle
from ..bundle.writing import push_bundle
from ..generators.trusted import Trust
from ..storage.files import full_disk_named
from .options import PATH, endpoint_option, trust_option


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("repository")
@click.option("--private", is_flag=True, help="Only those who are given access see a new repository.")
@click.option("--revision", help="The branch; by default the main one.")
@click.option("--overwrite-card", is_flag=True, help="Replace a README.md that is there.")
@trust_option
@endpoint_option
def push(bundle: Path, repository: str, **options: Any) -> None:
    """Publish a bundle's folder on the Hugging Face Hub, in one commit, and print its address.

    \b
    itgan-data push runs/bundle org/name --private
    """
    click.echo(push_bundle(bundle, repository, **options))


@click.command()
@click.argument("repository")
@click.option("--revision", help="A branch, tag or commit; by default the main branch.")
@click.option("--out", type=PATH, help="Also copy the bundle into this new folder.")
@trust_option
@endpoint_option
def pull(repository: str, revision: str | None, out: Path | None, trust: Trust, endpoint: str | None) -> None:
    """Fetch a bundle from the Hugging Face Hub, check it, and print its folder.

    \b
    itgan-data pull org/name@main
    """
    if out is not None and out.exists():
        raise ValueError(f"{out} exists already; choose a new folder")
    folder = pull_bundle(repository, revision, endpoint=endpoint)
    read_bundle(folder, trust=trust)
    if out is not None:
        copy_bundle(folder, out)
    click.echo(out or folder)


def copy_bundle(folder: Path, out: Path) -> None:
    """Copy a folder to `out`, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        shutil.copytree(folder, Path(temporary) / "copy").rename(out)
