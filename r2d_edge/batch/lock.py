"""One run at a time on one output. The system drops the lock of a process that died, however it died."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from r2d_edge.batch.files import PRIVATE
from r2d_edge.errors import InputError


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path` while the block runs, and removes it afterwards.

    Raises:
        InputError: another process holds it.
    """
    handle = _take(path)
    try:
        yield
    finally:
        if os.name == "nt":
            os.close(handle)  # Windows removes no file that is open
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            # Before the lock is dropped, so that nobody's lock but this one is removed.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
        try:
            if not _try_lock(handle):
                raise InputError(
                    f"another run is at work on {path.with_suffix('')}: wait for it, or choose another output"
                )
            if _is_still(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the run before this one removed the file between our opening and our locking it


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
