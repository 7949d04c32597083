"""The end of a batch run: the output from the journal, and a receipt in the journal's place."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d_edge.batch import journal as journals
from r2d_edge.batch.files import Files
from r2d_edge.batch.job import JOURNAL, PARTIAL, REJECTED, REJECTED_PARTIAL, Job, Summary, Tally
from r2d_edge.batch.journal import Journal, Record
from r2d_edge.batch.output import PlainFile, writer_of
from r2d_edge.errors import R2DError
from r2d_edge.hashing import file_sha256
from r2d_edge.rendering import json_text


@dataclass(frozen=True)
class Receipt:
    """What a finished run leaves in its journal.

    Attributes:
        output: SHA-256 of the output.
        rejected: SHA-256 of the rejected rows; None if there are none.
        rows: the digest of all rows.
        summary: what came of it.
    """

    output: str
    rejected: str | None
    rows: str
    summary: Summary


def write_output(job: Job, header: Record, rows: str, labels: Sequence[str], files: Files) -> Summary:
    """Writes the output and the rejected rows from a whole journal, and then the receipt.

    Each file is written beside its place, brought to the disk and put there at once. Whatever stops this, the
    journal stays and the next run does it again.

    Args:
        header: the journal's.
        rows: the digest of all rows.
        labels: the bundle's, in their order.

    Raises:
        R2DError: the journal does not fit together.
        OSError: a file cannot be written.
    """
    output = PlainFile(job.beside(PARTIAL), files)
    rejected: PlainFile | None = None
    counts = Tally()
    try:
        writer = writer_of(job.format, output, labels, excel_bom=job.excel_bom)
        decisions: list[Record] = []
        with job.beside(JOURNAL).open("rb") as stream:
            for text, _, _ in journals.read(stream):
                record = json.loads(text)
                if "decisions" in record:
                    decisions += record["decisions"]
                elif "notes" in record:
                    for id_, place in record["notes"]:
                        if place >= len(decisions):
                            raise R2DError(f"{job.beside(JOURNAL)} lacks a decision: start anew with --force")
                        decision = decisions[place]
                        counts.add(decision)
                        writer.write({"schema": decision["schema"], "id": id_, **decision})
                    decisions = []
                    for source, line, reason in record["rejected"]:
                        rejected = rejected or PlainFile(job.beside(REJECTED_PARTIAL), files)
                        row = {"input": source, "line": line, "reason": reason}
                        rejected.write((json_text(row) + "\n").encode("utf-8"))
                        counts.rejected += 1
        writer.close()
        rejected_digest = rejected.finish() if rejected is not None else None
        output_digest = output.finish()
    except BaseException:
        for suffix in (PARTIAL, REJECTED_PARTIAL):  # a full disk needs the room
            with contextlib.suppress(OSError):
                files.remove(job.beside(suffix))
        raise
    finally:
        output.close()
        if rejected is not None:
            rejected.close()
    if rejected is not None:
        files.rename(job.beside(REJECTED_PARTIAL), job.beside(REJECTED))
    else:
        files.remove(job.beside(REJECTED))
    files.rename(job.beside(PARTIAL), job.output)
    receipt = Receipt(output_digest, rejected_digest, rows, counts.summary())
    _write_receipt(job, header, receipt, files)
    return receipt.summary


def read_receipt(journal: Path) -> Receipt | None:
    """A journal's receipt, or None if its run has not finished."""
    with journal.open("rb") as stream:
        records = journals.read(stream)
        next(records, None)  # the header
        second = next(records, None)
    if second is None or not second[0].startswith(b'{"finished":'):
        return None
    data: dict[str, Any] = json.loads(second[0])["finished"]
    summary = Summary(
        data["notes"],
        data["rejected_rows"],
        Counter(data["labels"]),
        Counter(data["abstained"]),
        already_done=True,
    )
    return Receipt(data["output"], data["rejected"], data["rows"], summary)


def is_intact(receipt: Receipt, job: Job) -> bool:
    """Whether the files that a finished run wrote are there as it wrote them."""
    return _sha256(job.output) == receipt.output and _sha256(job.beside(REJECTED)) == receipt.rejected


def _write_receipt(job: Job, header: Record, receipt: Receipt, files: Files) -> None:
    summary = receipt.summary
    partial = job.beside(PARTIAL)
    journal = Journal.create(partial, header, files)
    try:
        data = {
            "output": receipt.output,
            "rejected": receipt.rejected,
            "rows": receipt.rows,
            "notes": summary.notes,
            "rejected_rows": summary.rejected,
            "labels": dict(sorted(summary.labels.items())),
            "abstained": dict(sorted(summary.abstained.items())),
        }
        journal.append({"finished": data})
        journal.sync()
    finally:
        journal.close()
    files.rename(partial, job.beside(JOURNAL))


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None
