"""The texts that say which pieces of a vocabulary are used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2d_edge.task import Limits, PromptEncoder, Task

MAX_LISTED = 10
HELD_OUT = 10  # one row in so many, from the end, is not counted
_NO_LIMIT = 2**31


@dataclass(frozen=True)
class Row:
    """A note with what was written about it; `label` is None for plain text."""

    id: str
    text: str
    label: str | None = None
    rationales: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All running text, the note first."""
        return (self.text, *self.rationales)


def read_corpus(path: Path) -> list[Row]:
    """Reads a data set in JSON Lines (`text`, `label`, `rationales`) or plain text, one note a line.

    Raises:
        ValueError: it is not UTF-8, holds no row or a line is not such a row; every bad line is named.
    """
    if path.suffix.lower() not in (".jsonl", ".txt"):
        raise ValueError(f"{path} is neither .jsonl nor .txt")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{path} cannot be read as UTF-8 text") from None
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = Row(str(number), line.strip()) if path.suffix.lower() == ".txt" else _row(json.loads(line), number)
            "".join((*row.texts, row.label or "")).encode("utf-8")  # a lone surrogate cannot be tokenized
            rows.append(row)
        except (ValueError, RecursionError):
            problems.append(f"line {number}")
    if problems:
        more = f" and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise ValueError(f"{path}: no row of a data set (id, text, label, rationales): {_listed(problems)}{more}")
    if not rows:
        raise ValueError(f"{path} holds no row")
    return rows


def _row(data: Any, number: int) -> Row:
    """One object of a data set.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(data, dict) or not isinstance(data.get("text"), str):
        raise ValueError
    mapping = data.get("rationales") or {}
    if not isinstance(mapping, dict):
        raise ValueError
    rationales = [*mapping.values(), *(data[name] for name in data if _is_rationale(name))]
    written = tuple(text for text in rationales if text is not None)
    label = data.get("label")
    if any(not isinstance(text, str) for text in written) or not isinstance(label, str | int | None):
        raise ValueError
    return Row(str(data.get("id", number)), data["text"], None if label is None else str(label), written)


def _is_rationale(name: str) -> bool:
    return name == "rationale" or name.startswith("rationale_")


def _listed(problems: Sequence[str]) -> str:
    return ", ".join(problems[:MAX_LISTED])


def hold_out(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """A corpus without its last tenth, and that tenth (a row at least)."""
    held = max(1, len(rows) // HELD_OUT)
    return list(rows[:-held]), list(rows[-held:])


def unlimited(task: Task) -> Task:
    """The task with no limit on lengths: what is cut off today may fit tomorrow."""
    return replace(task, limits=Limits(_NO_LIMIT, _NO_LIMIT, _NO_LIMIT))


def prompts_of(encoder: PromptEncoder) -> Iterator[list[int]]:
    """The ids of the task's own words: prompts without a note, and labels."""
    task = encoder.task
    yield encoder.predict("").ids
    yield encoder.rationale("").ids
    for label in task.labels.labels:
        yield from _of_label(encoder, label)


def sequences_of(encoder: PromptEncoder, row: Row) -> Iterator[list[int]]:
    """The ids of all that is read or written for a row.

    A text stands in a prompt, where its first word may be read otherwise than in an answer: it is taken as
    both, a rationale too, from which labels are scored again.
    """
    for text in row.texts:
        yield encoder.predict(text).ids
        yield encoder.text_ids(text)
    if row.label is not None and encoder.task.labels.kind == "open":
        yield from _of_label(encoder, row.label)


def _of_label(encoder: PromptEncoder, label: str) -> Iterator[list[int]]:
    yield [*encoder.label_ids(label), encoder.end_id]
    if encoder.task.prompts.explain is not None:
        yield encoder.explain("", label).ids
