"""Tables of notes in, row by row: JSON Lines, CSV with any delimiter, Parquet, or a folder of text files.

As in `r2d_edge.inputs`, what cannot be read at all is an `InputError` and a row that cannot be read is a
`BadRow`; neither carries a note's text.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from r2d_edge.delimited import read_csv
from r2d_edge.errors import InputError
from r2d_edge.inputs import MAX_NOTE_BYTES, BadRow, Columns, Note, is_unicode, open_notes, read_jsonl, read_text

STDIN = "-"
FORMATS = ("jsonl", "csv", "parquet", "text")
PARQUET_ROWS = 1024
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_TEXT_SUFFIX = ".txt"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How tables are read.

    Attributes:
        columns: where a row's note and id stand.
        format: one of `FORMATS`, or None to go by each input's name.
        delimiter: of CSV; None to find it in the header.
        where: only rows whose columns have these values (as text) are read.
    """

    columns: Columns = field(default_factory=Columns)
    format: str | None = None
    delimiter: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)


class Source:
    """One input: a file, a folder of text files, or stdin.

    Attributes:
        name: as the user gave it; `stdin` for `-`.
        format: one of `FORMATS`.
    """

    def __init__(self, name: str, reading: Reading) -> None:
        """Finds out what an input is.

        Raises:
            InputError: there is no such input, or its format cannot be told.
        """
        self.name = "stdin" if name == STDIN else name
        self.path = None if name == STDIN else Path(name)
        self._reading = reading
        self._stream: BinaryIO | None = None
        if self.path is not None and not self.path.exists():
            raise InputError(f"there is no file or folder {name}")
        self.format = self._format()
        if self.format == "text" and reading.where:
            raise InputError(f"{name} has no columns to choose rows by: --where is for tables")

    @property
    def size(self) -> int | None:
        """The bytes of a file; None for what has no size or is not read byte by byte."""
        if self.path is None or self.format not in ("jsonl", "csv") or not self.path.is_file():
            return None
        return self.path.stat().st_size

    @property
    def position(self) -> int:
        """About how many bytes of a file have been read."""
        if self._stream is None:
            return 0
        return (self.size or 0) if self._stream.closed else self._stream.tell()

    def sha256(self) -> str | None:
        """The hash of the whole input; None for stdin, which can be read only once."""
        if self.path is None:
            return None
        digest = hashlib.sha256()
        for name, path in self._files():
            if self.path.is_dir():
                digest.update(f"{name}\n{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            with open_notes(path) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()

    def rows(self, skip: int = 0) -> Iterator[Note | BadRow]:
        """The rows in their order.

        Args:
            skip: so many of the first are passed over, which costs far less than reading them.

        Raises:
            InputError: the input cannot be read as what it is taken for, or holds no row.
        """
        reading = self._reading
        if self.format == "text":
            yield from self._text_rows(skip)
            return
        if self.path is None:
            if self.format == "parquet":
                raise InputError("Parquet cannot be read from stdin: give the file")
            yield from self._table_rows(sys.stdin.buffer, skip)
            return
        with open_notes(self.path) as self._stream:
            if self.format == "parquet":
                yield from read_parquet(self._stream, self.name, reading, skip=skip)
            else:
                yield from self._table_rows(self._stream, skip)

    def _table_rows(self, stream: BinaryIO, skip: int) -> Iterator[Note | BadRow]:
        reading = self._reading
        if self.format == "csv":
            return read_csv(
                stream, self.name, reading.columns, delimiter=reading.delimiter, where=reading.where, skip=skip
            )
        if reading.where:
            stream = cast(BinaryIO, ChosenLines(stream, reading.where))
        return read_jsonl(stream, self.name, reading.columns, skip=skip)

    def _text_rows(self, skip: int) -> Iterator[Note | BadRow]:
        if self.path is None:
            if not skip:
                yield _text_note(sys.stdin.buffer, "stdin")
            return
        for name, path in self._files()[skip:]:
            with open_notes(path) as stream:
                yield _text_note(stream, name)

    def _files(self) -> list[tuple[str, Path]]:
        """The files with the names that their notes go by."""
        path = cast(Path, self.path)
        if not path.is_dir():
            return [(path.name, path)]
        found = {
            file.relative_to(path).as_posix(): file
            for file in path.rglob("*")
            if file.suffix.lower() == _TEXT_SUFFIX and file.is_file()
        }
        if not found:
            raise InputError(f"the folder {path} holds no {_TEXT_SUFFIX} files")
        return sorted(found.items())

    def _format(self) -> str:
        if self.path is not None and self.path.is_dir():
            if self._reading.format not in (None, "text"):
                raise InputError(f"{self.name} is a folder: only its text files can be read, name tables one by one")
            return "text"
        if self._reading.format is not None:
            return self._reading.format
        if self.path is None:
            return "jsonl"
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"the format of {self.name} is not told by its name: say it with --input-format")
        return SUFFIXES[suffix]


def read_parquet(stream: BinaryIO, name: str, reading: Reading, *, skip: int = 0) -> Iterator[Note | BadRow]:
    """Notes from a Parquet file; only the columns that are needed are read. A row's line is its number from 1.

    Args:
        skip: so many of the first rows that would be given are passed over.

    Raises:
        InputError: pyarrow is not installed, this is not Parquet, or a column that was asked for is missing.
    """
    pyarrow, parquet = load_parquet()
    try:
        file = parquet.ParquetFile(stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{name} is not a Parquet file that can be read ({type(error).__name__})") from None
    names = file.schema_arrow.names
    columns = reading.columns
    wanted = [columns.text, *reading.where]
    has_id = columns.id in names or columns.id != Columns().id
    wanted += [columns.id] if has_id else []
    for column in wanted:
        if names.count(column) != 1:
            raise InputError(f"{name} names the column {column!r} {names.count(column)} times, once is needed")
    number = given = 0
    try:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=list(dict.fromkeys(wanted))):
            if not reading.where and given + batch.num_rows <= skip:
                given += batch.num_rows
                number += batch.num_rows
                continue
            for row in batch.to_pylist():
                number += 1
                if any(_as_text(row[key]) != value for key, value in reading.where.items()):
                    continue
                given += 1
                if given > skip:
                    yield _typed_note(row, number, columns, has_id=has_id)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is damaged after row {number} ({type(error).__name__})") from None
    if not number:
        raise InputError(f"{name} holds no rows")


def load_parquet() -> tuple[Any, Any]:
    """The module pyarrow and its Parquet part, which only those need who use Parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError('Parquet needs pyarrow; run: pip install "r2d-edge[parquet]"') from None
    return pyarrow, parquet


def _typed_note(row: Mapping[str, Any], number: int, columns: Columns, *, has_id: bool) -> Note | BadRow:
    text = row[columns.text]
    if not isinstance(text, str):
        return BadRow(number, f"column {columns.text!r} is {_kind(text)}, not a string")
    if len(text) > MAX_NOTE_BYTES:
        return BadRow(number, f"the note is longer than {MAX_NOTE_BYTES >> 20} MiB")
    id_ = row[columns.id] if has_id else number
    if type(id_) not in (str, int):
        return BadRow(number, f"column {columns.id!r} is {_kind(id_)}, neither a string nor a whole number")
    return Note(str(id_), text)


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _text_note(stream: BinaryIO, name: str) -> Note | BadRow:
    try:
        if not is_unicode(name):
            return BadRow(1, "the file's name is not valid Unicode: rename it")
        return Note(name, read_text(stream, name))
    except InputError as error:
        return BadRow(1, str(error))


def _as_text(value: object) -> str:
    """A value as `--where` writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


class ChosenLines:
    """The lines of a JSON Lines stream; a row that is not wanted becomes a blank line, so that numbers stay."""

    def __init__(self, stream: BinaryIO, where: Mapping[str, str]) -> None:
        self._stream = stream
        self._where = where
        self._whole = True  # whether the next piece begins a line

    def readline(self, limit: int) -> bytes:
        raw = self._stream.readline(limit)
        begins, self._whole = self._whole, raw.endswith(b"\n")
        # Part of an over-long line, or its beginning: for the reader to refuse.
        return b"\n" if begins and len(raw) < limit and not self._wanted(raw) and raw else raw

    def _wanted(self, raw: bytes) -> bool:
        try:
            row = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return True  # for the reader to say what is wrong
        return not isinstance(row, dict) or all(_as_text(row.get(key)) == value for key, value in self._where.items())


def where_of(pairs: Iterable[str]) -> dict[str, str]:
    """What `--where COLUMN=VALUE` asks for.

    Raises:
        ValueError: there is no `=`.
    """
    found = {}
    for pair in pairs:
        column, equals, value = pair.partition("=")
        if not equals or not column:
            raise ValueError("--where takes COLUMN=VALUE")
        found[column] = value
    return found
