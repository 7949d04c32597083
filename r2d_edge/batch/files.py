"""The one door to the disk for everything a batch run writes, so that tests can make any step of it fail."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE = 0o600  # decisions about patients: for this user alone


class Files:
    """Unbuffered writing with the calls that make it last. Every method may raise `OSError`."""

    def create(self, path: Path) -> int:
        """Opens a new, private file; what stood under this name is removed, and a link is not followed."""
        path.unlink(missing_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, PRIVATE)

    def append(self, path: Path, size: int) -> int:
        """Opens an existing file for appending after its first `size` bytes; what follows them is cut off."""
        handle = os.open(path, os.O_WRONLY | _BINARY)
        try:
            os.ftruncate(handle, size)
            os.lseek(handle, size, os.SEEK_SET)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def write(self, handle: int, data: bytes) -> None:
        """Writes all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]

    def sync(self, handle: int) -> None:
        """Returns when what was written is on the disk."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """Closes a file."""
        os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Puts a finished file in its place at once; the name is on the disk too when this returns."""
        source.replace(target)
        self.sync_folder(target.parent)

    def remove(self, path: Path) -> None:
        """Removes a file if it is there."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Brings a folder's names to the disk, where the system lets a folder be opened for that."""
        if os.name == "nt":
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network and user-space file systems refuse it
                os.fsync(handle)
        finally:
            os.close(handle)


_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would turn line ends over
