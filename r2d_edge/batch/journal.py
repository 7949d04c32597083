"""The journal of a batch run: one record a line, each with a checksum, appended and never changed.

A line is `CRC JSON`. The CRC-32 of a record goes on from that of the record before it, so that a record which is
missing, doubled or out of its place is found like one that is damaged. Reading stops at the first line that does
not fit; all before it is whole.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from r2d_edge.batch.files import Files
from r2d_edge.errors import InputError

SCHEMA = 2
SYNC_RECORDS = 16
SYNC_SECONDS = 2.0
_CRC_DIGITS = 8

Record = dict[str, Any]


def encode(record: Mapping[str, Any], crc: int) -> tuple[bytes, int]:
    """A record's line, and the checksum that the next one goes on from.

    Args:
        crc: the checksum of the record before; 0 for the first.
    """
    # ASCII alone, so that no reader's idea of a line end or of Unicode matters.
    text = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    crc = zlib.crc32(text, crc)
    return b"%08x %s\n" % (crc, text), crc


def read(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The records of a journal up to the first line that does not fit.

    Yields:
        A record as JSON that is not yet parsed, the number of bytes up to its end, and its checksum.
    """
    crc = end = 0
    for line in stream:
        text = line[_CRC_DIGITS + 1 : -1]
        crc = zlib.crc32(text, crc)
        if line[: _CRC_DIGITS + 1] != b"%08x " % crc or line[-1:] != b"\n":
            return
        end += len(line)
        yield text, end, crc


class Journal:
    """A journal open for appending; `sync` makes what was appended outlive a power cut."""

    def __init__(
        self, path: Path, files: Files, handle: int, crc: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self._files = files
        self._handle = handle
        self._crc = crc
        self._clock = clock
        self._unsynced = 0
        self._synced_at = clock()

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any], files: Files) -> Journal:
        """Begins a new journal with its header."""
        journal = cls(path, files, files.create(path), 0)
        try:
            journal.append(header)
            journal.sync()
            files.sync_folder(path.parent)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, files: Files, end: int, crc: int) -> Journal:
        """Goes on after the first `end` bytes, whose last record has this checksum; a torn tail is cut off."""
        return cls(path, files, files.append(path, end), crc)

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a record; every so many records or seconds the disk must confirm them."""
        line, self._crc = encode(record, self._crc)
        self._files.write(self._handle, line)
        self._unsynced += 1
        if self._unsynced >= SYNC_RECORDS or self._clock() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Returns when every record is on the disk."""
        if self._unsynced:
            self._files.sync(self._handle)
        self._unsynced = 0
        self._synced_at = self._clock()

    def close(self) -> None:
        """Closes the file; it may be called twice."""
        if self._handle >= 0:
            self._files.close(self._handle)
        self._handle = -1


def read_header(path: Path) -> Record | None:
    """A journal's first record; None where there is no journal, or only the torn beginning of one.

    Raises:
        InputError: a file of this name is something else than a journal, or is damaged at its beginning.
    """
    try:
        with path.open("rb") as stream:
            for text, _, _ in read(stream):
                record = _parsed(text)
                if record.get("journal") == SCHEMA:
                    return record
                break
            stream.seek(0)
            # A run that was stopped while it wrote its header leaves a line without end.
            if not stream.readline(1 << 20).endswith(b"\n"):
                return None
    except FileNotFoundError:
        return None
    raise InputError(
        f"{path} is not a journal of this version, or is damaged at its beginning: move it away, or start anew with "
        "--force"
    )


def _parsed(text: bytes) -> Record:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
