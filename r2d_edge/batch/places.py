"""Where a cluster's inputs and outputs lie: wherever Arrow's file systems reach, by path or by URI (s3://, gs:// ...).

Only what runs on a cluster comes here; pyarrow comes with Ray.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
from pyarrow import fs

from r2d_edge.errors import InputError
from r2d_edge.tables import SUFFIXES, Reading

PART, DONE = "part-", "_SUCCESS"  # as Hadoop and Spark name them: many readers pass over the second
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
_HIDDEN = (".", "_")
_BUFFER = 1 << 20
_PRIVATE = 0o700  # decisions about patients: for this user alone


@dataclass(frozen=True)
class Table:
    """A file of notes.

    Attributes:
        name: what messages call it.
        root: the input under which it was found, for a worker to open its file system.
        path: where it lies in that file system.
        format: `jsonl`, `csv` or `parquet`.
    """

    name: str
    root: str
    path: str
    format: str


def absolute(name: str) -> str:
    """A path or URI that means the same in another process."""
    return name if _is_uri(name) else str(Path(name).absolute())


def tables_of(name: str, reading: Reading) -> list[Table]:
    """The files of an input: itself, or those in and below a folder, but for names that begin with `.` or `_`.

    Raises:
        InputError: there is none, its place cannot be reached, or a file's format cannot be told.
    """
    system, path = _system(name)
    try:
        info = system.get_file_info(path)
        if info.type == fs.FileType.Directory:
            found = sorted(_below(system, path))
            names = [posixpath.join(name, posixpath.relpath(file, path)) for file in found]
        elif info.type == fs.FileType.NotFound:
            raise InputError(f"there is no file or folder {name}")
        else:
            found, names = [path], [name]
    except OSError as error:
        raise InputError(f"{name} cannot be reached: {reason_of(error)}") from None
    if not found:
        raise InputError(f"the folder {name} holds no files")
    return [
        Table(shown, absolute(name), file, _format_of(shown, reading)) for file, shown in zip(found, names, strict=True)
    ]


def open_table(table: Table) -> BinaryIO:
    """Opens a file of notes; a compressed one is unpacked on the way, and Parquet can be read at any point.

    Raises:
        InputError: it cannot be read.
    """
    system, _ = _system(table.root)
    try:
        if table.format == "parquet":
            return cast(BinaryIO, system.open_input_file(table.path))
        stream = system.open_input_stream(table.path, compression="detect", buffer_size=_BUFFER)
    except OSError as error:
        raise InputError(f"{table.name} cannot be read: {reason_of(error)}") from None
    return io.BufferedReader(cast(Any, stream), _BUFFER)


class Folder:
    """A folder of parts, made by this program alone.

    Attributes:
        name: a path or URI.
    """

    def __init__(self, name: str) -> None:
        self.name = absolute(name)

    def check(self, *, force: bool) -> None:
        """Says what stands against making the folder.

        Raises:
            InputError: there is something that may not be replaced, or the place cannot be reached.
        """
        system, path = _system(self.name)
        try:
            kind = system.get_file_info(path).type
            if kind == fs.FileType.NotFound:
                return
            if kind != fs.FileType.Directory:
                raise InputError(f"{self.name} is a file, and on a cluster the output is a folder: name another")
            if not force:
                raise InputError(f"{self.name} exists: choose another output, or replace it with --force")
            found = system.get_file_info(fs.FileSelector(path, recursive=True))
        except OSError as error:
            raise InputError(f"{self.name} cannot be reached: {reason_of(error)}") from None
        if any(info.type != fs.FileType.File or not info.base_name.startswith((PART, DONE)) for info in found):
            raise InputError(f"{self.name} holds more than an earlier run's parts, so it is not replaced")

    def make(self, *, force: bool) -> None:
        """Makes the folder anew; raises as `check` does, and where the folder cannot be made."""
        self.check(force=force)
        system, path = _system(self.name)
        local = isinstance(system, fs.LocalFileSystem)
        try:
            if system.get_file_info(path).type != fs.FileType.NotFound:
                system.delete_dir(path)
            system.create_dir(path, recursive=not local)
            if local:
                Path(path).chmod(_PRIVATE)
        except OSError as error:
            raise InputError(f"the folder {self.name} cannot be made: {reason_of(error)}") from None

    def open(self, name: str) -> Any:
        """Opens a file in the folder for writing; one of that name is replaced."""
        system, path = _system(self.name)
        return system.open_output_stream(posixpath.join(path, name), buffer_size=_BUFFER)

    def holds(self, table: Table) -> bool:
        """Whether a file of notes lies in this folder."""
        system, path = _system(self.name)
        own, _ = _system(table.root)
        return system.equals(own) and posixpath.join(table.path, "").startswith(posixpath.join(path, ""))

    def remove(self) -> None:
        """Removes the folder with all that is in it, if it is there."""
        system, path = _system(self.name)
        if system.get_file_info(path).type != fs.FileType.NotFound:
            system.delete_dir(path)


def reason_of(error: OSError) -> str:
    """Why something could not be read or written, in one line."""
    return " ".join((error.strerror or str(error) or type(error).__name__).split())


def _system(name: str) -> tuple[fs.FileSystem, str]:
    if not _is_uri(name):
        return fs.LocalFileSystem(), Path(name).absolute().as_posix()
    try:
        system, path = fs.FileSystem.from_uri(name)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{name} cannot be reached ({type(error).__name__}): is its beginning right?") from None
    return system, path


def _is_uri(name: str) -> bool:
    return "://" in name


def _below(system: fs.FileSystem, path: str) -> Iterator[str]:
    for info in system.get_file_info(fs.FileSelector(path, recursive=True)):
        parts = posixpath.relpath(info.path, path).split("/")
        # Empty parts are common where a cluster wrote them.
        if info.type == fs.FileType.File and info.size != 0 and not any(part.startswith(_HIDDEN) for part in parts):
            yield info.path


def _format_of(name: str, reading: Reading) -> str:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    found = reading.format or SUFFIXES.get(suffixes[-1] if suffixes else "")
    if found is None:
        raise InputError(f"the format of {name} is not told by its name: say it with --input-format")
    if found == "text":
        raise InputError(f"{name}: files of one note each are read with --engine local")
    return found
