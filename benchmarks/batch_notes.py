"""Files of notes for batch runs: the CTAS notes, as often as are asked for, each row with an id of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.notes import corpus_rows


def corpus() -> list[str]:
    """Every note of the CTAS corpus."""
    return [row["text"] for part in ("validation", "train") for row in corpus_rows(part)]


def repeated(rows: int, texts: int) -> Iterator[tuple[str, str]]:
    """So many rows of the corpus' first `texts` notes, id and text; a note's repeats follow each other."""
    notes = corpus()[:texts]
    for row in range(rows):
        yield f"n{row:07d}", notes[row * len(notes) // rows]


def cycled(rows: int, texts: int) -> Iterator[tuple[str, str]]:
    """The same with the repeats far apart: every stretch of rows holds all of the texts."""
    notes = corpus()[:texts]
    for row in range(rows):
        yield f"n{row:07d}", notes[row % len(notes)]


def distinct(rows: int) -> Iterator[tuple[str, str]]:
    """So many rows of different notes: the corpus', each time around with another number of an ambulance."""
    notes = corpus()
    for row in range(rows):
        yield f"n{row:07d}", notes[row % len(notes)] + (f" Unit {row // len(notes)}." if row >= len(notes) else "")


def write_notes(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    """Writes rows as JSON Lines."""
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        lines.writelines(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n" for id_, text in rows)
