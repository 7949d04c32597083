"""Labelled rows: notes with the label, and where there is one the rationale, that a person or a teacher gave."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge.delimited import Record, read_records
from r2d_edge.errors import InputError
from r2d_edge.inputs import BadRow, Columns, Note, open_notes, read_jsonl
from r2d_edge.task import LabelSet

ONE_SOURCE = "rationale"  # the source of a row that does not say whose its rationale is
_LISTED = 10


@dataclass(frozen=True)
class LabelledRow:
    """A note with its gold label.

    Attributes:
        id: unique over all files: the row's own, with the file's name before it where there are several files.
        own_id: as the file has it.
        rationales: texts by source; blank ones left out.
    """

    id: str
    own_id: str
    text: str
    gold: str
    rationales: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledFile:
    """What was read: a file's name, SHA-256 and number of rows."""

    name: str
    sha256: str
    rows: int


def read_labelled(paths: Sequence[Path]) -> tuple[list[LabelledRow], list[LabelledFile]]:
    """Reads `.jsonl` or `.csv` files of labelled rows.

    Columns: `text`, `label`, and if there are any `id` (else rows are numbered as `infer` numbers them) and
    rationales: `rationales` (JSON Lines: an object of source and text), `rationale` or `rationale_<source>`.

    Raises:
        InputError: a file cannot be read, or rows have faults; all faulty lines of a file are named.
    """
    stems = _names(paths)
    if len(set(stems)) < len(paths):
        raise InputError("the same data file is given twice, or two have the same name and folder name")
    rows: list[LabelledRow] = []
    files = []
    for path, stem in zip(paths, stems, strict=True):
        with open_notes(path) as stream:
            data = stream.read()
        found = _read(data, path)
        if len(paths) > 1:
            found = [replace(row, id=f"{stem}/{row.id}") for row in found]
        files.append(LabelledFile(path.name, hashlib.sha256(data).hexdigest(), len(found)))
        rows += found
    return rows, files


def check_labels(rows: Sequence[LabelledRow], labels: LabelSet) -> None:
    """Raises an InputError that names the rows whose gold label is not in the set."""
    strange = [row.id for row in rows if row.gold not in labels.labels]
    if strange:
        raise InputError(
            f"{len(strange)} rows have a label that is not one of {list(labels.labels)}: {_listed(strange)}"
        )


def choose_source(rows: Sequence[LabelledRow], asked: str | None, preferred: Sequence[str] = ()) -> str | None:
    """Whose rationales are the gold ones; None where the rows have none.

    Args:
        rows: the labelled rows.
        asked: the source by name.
        preferred: sources to take before others where none was asked for (what the model learned from).

    Raises:
        InputError: no row has that source, or there are several to choose from.
    """
    there = sorted({source for row in rows for source in row.rationales})
    if asked is not None:
        if asked not in there:
            raise InputError(f"no row has a rationale of source {asked!r}; sources: {', '.join(there) or 'none'}")
        return asked
    known = [source for source in preferred if source in there]
    if known:
        return known[0]
    if len(there) > 1:
        raise InputError(f"the rows have rationales of {', '.join(there)}: choose one with --source")
    return there[0] if there else None


def draw(rows: Sequence[LabelledRow], limit: int | None, seed: int) -> list[LabelledRow]:
    """At most `limit` rows, drawn with the seed, in their order."""
    if limit is None or limit >= len(rows):
        return list(rows)
    places = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return [rows[place] for place in sorted(places.tolist())]


def _read(data: bytes, path: Path) -> list[LabelledRow]:
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise InputError(f"{path} is neither .jsonl nor .csv: labelled rows are read from these")
    # The runtime's own readers check the file and number its rows.
    reader = read_jsonl if kind == ".jsonl" else read_records
    found = list(reader(io.BytesIO(data), path.name, Columns()))
    _refuse(path, [f"line {row.line}: {row.reason}" for row in found if isinstance(row, BadRow)])
    records: list[tuple[Note, Mapping[str, Any]]]
    if kind == ".csv":
        records = [(row.note, row.columns) for row in found if isinstance(row, Record)]
    else:
        lines = (line for line in data.decode("utf-8-sig").split("\n") if line.strip())
        notes = (row for row in found if isinstance(row, Note))
        records = [(note, json.loads(line)) for note, line in zip(notes, lines, strict=True)]
    faults: list[str] = []
    rows = []
    for note, record in records:
        label = record.get("label")
        if type(label) is int:
            label = str(label)
        if not isinstance(label, str) or not label.strip():
            faults.append(f"row {note.id}: no label")
            continue
        rationales = _rationales(record)
        if rationales is None:
            faults.append(f"row {note.id}: a rationale is not text")
            continue
        rows.append(LabelledRow(note.id, note.id, note.text, label, rationales))
    faults += [
        f"id {name} comes {count} times" for name, count in Counter(note.id for note, _ in records).items() if count > 1
    ]
    _refuse(path, faults)
    return rows


def _rationales(record: Mapping[str, Any]) -> dict[str, str] | None:
    """Rationales by source, or None where one is something else than text."""
    given = record.get("rationales")
    if given is not None and not isinstance(given, dict):
        return None
    found = dict(given or {})
    for name, value in record.items():
        if name == ONE_SOURCE:
            found[ONE_SOURCE] = value
        elif name.startswith(f"{ONE_SOURCE}_"):
            found[name.removeprefix(f"{ONE_SOURCE}_")] = value
    if not all(value is None or isinstance(value, str) for value in found.values()):
        return None
    return {source: text for source, text in found.items() if text and text.strip()}


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each file that no other has."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{path.absolute().parent.name}/{path.stem}" if stems.count(path.stem) > 1 else path.stem for path in paths]


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        raise InputError(f"{path} has faults: {_listed(faults, '; ')}")


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return separator.join(items[:_LISTED]) + more
