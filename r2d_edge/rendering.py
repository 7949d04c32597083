"""Decisions out: JSON Lines, one JSON document, or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Protocol, TextIO

from r2d_edge.decision import Decision

# Control sequences of a terminal (CSI, OSC and the like) and what else would act instead of being shown:
# control characters, marks that turn the direction of writing, lone surrogates.
_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")
_BLANK = re.compile(r"[\t\r\n\v\f]+")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Valid inside a JSON string as they are, but some terminals and line readers act on them.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """`text` in one line, without anything that a terminal would obey instead of show."""
    return _UNSEEN.sub("", _BLANK.sub(" ", _SEQUENCE.sub("", text)))


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON that any reader takes: valid UTF-8, no line break inside a line, no NaN.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: only its escape is valid
        return json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_row(cells: Sequence[str]) -> str:
    """A row of CSV with its line end.

    A cell with a line break in it is quoted, a lone carriage return too, which Python before 3.13 leaves bare
    unless the line end holds one: readers would begin a row there.
    """
    row = io.StringIO(newline="")
    csv.writer(row, lineterminator="\r\n").writerow(cells)
    return row.getvalue().removesuffix("\r\n") + "\n"


class DecisionWriter(Protocol):
    """Takes decisions one by one; `close` ends the document."""

    def write(self, decision: Decision) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """One record a line, each out at once so that a reader downstream can work along."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, decision: Decision) -> None:
        self._stream.write(json_text(decision.to_json()) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class JsonWriter:
    """One document: the record of a single note, or an array of the records of many."""

    def __init__(self, stream: TextIO, *, single: bool) -> None:
        self._stream = stream
        self._single = single
        self._written = 0

    def write(self, decision: Decision) -> None:
        text = json_text(decision.to_json(), indent=2)
        if self._single:
            self._stream.write(text + "\n")
        else:
            self._stream.write((",\n" if self._written else "[\n") + text)
        self._written += 1

    def close(self) -> None:
        if not self._single:
            self._stream.write("\n]\n" if self._written else "[]\n")
        self._stream.flush()


class CsvWriter:
    """A header and one row a note; the probabilities take one column a label."""

    def __init__(self, stream: TextIO, labels: Sequence[str], *, terminal: bool = False) -> None:
        self._stream = stream
        self._labels = labels
        self._terminal = terminal
        columns = [f"probability {label}" for label in labels] or ["probability"]  # an open set has no list
        head = ["id", "label", "abstained", "reason", *columns]
        tail = ["label_set", "rationale", "consistent", "truncated", "model", "ms_label", "ms_rationale"]
        stream.write(csv_row([*head, *tail]))

    def write(self, decision: Decision) -> None:
        record = decision.to_json()
        cells = [
            record["id"],
            record["label"],
            record["abstained"],
            record["reason"],
            *(record["probabilities"].get(label) for label in self._labels or [record["label"]]),
            None if record["label_set"] is None else "; ".join(record["label_set"]),
            record["rationale"],
            record["consistent"],
            record["truncated"],
            record["model"],
            record["ms"].get("label"),
            record["ms"].get("rationale"),
        ]
        self._stream.write(csv_row([self._cell(cell) for cell in cells]))
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()

    def _cell(self, value: object) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return "true" if value else "false"
        return printable(str(value)) if self._terminal else str(value)
