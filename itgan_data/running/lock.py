"""One run at a time in a workdir, with all its ranks or shards."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .shards import Shard

_GRACE_SECONDS = 1.0  # for a process that is about to end, or is only testing the lock
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def workdir_lock(workdir: Path, shard: Shard) -> Iterator[None]:
    """Keep other runs out of `workdir`, but not the other shards of the same count.

    Each shard locks its own file, and requires that no shard of another count, which would divide the work in another
    way, has locked one.

    Raises:
        RuntimeError: another run works there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    # Its own lock first, then the others: of two runs that start together, at least one sees the other. The operating
    # system unlocks the files of a killed process. No file is ever removed: another process could have locked it, while
    # a third one makes and locks a new file of this name.
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
