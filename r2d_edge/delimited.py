"""Delimited text (CSV with any delimiter): notes in, a row each; the one reader for `infer`, `batch` and `report`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from r2d_edge.errors import InputError
from r2d_edge.inputs import ID_COLUMN, MAX_NOTE_BYTES, BadRow, Columns, Note, is_unicode

DELIMITERS = (",", ";", "\t", "|")
_NUL = "\udc00"  # what a NUL becomes while a line is parsed: no UTF-8 is read as this


class Record(NamedTuple):
    """A row whole: its note, and all of its cells under the names of the first row."""

    note: Note
    names: Sequence[str]
    cells: Sequence[str]

    @property
    def columns(self) -> dict[str, str]:
        """Each column's cell."""
        return dict(zip(self.names, self.cells, strict=True))


def read_csv(
    stream: BinaryIO,
    name: str,
    columns: Columns,
    *,
    delimiter: str | None = None,
    where: Mapping[str, str] | None = None,
    skip: int = 0,
) -> Iterator[Note | BadRow]:
    """Notes from delimited text whose first row names the columns; blank rows are passed over.

    Args:
        stream: the bytes, UTF-8 with or without a byte order mark.
        name: what error messages call the stream.
        columns: where a row's note and id stand.
        delimiter: between fields; by default the one that parts the text's column from the others, which then
            must be named in the first line.
        where: only rows whose columns have these values are read.
        skip: the first of the rows that would be given are counted and not looked into.

    Raises:
        InputError: the stream is UTF-16 or binary, holds no row, or lacks a column that was asked for.
    """
    for found in read_records(stream, name, columns, delimiter=delimiter, where=where, skip=skip):
        yield found.note if isinstance(found, Record) else found


def read_records(
    stream: BinaryIO,
    name: str,
    columns: Columns,
    *,
    delimiter: str | None = None,
    where: Mapping[str, str] | None = None,
    skip: int = 0,
) -> Iterator[Record | BadRow]:
    """As `read_csv`, with the columns that it passes over."""
    # Bytes that are not UTF-8 become lone surrogates, so that only their own rows are lost.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _rows(text, name, columns, delimiter, where or {}, skip)
    finally:
        text.detach()  # the stream is the caller's: it must outlive this wrapper


def _rows(
    text: io.TextIOWrapper,
    name: str,
    columns: Columns,
    delimiter: str | None,
    where: Mapping[str, str],
    skip: int,
) -> Iterator[Record | BadRow]:
    csv.field_size_limit(MAX_NOTE_BYTES)
    lines = _lines(text, name)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{name} holds no rows")
    if _NUL in first:
        raise InputError(f"{name} is a binary file, not CSV")
    delimiter = delimiter or delimiter_of(first, columns.text)
    pending = [first]

    def next_lines() -> Iterator[str]:
        while True:
            line = pending.pop() if pending else next(lines, None)
            if line is None:
                return
            yield line

    # Strict, since otherwise a quotation mark that is never closed swallows every row after it.
    rows = csv.reader(next_lines(), delimiter=delimiter, strict=True)
    try:
        header = next(rows)
    except (csv.Error, StopIteration) as error:
        raise InputError(f"the first row of {name} is not CSV: {error}") from None
    text_at = _place(header, columns.text, name, "--text-column")
    id_at = None
    if columns.id in header or columns.id != ID_COLUMN:
        id_at = _place(header, columns.id, name, "--id-column")
    wanted = [(_place(header, column, name, "--where"), value) for column, value in where.items()]
    is_a_row = _row_in_a_line(delimiter)
    number = given = passed = 0
    while True:
        while given < skip and not wanted and (unread := next(lines, None)) is not None:
            if '"' in unread and not is_a_row(unread):
                pending.append(unread)
                break
            # Such a line is a row, and counting it is all that is needed.
            passed += 1
            if unread.strip("\r\n"):
                number += 1
                given += 1
        line = passed + rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            # Where the next row begins is anyone's guess now, and a guess could make up a note.
            if given >= skip:
                yield BadRow(line, f"not CSV ({error}); the rows from here on were not read")
            return
        if row is None:
            break
        if not row:
            continue
        number += 1
        whole = len(row) == len(header)
        if given < skip and not (whole and any(row[place] != value for place, value in wanted)):
            given += 1  # a note or a bad row: whichever it is was given before
            continue
        found: Record | BadRow
        if not whole:
            found = BadRow(line, f"{len(row)} fields where the header names {len(header)}")
        elif any(_NUL in cell for cell in row):
            found = BadRow(line, "binary: it holds a NUL character")
        elif not is_unicode("".join(row)):
            found = BadRow(line, "not UTF-8: save the file as UTF-8")
        elif all(row[place] == value for place, value in wanted):
            found = Record(Note(str(number) if id_at is None else row[id_at], row[text_at]), header, row)
        else:
            continue
        given += 1
        if given > skip:
            yield found
    if not number:
        raise InputError(f"{name} holds no rows below its header")


def _row_in_a_line(delimiter: str) -> Callable[[str], object]:
    """Tells whether a line that begins a row ends it too: whatever it quotes is closed, and is a whole field."""
    sign = re.escape(delimiter)
    field = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{sign}]*)'
    return re.compile(rf"{field}(?:{sign}{field})*[\r\n]*").fullmatch


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    first = True
    while line := text.readline(MAX_NOTE_BYTES + 1):
        if first and line[:2] in ("\udcff\udcfe", "\udcfe\udcff"):
            raise InputError(f"{name} is UTF-16 text: save it as UTF-8")
        if len(line) > MAX_NOTE_BYTES:
            raise InputError(f"{name} has a line longer than {MAX_NOTE_BYTES >> 20} MiB")
        first = False
        yield line.replace("\0", _NUL)


def delimiter_of(first: str, column: str) -> str:
    """The delimiter that makes the wanted column one of the first row's fields; a comma where none does."""
    for delimiter in DELIMITERS:
        try:
            header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if column in header and len(header) > 1:
            return delimiter
    return DELIMITERS[0]


def _place(header: list[str], wanted: str, name: str, option: str) -> int:
    # The header is not quoted: in a file without one it is the first note.
    places = [place for place, column in enumerate(header) if column == wanted]
    if len(places) == 1:
        return places[0]
    if places:
        raise InputError(f"{name} names the column {wanted!r} {len(places)} times")
    raise InputError(
        f"{name} has no column {wanted!r}: its first row must name the columns ({len(header)} found); "
        f"choose one with {option} (fields are parted by commas, semicolons, tabs or |)"
    )
