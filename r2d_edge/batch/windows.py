"""The input cut into windows and micro-batches that depend on the input alone.

What a note's rationale says can depend, in an int8 model, on the notes that share its batch. So the notes that are
decided together are settled by their place in the input and never by what an earlier run had finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from r2d_edge.errors import InputError
from r2d_edge.inputs import BadRow, Note

WINDOW_ROWS = 1024
WINDOW_CHARACTERS = 16 << 20  # 1,024 of the longest notes would not fit into memory


@dataclass(frozen=True)
class Placed:
    """A row with the input it comes from."""

    source: str
    row: Note | BadRow


@dataclass(frozen=True)
class Window:
    """Rows that are decided before any later one.

    Attributes:
        number: counts from 0.
        rows: in the input's order.
        digest: of every row of the input up to this window's end.
    """

    number: int
    rows: tuple[Placed, ...]
    digest: str

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """The rows that hold a note."""
        return tuple(placed.row for placed in self.rows if isinstance(placed.row, Note))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Each text once, the shortest first, so that notes of one length are decided together."""
        first = dict.fromkeys(note.text for note in self.notes)
        return tuple(sorted(first, key=len))  # a stable sort: equal lengths stay in the input's order

    @property
    def rejected(self) -> list[tuple[str, int, str]]:
        """The input, line and reason of each bad row."""
        return [
            (placed.source, placed.row.line, placed.row.reason)
            for placed in self.rows
            if isinstance(placed.row, BadRow)
        ]


def refuse_if_strict(window: Window, *, strict: bool) -> None:
    """Raises an InputError that names a strict job's first bad row."""
    if strict and window.rejected:
        source, line, reason = window.rejected[0]
        raise InputError(f"{source}, line {line}: {reason}; there is no output, since the job is strict")


def batches(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """The texts in parts of `size`."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def windows(rows: Iterable[Placed], *, number: int = 0, digest: str = "") -> Iterator[Window]:
    """Cuts rows into windows of `WINDOW_ROWS`, or fewer where the notes are very long.

    Args:
        rows: what follows the windows that are passed over, if any.
        number: of the first window.
        digest: that of the window before it.
    """
    pending: list[Placed] = []
    running = hashlib.blake2b(digest.encode("ascii"), digest_size=16)
    characters = 0
    for placed in rows:
        pending.append(placed)
        row = placed.row
        # Lengths first, so that no two rows are told apart by their seam alone.
        parts = (row.id, row.text) if isinstance(row, Note) else ("", str(row.line), row.reason)
        for part in parts:
            raw = part.encode("utf-8", "surrogatepass")
            running.update(b"%d:" % len(raw))
            running.update(raw)
        running.update(b"%d\n" % len(parts))
        characters += len(row.text) if isinstance(row, Note) else 0
        if len(pending) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            digest = running.hexdigest()
            yield Window(number, tuple(pending), digest)
            pending, characters, number = [], 0, number + 1
            running = hashlib.blake2b(digest.encode("ascii"), digest_size=16)
    if pending:
        yield Window(number, tuple(pending), running.hexdigest())
