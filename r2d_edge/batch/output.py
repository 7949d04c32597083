"""The file of decisions, made from a finished journal: JSON Lines, CSV or Parquet."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from r2d_edge.batch.files import Files
from r2d_edge.rendering import csv_row, json_text
from r2d_edge.tables import load_parquet

FORMATS = ("jsonl", "csv", "parquet")
GROUP_ROWS = 16_384
_BUFFER = 1 << 18
_BOM = "\ufeff"
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?")
_STARTS_FORMULA = "=+-@\u2212"

Record = dict[str, Any]


class PlainFile:
    """A new private file, written in larger pieces and hashed on the way."""

    def __init__(self, path: Path, files: Files) -> None:
        self._files = files
        self._handle = files.create(path)
        self._pending = bytearray()
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Takes bytes; they are on the disk only after `finish`."""
        self._pending += data
        self._digest.update(data)
        if len(self._pending) >= _BUFFER:
            self._flush()
        return len(data)

    def finish(self) -> str:
        """Brings everything to the disk and gives the SHA-256 of the whole."""
        self._flush()
        self._files.sync(self._handle)
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file; it may be called twice."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            self._files.close(handle)

    def _flush(self) -> None:
        data = bytes(self._pending)
        self._pending.clear()
        if data:
            self._files.write(self._handle, data)


class RecordWriter(Protocol):
    """Takes decision records (without `ms`) one by one; `close` ends the document, not the file."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def writer_of(format_: str, file: PlainFile, labels: Sequence[str], *, excel_bom: bool) -> RecordWriter:
    """The writer of a format.

    Args:
        labels: the bundle's, in their order; empty for an open set.
        excel_bom: whether CSV begins with the mark by which Excel knows UTF-8.

    Raises:
        InputError: Parquet is wanted and pyarrow is not installed.
    """
    if format_ == "jsonl":
        return JsonLines(file)
    if format_ == "csv":
        return Csv(file, labels, excel_bom=excel_bom)
    return Parquet(file, labels)


class JsonLines:
    """One record a line."""

    def __init__(self, file: PlainFile) -> None:
        self._file = file

    def write(self, record: Record) -> None:
        self._file.write((json_text(record) + "\n").encode("utf-8"))

    def close(self) -> None:
        pass


class Csv:
    """A header and one row a note, safe to open in a spreadsheet."""

    def __init__(self, file: PlainFile, labels: Sequence[str], *, excel_bom: bool) -> None:
        self._file = file
        self._columns = columns_of(labels)
        if excel_bom:
            self._file.write(_BOM.encode("utf-8"))
        self._row([name for name, _, _ in self._columns])

    def write(self, record: Record) -> None:
        self._row([_cell(value(record)) for _, _, value in self._columns])

    def close(self) -> None:
        pass

    def _row(self, cells: Sequence[str]) -> None:
        self._file.write(csv_row(cells).encode("utf-8", "backslashreplace"))


class Parquet:
    """The columns of the CSV with their types."""

    def __init__(self, file: PlainFile, labels: Sequence[str]) -> None:
        pyarrow, parquet = load_parquet()
        types = {
            "text": pyarrow.string(),
            "number": pyarrow.float64(),
            "flag": pyarrow.bool_(),
            "texts": pyarrow.list_(pyarrow.string()),
        }
        self._columns = columns_of(labels)
        self._schema = pyarrow.schema([(name, types[kind]) for name, kind, _ in self._columns])
        self._table = pyarrow.Table
        # pyarrow closes what it is given, and this file is closed by its owner alone.
        self._sink = pyarrow.PythonFile(_Sink(file), mode="w")
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="snappy")
        self._pending: list[Record] = []

    def write(self, record: Record) -> None:
        self._pending.append(record)
        if len(self._pending) >= GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._pending:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        values = {name: [value(record) for record in self._pending] for name, _, value in self._columns}
        self._writer.write_table(self._table.from_pydict(values, schema=self._schema))
        self._pending = []


class _Sink:
    """What pyarrow writes to."""

    closed = False

    def __init__(self, file: PlainFile) -> None:
        self._file = file
        self._size = 0

    def write(self, data: Any) -> int:
        size = self._file.write(bytes(data))
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


Column = tuple[str, str, Callable[[Record], Any]]


def columns_of(labels: Sequence[str]) -> list[Column]:
    """The columns of a table of decisions: name, kind of value, and where a record holds it."""

    def plain(name: str, kind: str) -> Column:
        return name, kind, lambda record: record[name]

    def probability(label: str) -> Column:
        return f"probability {label}", "number", lambda record: record["probabilities"].get(label)

    def own_probability(record: Record) -> Any:
        return record["probabilities"].get(record["label"])

    return [
        plain("id", "text"),
        plain("label", "text"),
        plain("abstained", "flag"),
        plain("reason", "text"),
        *([probability(label) for label in labels] or [("probability", "number", own_probability)]),
        plain("label_set", "texts"),
        plain("rationale", "text"),
        plain("consistent", "flag"),
        plain("truncated", "flag"),
        plain("model", "text"),
    ]


def neutralised(cell: str) -> str:
    """A cell that no spreadsheet runs as a formula: one that could be gets an apostrophe in front.

    A spreadsheet may pass over blanks and signs that are not seen, and may take a full-width `＝` for `=`. A plain
    number stays as it is.
    """
    for character in cell:
        if unicodedata.category(character)[0] in "ZC":
            continue
        starts = unicodedata.normalize("NFKC", character)[0] in _STARTS_FORMULA
        return "'" + cell if starts and not _NUMBER.fullmatch(cell) else cell
    return cell


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        value = "; ".join(value)
    return neutralised(value) if isinstance(value, str) else str(value)
