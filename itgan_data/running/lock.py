"""One run at a time in a workdir, with all its ranks or shards."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .shards import Shard

_GRACE_SECONDS = 1.0  # for a process that is about to end, or only looks whether the lock is taken
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def workdir_lock(workdir: Path, shard: Shard) -> Iterator[None]:
    """Keep other runs out of `workdir`, but not the other shards of as many.

    Every shard locks a file of its own, and finds the files of other counts unlocked: those would share the same work
    out otherwise. The operating system unlocks the files of a process that is killed. They are never removed, as a
    file could be locked by one process while another makes it again.

    Raises:
        RuntimeError: another run is at work there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # First the own lock and then a look at the others: of two runs that start together at least one sees the other.
    with _locked(workdir / f"{shard.number}-of-{shard.count}.lock"):
        for other in sorted(workdir.glob("*-of-*.lock")):
            if not other.stem.endswith(f"-of-{shard.count}"):
                with _locked(other):
                    pass
        yield


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_GRACE_SECONDS)
    except Timeout:
        raise RuntimeError(
            f"another run is at work in {file.parent} ({file.name} is locked); wait for its end, or use another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s has no locks (%s); let only one run work there", file.parent, error)
    try:
        yield
    finally:
        lock.release()
