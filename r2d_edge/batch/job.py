"""What a batch run is asked to do, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2d_edge.tables import Reading

# What lies beside an output: the last two while it is written.
JOURNAL, LOCK, REJECTED = ".journal", ".lock", ".rejected.jsonl"
PARTIAL, REJECTED_PARTIAL = ".partial", ".rejected.partial"
SUFFIXES = (JOURNAL, LOCK, REJECTED, PARTIAL, REJECTED_PARTIAL)


# Notes of a micro-batch. Labels are scored for notes of one length together, of which a larger part of a window holds
# more (5 % less time than 64 at once); rationales take so long that less should be lost when the power goes.
NOTES_AT_ONCE, LABELS_AT_ONCE = 64, 256


@dataclass(frozen=True)
class Job:
    """What is to be decided, and how.

    Attributes:
        inputs: files, folders of text files, or `-` for stdin.
        output: the file of decisions; its journal, lock and rejected rows lie beside it.
        format: `jsonl`, `csv` or `parquet`.
        check: whether to say if a rationale alone leads to the same label.
        batch_size: notes of one micro-batch.
        options: whatever else a decision depends on (beam size, setting ...), for the journal to compare.
        audit: a hash-chained log to which each row is appended once its window is in the journal.
        strict: stop at the first bad row.
        force: replace the output, or a journal that was made with something else.
    """

    inputs: tuple[str, ...]
    output: Path
    format: str = "jsonl"
    reading: Reading = field(default_factory=Reading)
    rationale: bool = True
    check: bool = False
    batch_size: int = NOTES_AT_ONCE
    excel_bom: bool = False
    strict: bool = False
    force: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    audit: Path | None = None

    def beside(self, suffix: str) -> Path:
        """The output's companion with this ending."""
        return self.output.with_name(self.output.name + suffix)


@dataclass(frozen=True)
class Summary:
    """What came of a job, whether in one run or several.

    Attributes:
        notes: decided, each duplicate counted.
        rejected: bad rows.
        labels: how many notes got each label, abstentions among them.
        abstained: how many notes were abstained on, by reason.
        decided_now: different texts that this run decided.
        kept: different texts that earlier runs had decided.
        seconds: what this run's deciding took.
        torn: bytes of the journal that were cut off as torn or damaged.
        already_done: an earlier run had finished everything.
    """

    notes: int
    rejected: int
    labels: Counter[str]
    abstained: Counter[str]
    decided_now: int = 0
    kept: int = 0
    seconds: float = 0.0
    torn: int = 0
    already_done: bool = False


@dataclass
class Tally:
    """What a summary counts, note by note."""

    notes: int = 0
    rejected: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    abstained: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any]) -> None:
        """One more note."""
        self.notes += 1
        if record["label"] is not None:
            self.labels[record["label"]] += 1
        if record["abstained"]:
            self.abstained[record["reason"] or "abstained"] += 1

    def summary(self) -> Summary:
        """The counts so far."""
        return Summary(self.notes, self.rejected, self.labels, self.abstained)
