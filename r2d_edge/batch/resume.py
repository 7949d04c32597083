"""What an earlier run left in the journal, as far as a run needs it to go on.

Finished rows cost a glance each: their journal lines are checksummed and only the last window's is parsed, and their
input rows are counted and passed over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r2d_edge.batch import journal as journals
from r2d_edge.batch.journal import Record

# How the records begin.
_BATCH, _WINDOW, _AUDIT = b'{"batch":', b'{"window":', b'{"audit":'

_Whole = tuple[bytes, list[bytes]]


@dataclass(frozen=True)
class Counts:
    """What the windows up to one's end came to.

    Attributes:
        notes: decided, each duplicate counted.
        texts: decided, each once a window.
        rejected: bad rows.
    """

    notes: int = 0
    texts: int = 0
    rejected: int = 0

    def to_json(self) -> dict[str, int]:
        """As a journal holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where in the inputs a window ends: so many rows into the input of this number."""

    source: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Done:
    """A window that the journal holds whole, its decisions not yet parsed."""

    record: Record
    batches: list[bytes]

    @property
    def number(self) -> int:
        return int(self.record["window"])

    @property
    def digest(self) -> str:
        return str(self.record["input"])

    @property
    def place(self) -> Place:
        return Place(*self.record["at"])

    @property
    def counts(self) -> Counts:
        return Counts(**self.record["counts"])

    def decisions(self) -> list[Record]:
        """One a note, in the notes' order."""
        found = decisions_of(self.batches)
        return [found[place] for _, place in self.record["notes"]]


@dataclass
class State:
    """What a journal holds.

    Attributes:
        before: the last whole window but one, if there are two.
        last: the last whole window, if there is one.
        batches: the first micro-batches of the window after them.
        audit: the name under which rows stand in the audit log; None if none can stand there yet.
        end: bytes up to the end of the last whole record.
        crc: its checksum.
        torn: bytes after it.
    """

    before: Done | None = None
    last: Done | None = None
    batches: list[bytes] = field(default_factory=list)
    audit: str | None = None
    end: int = 0
    crc: int = 0
    torn: int = 0

    @property
    def windows(self) -> int:
        """How many are whole."""
        return self.last.number + 1 if self.last else 0

    @property
    def counts(self) -> Counts:
        """What the whole windows came to."""
        return self.last.counts if self.last else Counts()

    @property
    def counts_before(self) -> Counts:
        """The same without the last of them."""
        return self.before.counts if self.before else Counts()


def decisions_of(batches: Sequence[bytes]) -> list[Record]:
    """The decisions of micro-batches, in their order."""
    return [decision for text in batches for decision in json.loads(text)["decisions"]]


def scan(path: Path) -> State:
    """What a journal holds; only the last windows' records are kept in memory."""
    state = State()
    before: _Whole | None = None
    last: _Whole | None = None
    with path.open("rb", buffering=1 << 20) as stream:
        for text, state.end, state.crc in journals.read(stream):
            if text.startswith(_WINDOW):
                before, last = last, (text, state.batches)
                state.batches = []
            elif text.startswith(_BATCH):
                state.batches.append(text)
            elif text.startswith(_AUDIT):
                state.audit = json.loads(text)["audit"]
    state.before, state.last = (Done(json.loads(whole[0]), whole[1]) if whole else None for whole in (before, last))
    state.torn = path.stat().st_size - state.end
    return state


def window_record(
    number: int,
    digest: str,
    place: Place,
    counts: Counts,
    *,
    notes: list[tuple[str, int]],
    rejected: list[tuple[str, int, str]],
) -> dict[str, Any]:
    """What the journal holds of a window's end.

    Args:
        notes: each note's id and the place of its decision among those of the window's micro-batches.
        rejected: the input, line and reason of each bad row.
    """
    return {
        "window": number,
        "input": digest,
        "at": [place.source, place.rows],
        "counts": counts.to_json(),
        "notes": notes,
        "rejected": rejected,
    }
