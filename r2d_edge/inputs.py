"""Notes in: one as text, or many as JSON Lines (tables: `r2d_edge.delimited`, `r2d_edge.tables`).

What cannot be read at all is an `InputError`; a row that cannot be read is a `BadRow` among the
notes, so that one bad row never costs the others. Neither ever carries a note's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from r2d_edge.errors import InputError

MAX_NOTE_BYTES = 4 << 20  # more than any record; keeps a wrong file from filling the memory
TEXT_COLUMN = "text"
ID_COLUMN = "id"

_BOM = b"\xef\xbb\xbf"
_JSON_TYPES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True)
class Note:
    """A text to decide on, with the id that its decision will carry."""

    id: str
    text: str


@dataclass(frozen=True)
class BadRow:
    """A row that holds no readable note. `line` counts from 1; `reason` says what to mend."""

    line: int
    reason: str


@dataclass(frozen=True)
class Columns:
    """Which fields of a row are read. A named id must exist; without the default one, rows are numbered."""

    text: str = TEXT_COLUMN
    id: str = ID_COLUMN


def open_notes(path: str | Path) -> BinaryIO:
    """Opens a file of notes.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_text(stream: BinaryIO, name: str) -> str:
    """A whole stream as one note.

    Args:
        stream: the bytes, UTF-8 with or without a byte order mark.
        name: what error messages call the stream.

    Raises:
        InputError: too long for a note, or not UTF-8.
    """
    raw = stream.read(MAX_NOTE_BYTES + 1)
    if len(raw) > MAX_NOTE_BYTES:
        raise InputError(
            f"{name} is longer than {MAX_NOTE_BYTES >> 20} MiB, too long for one note; "
            "read many notes with --input-format jsonl or csv"
        )
    _refuse_utf16(raw, name)
    try:
        return raw.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise InputError(f"{name} is a binary file, not text") from None
        raise InputError(
            f"{name} is not UTF-8 text (byte 0x{raw.removeprefix(_BOM)[error.start]:02x} "
            f"at offset {error.start}): save it as UTF-8"
        ) from None


def read_jsonl(stream: BinaryIO, name: str, columns: Columns, *, skip: int = 0) -> Iterator[Note | BadRow]:
    """Notes from JSON Lines, one object a line; blank lines are passed over.

    Args:
        stream: the bytes.
        name: what error messages call the stream.
        columns: where a row's note and id stand.
        skip: the first rows are counted and not looked into.

    Raises:
        InputError: the stream is UTF-16 or holds no row at all.
    """
    number = rows = 0
    while raw := stream.readline(MAX_NOTE_BYTES + 1):
        number += 1
        if number == 1:
            _refuse_utf16(raw, name)
            raw = raw.removeprefix(_BOM)
        if len(raw) > MAX_NOTE_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_NOTE_BYTES)
            rows += 1
            if rows > skip:
                yield BadRow(number, f"the line is longer than {MAX_NOTE_BYTES >> 20} MiB")
        elif raw.strip():
            rows += 1
            if rows > skip:
                yield _json_row(raw, number, columns)
    if not rows:
        raise InputError(f"{name} holds no rows")


def _json_row(raw: bytes, line: int, columns: Columns) -> Note | BadRow:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(line, f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})")
    except json.JSONDecodeError as error:
        return BadRow(line, f"not JSON (column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        return BadRow(line, f"not JSON that can be read ({type(error).__name__})")
    if not isinstance(row, dict):
        return BadRow(line, f"{_json_type(row)}, not an object")
    if columns.text not in row:
        return BadRow(line, f"no field {columns.text!r}; choose another with --text-column")
    text = row[columns.text]
    if not isinstance(text, str):
        return BadRow(line, f"field {columns.text!r} is {_json_type(text)}, not a string")
    if columns.id not in row:
        if columns.id != ID_COLUMN:
            return BadRow(line, f"no field {columns.id!r}; choose another with --id-column")
        return Note(str(line), text)
    id_ = row[columns.id]
    if type(id_) not in (str, int):
        return BadRow(line, f"field {columns.id!r} is {_json_type(id_)}, neither a string nor a whole number")
    if not is_unicode(str(id_)):
        return BadRow(line, f"field {columns.id!r} holds a lone surrogate: it is not valid Unicode")
    return Note(str(id_), text)


def _json_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "a number")


def is_unicode(text: str) -> bool:
    """Whether a text holds no lone surrogate."""
    return not re.search("[\ud800-\udfff]", text)


def _refuse_utf16(raw: bytes, name: str) -> None:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name} is UTF-16 text: save it as UTF-8")
