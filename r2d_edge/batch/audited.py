"""A batch run's rows in the audit log: each once, however often the run was stopped.

The journal gives a run a name, and the log's lines carry it with the row's number. A window's rows are appended when
its last record is on the disk; a run that goes on finds in the log how many rows are there and appends the others.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2d_edge.audit import AuditLog, logged_rows
from r2d_edge.decision import Decision
from r2d_edge.errors import InputError
from r2d_edge.inputs import Note

_NAME_BYTES = 8


class BatchAudit:
    """Appends rows that are not in the log yet.

    Attributes:
        name: the run's.
        logged: how many rows, the first ones, are in the log.

    Args:
        path: the log.
        bundle_digest: SHA-256 of the deciding bundle's manifest.
        name: the run's, if it has one; it gets one otherwise.
        least: rows that must be in the log, since this run will not see them.

    Raises:
        AuditError: the log cannot be read or written to.
        InputError: rows are missing from it.
    """

    def __init__(self, path: Path, bundle_digest: str, name: str | None, *, least: int) -> None:
        self._log = AuditLog(path, bundle_digest)
        self.name = name or secrets.token_hex(_NAME_BYTES)
        self.logged = logged_rows(path, name) if name is not None else 0
        if self.logged < least:
            raise InputError(
                f"the audit log {path} lacks rows that this job has finished: give the log that it began with, or "
                "start anew with --force"
            )

    def record(self, notes: Sequence[Note], decisions: Sequence[dict[str, Any]], first_row: int) -> None:
        """Appends the rows of a window.

        Args:
            decisions: the records of the notes, without ids.
            first_row: how many notes stand before the window's first.
        """
        new = max(0, self.logged - first_row)
        rows = [(note.text, _decision(note.id, record)) for note, record in zip(notes, decisions, strict=True)]
        if rows[new:]:
            self._log.record(rows[new:], job=self.name, first_row=first_row + new)
            self.logged = first_row + len(rows)


def _decision(id_: str, record: dict[str, Any]) -> Decision:
    return Decision(id_, record["label"], record["probabilities"], record["model"], abstained=record["abstained"])
