"""Reading data sets: JSON Lines, CSV and Parquet into one schema, every fault of a file said at once.

Schema: `id`, `text`, `label`, and rationales by source (who wrote them). JSON Lines hold them as an
object `rationales` (or one string `rationale`), tables as columns `rationale` or `rationale_<source>`.
`teacher_probabilities`, an object of each label and its probability, is what `train.teach` adds.
Nothing is repaired or dropped: a file is read whole or refused with the ids of its faulty rows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r2d_edge.delimited import Record, delimiter_of, read_records
from r2d_edge.errors import InputError
from r2d_edge.inputs import TEXT_COLUMN, Columns
from r2d_edge.task import LabelSet

DEFAULT_SOURCE = "rationale"
MAX_LISTED = 20
_SHORT = 24
_SUM_TOLERANCE = 1e-3  # of probabilities that were rounded

Unlabelled = Literal["refused", "taught", "taken"]


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        label: the gold label; empty where the row has none.
        rationales: a source's text by its name; a source without text is left out.
        teacher_probabilities: a teacher's probability of each label; empty where there was no teacher.
    """

    id: str
    text: str
    label: str
    rationales: Mapping[str, str]
    teacher_probabilities: Mapping[str, float] = field(default_factory=dict)

    @property
    def best_label(self) -> str:
        """The gold label, or else the one that the teacher holds most probable."""
        taught = self.teacher_probabilities
        return self.label or (max(taught, key=taught.__getitem__) if taught else "")


class DatasetError(ValueError):
    """A data set was refused. `faults` maps each kind of fault to where it occurs (row ids)."""

    def __init__(self, subject: str, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = {kind: list(places) for kind, places in faults.items()}
        lines = [f"{subject} cannot be used:"]
        for kind, places in self.faults.items():
            listed = ", ".join(places[:MAX_LISTED])
            more = f" and {len(places) - MAX_LISTED} more" if len(places) > MAX_LISTED else ""
            lines.append(f"  - {kind}" + (f" ({len(places)}): {listed}{more}" if places else ""))
        super().__init__("\n".join(lines))


@dataclass
class _Faults:
    """Faults by kind, in the order they were found."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str | None = None) -> None:
        places = self.found.setdefault(kind, [])
        if place is not None:
            places.append(place)

    def raise_any(self, subject: str) -> None:
        if self.found:
            raise DatasetError(subject, self.found)


@dataclass(frozen=True)
class _Row:
    """A row as read, and how to name it where it has no id of its own."""

    place: str
    values: Mapping[str, Any]


def read_dataset(path: Path, labels: LabelSet, *, unlabelled: Unlabelled = "refused") -> list[Example]:
    """Reads a `.jsonl`, `.csv` or `.parquet` file.

    A file without any ids gets `<file stem>-<row number>`. Columns that are not in the schema are
    ignored. An empty rationale counts as missing, which is no fault (see `missing_rationales`).

    Args:
        path: the file; text files are UTF-8, with or without a byte order mark, and a CSV's fields are parted by
            whichever of comma, semicolon, tab and | makes `text` a column.
        labels: the labels that may occur; an open set takes any, and leaves a teacher's probabilities unread.
        unlabelled: what becomes of a row without a label: `refused`, as a fault; `taught`, a fault unless it has
            a teacher's probabilities; or `taken`.

    Raises:
        DatasetError: the file has faults; all of them are listed, with row ids, never with a note's text.
        FileNotFoundError: there is no such file.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(str(path), {f"{path.suffix or 'no suffix'} is none of {', '.join(readers)}": []})
    if not path.is_file():
        raise FileNotFoundError(f"no data set at {path}")
    faults = _Faults()
    # `datasets` takes a path for a pattern and keeps a cache: a private copy under a plain name
    # avoids both.
    with tempfile.TemporaryDirectory(prefix="r2d-edge-data-", ignore_cleanup_errors=True) as folder:
        rows = reader(path, Path(folder), faults)
    if not rows and not faults.found:
        faults.add("it holds no row")
    examples = _examples(rows, labels, path.stem, faults, unlabelled) if rows else []
    faults.raise_any(str(path))
    return examples


def check_split(train: Sequence[Example], validation: Sequence[Example], labels: LabelSet) -> None:
    """Checks that two parts of a data set can serve for training and validation.

    Texts count as identical when they differ only in case and blanks. A row without a label counts for the one
    that its teacher holds most probable.

    Raises:
        DatasetError: a label is missing from a part, or an id or a text occurs in both.
    """
    faults = _Faults()
    for name, part in (("training", train), ("validation", validation)):
        present = {example.best_label for example in part}
        for label in labels.labels:
            if label not in present:
                faults.add(f"labels missing from the {name} part", repr(label))
    train_ids = {example.id for example in train}
    texts = {normal(example.text): example.id for example in train}
    for example in validation:
        if example.id in train_ids:
            faults.add("ids that occur in both parts", example.id)
        if (twin := texts.get(normal(example.text))) is not None:
            faults.add("texts that occur in both parts (validation id = training id)", f"{example.id} = {twin}")
    faults.raise_any("this split")


def missing_rationales(examples: Iterable[Example], source: str) -> int:
    """How many rows have no rationale of `source`."""
    return sum(source not in example.rationales for example in examples)


def sources(examples: Iterable[Example]) -> dict[str, int]:
    """How many rows have a rationale of each source, by name."""
    counts = Counter(source for example in examples for source in example.rationales)
    return dict(sorted(counts.items()))


def _read_jsonl(path: Path, folder: Path, faults: _Faults) -> list[_Row]:
    text = _decode(path, faults)
    if not text.strip():
        return []
    copy = folder / "data.jsonl"
    copy.write_text(text, encoding="utf-8", newline="")
    # The JSON loader guesses one type for a column over all rows; lines keep each row as it is.
    rows = []
    for number, line in enumerate(_load("text", copy)["text"], start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            faults.add("lines that are not JSON", place)
            continue
        if isinstance(values, dict):
            rows.append(_Row(place, values))
        else:
            faults.add("lines that are not JSON objects", place)
    return rows


def _read_csv(path: Path, folder: Path, faults: _Faults) -> list[_Row]:
    """Rows as the runtime's own reader finds them."""
    text = _decode(path, faults)
    if not text.strip():
        return []
    stream = io.StringIO(text, newline="")
    delimiter = delimiter_of(stream.readline(), TEXT_COLUMN)
    stream.seek(0)
    try:
        header = next(csv.reader(stream, delimiter=delimiter, strict=True))
    except csv.Error:
        faults.add("its first row is not CSV")
        return []
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        for name in twice:
            faults.add("column names that occur twice", _short(name))
        return []
    if TEXT_COLUMN not in header:  # no row can be read; that the columns are missing is said later
        return [_Row("row 1", dict.fromkeys(header, ""))]
    try:
        found = list(read_records(io.BytesIO(text.encode("utf-8")), path.name, Columns(), delimiter=delimiter))
    except InputError as error:
        faults.add(f"it cannot be read: {error}")
        return []
    rows = []
    for number, row in enumerate(found, start=1):
        if isinstance(row, Record):
            rows.append(_Row(f"row {number}", row.columns))
        else:
            faults.add(f"rows that cannot be read: {row.reason}", f"line {row.line}")
    return rows


def _read_parquet(path: Path, folder: Path, faults: _Faults) -> list[_Row]:
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    copy = folder / "data.parquet"
    shutil.copyfile(path, copy)
    try:
        loaded = _load("parquet", copy).to_list()
    except (ArrowException, DatasetGenerationError, OSError, ValueError, NotImplementedError) as error:
        # Such messages can hold cell values: only their kind is passed on.
        faults.add(f"it cannot be read as Parquet with plain columns ({type(error.__cause__ or error).__name__})")
        return []
    return [_Row(f"row {number}", values) for number, values in enumerate(loaded, start=1)]


def _load(kind: str, path: Path) -> Any:
    """One file as a `datasets.Dataset` in memory (an open memory map could not be deleted on Windows)."""
    import datasets

    readers = {
        "text": datasets.Dataset.from_text,
        "parquet": datasets.Dataset.from_parquet,
    }
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return readers[kind](str(path), cache_dir=str(path.parent / "cache"), keep_in_memory=True)
    finally:
        if shown:
            datasets.enable_progress_bars()


def _decode(path: Path, faults: _Faults) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.add(f"it is not UTF-8 (byte {error.start}): save it with that encoding")
        return ""


def _examples(
    rows: Sequence[_Row], labels: LabelSet, stem: str, faults: _Faults, unlabelled: Unlabelled
) -> list[Example]:
    columns = {name for row in rows for name in row.values}
    for name in ("text", "label"):
        if name not in columns and (name == "text" or unlabelled == "refused"):
            faults.add(f"missing column {name!r} (there are {len(columns)} columns; a table's first line names them)")
    if "text" not in columns:
        return []
    seen: dict[str, int] = {}
    examples = []
    for number, row in enumerate(rows, start=1):
        if "id" in columns:
            row_id = _name(row.values.get("id"))
            if row_id is None:
                faults.add("rows whose id is missing or is neither text nor a whole number", row.place)
            else:
                seen[row_id] = seen.get(row_id, 0) + 1
        else:
            row_id = f"{stem}-{number}"
        place = row_id if row_id is not None else row.place
        text = _text(row.values.get("text"), place, faults)
        taught = _teacher_probabilities(row.values.get("teacher_probabilities"), labels, place, faults)
        needed = unlabelled == "refused" or (unlabelled == "taught" and not taught)
        if "label" in columns or unlabelled == "taught":
            label = _label(row.values.get("label"), labels, place, faults, needed=needed)
        else:
            label = ""
        examples.append(Example(place, text, label, _rationales(row.values, place, faults), taught))
    for row_id, count in seen.items():
        if count > 1:
            faults.add("ids that occur more than once", row_id)
    return examples


def _text(value: object, place: str, faults: _Faults) -> str:
    if value is None or value == "":
        faults.add("rows whose text is missing or empty", place)
    elif not isinstance(value, str):
        faults.add("rows whose text is not text", place)
    elif not value.strip():
        faults.add("rows whose text is blank", place)
    elif not _is_unicode(value):
        faults.add("rows whose text is not valid Unicode (a lone surrogate)", place)
    else:
        return value
    return ""


def _label(value: object, labels: LabelSet, place: str, faults: _Faults, *, needed: bool) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        if needed:
            faults.add("rows whose label is missing or blank", place)
        return ""
    label = _name(value)
    if label is None:
        faults.add("rows whose label is neither text nor a whole number", place)
        return ""
    if labels.kind != "open" and label not in labels.labels:
        faults.add(f"rows whose label is not one of {list(labels.labels)}", f"{place} ({_short(label)})")
    return label


def _teacher_probabilities(value: object, labels: LabelSet, place: str, faults: _Faults) -> dict[str, float]:
    if value is None or labels.kind == "open":
        return {}
    if not isinstance(value, dict) or set(value) != set(labels.labels):
        faults.add(
            f"rows whose teacher_probabilities are not an object of a number for each of {list(labels.labels)}", place
        )
        return {}
    numbers = [value[label] for label in labels.labels]
    if (
        any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers)
        or not all(0 <= number <= 1 for number in numbers)
        or not math.isclose(sum(numbers), 1, abs_tol=_SUM_TOLERANCE)
    ):
        faults.add("rows whose teacher_probabilities are not numbers in 0..1 with the sum 1", place)
        return {}
    return dict(zip(labels.labels, map(float, numbers), strict=True))


def _rationales(values: Mapping[str, Any], place: str, faults: _Faults) -> dict[str, str]:
    """Rationales by source, from `rationales`, `rationale` and `rationale_<source>`; empty ones left out."""
    found: list[tuple[str, Any]] = []
    mapping = values.get("rationales")
    if isinstance(mapping, dict):
        found += mapping.items()
    elif mapping is not None:
        faults.add("rows whose rationales are not an object of source and text", place)
    for name, value in values.items():
        if name == DEFAULT_SOURCE:
            found.append((DEFAULT_SOURCE, value))
        elif name.startswith("rationale_") and name != "rationale_":
            found.append((name.removeprefix("rationale_"), value))
    out: dict[str, str] = {}
    for source, value in found:
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str):
            faults.add("rows with a rationale that is not text", place)
        elif not _is_unicode(value):
            faults.add("rows with a rationale that is not valid Unicode (a lone surrogate)", place)
        elif source in out:
            faults.add("rows with two rationales of one source", place)
        else:
            out[source] = value
    return out


def _name(value: object) -> str | None:
    """An id or label as text: 17 and 17.0 (a column with gaps) are '17'; None for anything else."""
    if isinstance(value, str):
        return value if value.strip() and _is_unicode(value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def normal(text: str) -> str:
    """Text for comparison: without case, blanks made single."""
    return " ".join(text.split()).casefold()


def _short(value: str) -> str:
    """A value for a message, unless it is so long that it may be a note in the wrong column."""
    return repr(value) if len(value) <= _SHORT else f"{len(value)} characters"
