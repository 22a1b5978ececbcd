"""Packages that only some functions need, imported when such a function is called."""

from collections.abc import Iterator
from contextlib import contextmanager


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
