"""What a cell leaves behind: one small JSON file with every row's outcome and no texts.

The rows are there so that methods can be compared on the same notes (paired intervals) long after the
checkpoints are gone: label, confidence, BERTScore, the n-gram counts that BLEU is made of, and a judge's score where
the study has a judge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data import normal
from train.files import replace_file
from train.overlap import bleu

SCHEMA = 1
NO_BLEU = -1
_BLEU_COLUMNS = 6
_COLUMNS = ("ids", "labels", "gold", "label", "confidence", "bertscore", "bleu", "judge")

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The n rows of one validation set, column by column.

    Attributes:
        labels: the label names that `gold` and `label` [n] point into; empty for an open set, whose labels are
            numbered as they occur.
        confidence: probability of the predicted label, [n].
        bertscore: F1 of the rationale, [n]; nan where it or its reference is missing.
        bleu: words of the rationale, words of its reference, n-grams that both hold for n = 1..4, [n, 6];
            `NO_BLEU` where one is missing.
        judge: a judge's mean score of the rationale, 1 to 5, [n]; nan where it gave none.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    gold: Ints
    label: Ints
    confidence: Floats
    bertscore: Floats
    bleu: Ints
    judge: Floats


@dataclass(frozen=True)
class Result:
    """A finished or failed cell.

    Attributes:
        digest: the cell's, as the study file stood when it was trained.
        inputs: SHA-256 of the data files and the starting weights, by name.
        error: what it failed with; None for a finished cell.
        parameters: how many numbers the trained checkpoint holds.
        seconds: what training and evaluation took.
        curve: validation figures by optimizer step: `step` and one list for each set.
        evaluation: the figures that `train evaluate` gave, by set.
        context: machine and software, for the record.
    """

    digest: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    parameters: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sets: Mapping[str, Rows] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


def rows_of(
    records: Sequence[Mapping[str, Any]], labels: Sequence[str], judged: Mapping[str, float] | None = None
) -> Rows:
    """The rows of evaluation records.

    Args:
        records: as `train.evaluate` writes them.
        labels: the task's labels, none for an open task.
        judged: a judge's scores by row id.
    """
    names = [normal(label) for label in labels]
    names = names or sorted({normal(record[key]) for record in records for key in ("gold", "label")})
    compared = [
        row for row, record in enumerate(records) if record.get("rationale") is not None and record.get("reference")
    ]
    counts = np.full((len(records), _BLEU_COLUMNS), NO_BLEU, dtype=np.int64)
    if compared:
        figure, _ = bleu(*([records[row][key] for row in compared] for key in ("rationale", "reference")))
        counts[compared] = figure.rows[:, :_BLEU_COLUMNS]
    return Rows(
        ids=tuple(str(record["id"]) for record in records),
        labels=tuple(labels),
        gold=np.array([names.index(normal(record["gold"])) for record in records], dtype=np.int64),
        label=np.array([names.index(normal(record["label"])) for record in records], dtype=np.int64),
        confidence=np.array(
            [_number((record["probabilities"] or {}).get(record["label"])) for record in records], dtype=float
        ),
        bertscore=np.array([_number(record.get("bertscore_f1")) for record in records], dtype=float),
        bleu=counts,
        judge=np.array([_number((judged or {}).get(str(record["id"]))) for record in records], dtype=float),
    )


def write_result(path: Path, result: Result) -> None:
    """Writes a result with every column of rows on a line of its own."""
    data = {key: value for key, value in vars(result).items() if key != "sets" and (value or key == "digest")}
    sets = {name: _columns(rows) for name, rows in result.sets.items()}
    lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in {"schema": SCHEMA, **data}.items()]
    if sets:
        blocks = []
        for name, rows in sets.items():
            columns = ",\n".join(f'"{key}": {_compact(value)}' for key, value in rows.items())
            blocks.append(f"{json.dumps(name)}: {{\n{columns}\n}}")
        lines.append('"sets": {\n' + ",\n".join(blocks) + "\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")


def read_result(path: Path) -> Result | None:
    """Reads a result; None where there is none.

    Raises:
        ValueError: the file is not a result, or of another schema.
    """
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        data["sets"] = {name: _rows(columns) for name, columns in data.get("sets", {}).items()}
        return Result(**data)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of this version ({error}): train its cell again") from None


def count_parameters(checkpoint: Path) -> int:
    """How many numbers the safetensors files of a checkpoint hold, read from their headers alone."""
    total = 0
    for path in checkpoint.glob("model*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(int(np.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
    return total


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _columns(rows: Rows) -> dict[str, Any]:
    def rounded(values: Floats, places: int) -> list[float | None]:
        return [None if np.isnan(value) else round(float(value), places) for value in values]

    columns = {
        "ids": list(rows.ids),
        "labels": list(rows.labels),
        "gold": rows.gold.tolist(),
        "label": rows.label.tolist(),
        "confidence": rounded(rows.confidence, 4),
        "bertscore": rounded(rows.bertscore, 4),
        "bleu": [row if row[0] != NO_BLEU else None for row in rows.bleu.tolist()],
    }
    return columns if np.isnan(rows.judge).all() else {**columns, "judge": rounded(rows.judge, 2)}


def _rows(columns: Mapping[str, Any]) -> Rows:
    columns = {"judge": [None] * len(columns.get("ids", ())), **columns}  # most studies have no judge
    if set(columns) != set(_COLUMNS) or len({len(columns[key]) for key in _COLUMNS if key != "labels"}) != 1:
        raise ValueError(f"a set needs the columns {', '.join(_COLUMNS)}, all of one length")
    return Rows(
        ids=tuple(columns["ids"]),
        labels=tuple(columns["labels"]),
        gold=np.array(columns["gold"], dtype=np.int64),
        label=np.array(columns["label"], dtype=np.int64),
        confidence=np.array(columns["confidence"], dtype=float),  # null becomes nan
        bertscore=np.array(columns["bertscore"], dtype=float),
        bleu=np.array([row or [NO_BLEU] * _BLEU_COLUMNS for row in columns["bleu"]], dtype=np.int64),
        judge=np.array(columns["judge"], dtype=float),
    )


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str, allow_nan=False)
