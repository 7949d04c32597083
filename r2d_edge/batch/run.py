"""Decides the notes of a job, keeps every micro-batch in the journal, and writes the output from there."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from r2d_edge.audit import AuditLog
from r2d_edge.batch import journal as journals
from r2d_edge.batch.audited import BatchAudit
from r2d_edge.batch.files import Files
from r2d_edge.batch.finish import Receipt, is_intact, read_receipt, write_output
from r2d_edge.batch.job import JOURNAL, LOCK, REJECTED, SUFFIXES, Job, Summary
from r2d_edge.batch.journal import Journal, Record
from r2d_edge.batch.lock import locked
from r2d_edge.batch.resume import Counts, Done, Place, State, decisions_of, scan, window_record
from r2d_edge.batch.stops import Stops
from r2d_edge.batch.windows import WINDOW_CHARACTERS, WINDOW_ROWS, Placed, Window, batches, refuse_if_strict, windows
from r2d_edge.errors import InputError, R2DError
from r2d_edge.machine import describe_machine
from r2d_edge.tables import Source, load_parquet

if TYPE_CHECKING:
    from r2d_edge.decide import Decider


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: rows of whole windows, bad ones and those of an earlier run among them.
        notes: notes decided, by earlier runs too.
        share: about which part of the inputs is done; None where their size is not known.
        labels: the labels given by this run.
        abstained: how many notes this run abstained on.
        rate: different texts a second, of this run.
    """

    rows: int
    notes: int
    share: float | None
    labels: Counter[str]
    abstained: int
    rate: float


def run_batch(
    job: Job,
    open_decider: Callable[[], Decider],
    *,
    files: Files | None = None,
    stops: Stops | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Decides a job's notes, or goes on where an earlier run of the same job was stopped.

    The output is the same, byte for byte, however often the work was stopped.

    Args:
        open_decider: called once it is known that the inputs are there and the output is free.
        files: the door to the disk.
        stops: which signals wait for the micro-batch at work.
        on_progress: called after each micro-batch.

    Raises:
        InputError: an input cannot be read, the output is taken, another run is at work on it, its journal belongs
            to another bundle, input, processor or options, the audit log lacks rows, or a row is bad in a strict job.
        R2DError: a file cannot be written; what is decided is kept for the next run.
    """
    sources = [Source(name, job.reading) for name in job.inputs]
    _check_output(job, sources)
    with locked(job.beside(LOCK)):
        run = _Run(job, sources, open_decider(), files or Files(), stops or Stops(), on_progress)
        try:
            return run.run()
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            raise R2DError(
                f"{name}{error.strerror or type(error).__name__}; the {run.done} notes that are decided are kept: "
                "when the cause is mended, run the same command again"
            ) from None


class _Run:
    """One run of a job."""

    def __init__(
        self,
        job: Job,
        sources: Sequence[Source],
        decider: Decider,
        files: Files,
        stops: Stops,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.job = job
        self.done = 0  # notes that are decided and in the journal
        self._sources = sources
        self._decider = decider
        self._files = files
        self._stops = stops
        self._on_progress = on_progress
        self._path = job.beside(JOURNAL)
        self._place = Place()
        self._digest = ""
        self._counts = Counts()  # up to the end of the window before the one at work
        self._audit: BatchAudit | None = None
        self._start = 0.0
        sizes = [source.size for source in sources]
        self._bytes = sum(size for size in sizes if size is not None) if None not in sizes else 0
        self._read_before = self._read = 0.0  # shares of these bytes, up to the window at work and to its end
        self._decided = 0
        self._labels: Counter[str] = Counter()
        self._abstained = 0

    def run(self) -> Summary:
        """Decides what is missing and puts the output in its place."""
        header = self._header()
        goes_on = self._is_of(header)
        if goes_on and (receipt := read_receipt(self._path)) is not None:
            if is_intact(receipt, self.job):
                self._check_stdin(receipt)
                return receipt.summary
            goes_on = False  # the output was moved away or changed since
        if not goes_on:
            self._refuse_to_replace()
        if self.job.audit is not None:
            # Before a journal is left behind, or hours of work, it is known whether the log can be written to.
            AuditLog(self.job.audit, self._decider.bundle.digest).record([])
        if not goes_on:
            state, journal = State(), Journal.create(self._path, header, self._files)
        else:
            state = scan(self._path)
            journal = Journal.resume(self._path, self._files, state.end, state.crc)
        kept = state.counts.texts
        self._start = time.perf_counter()
        try:
            kept += self._decide_all(journal, state)
            journal.sync()
        except BaseException:
            with contextlib.suppress(OSError):  # what stopped the work is what must be told
                journal.sync()
            raise
        finally:
            journal.close()
        seconds = time.perf_counter() - self._start
        summary = write_output(self.job, header, self._digest, self._decider.task.labels.labels, self._files)
        return replace(summary, decided_now=self._decided, kept=kept, seconds=seconds, torn=state.torn)

    def _header(self) -> Record:
        """What an output depends on: two runs of one job have the same."""
        decider, reading = self._decider, self.job.reading
        engine = {key: value for key, value in decider.engine.describe().items() if key != "threads_why"}
        machine = describe_machine()
        header = {
            "journal": journals.SCHEMA,
            "bundle": decider.bundle.digest,
            "input": [{"format": source.format, "sha256": source.sha256()} for source in self._sources],
            "options": {
                **dict(self.job.options),
                "format": self.job.format,
                "rationale": self.job.rationale and decider.task.explains,
                "check": self.job.check,
                "batch size": self.job.batch_size,
                "excel bom": self.job.excel_bom,
                "columns": asdict(reading.columns),
                "delimiter": reading.delimiter,
                "where": dict(reading.where),
                "window": [WINDOW_ROWS, WINDOW_CHARACTERS],
                "audit": self.job.audit is not None,
            },
            "engine": engine,
            # An engine's kernels are chosen by these, and two kernels may round differently.
            "processor": {"cpu": machine["cpu"], "features": machine["features"]},
        }
        return dict(json.loads(json.dumps(header)))  # as it will be read back

    def _is_of(self, header: Record) -> bool:
        """Whether there is a journal of this job; another one that may be replaced counts as none.

        Raises:
            InputError: it is another job's and may not be replaced.
        """
        try:
            found = journals.read_header(self._path)
        except InputError:
            if self.job.force:
                return False
            raise
        if found is None or found == header:
            return found is not None
        if self.job.force:
            return False
        raise InputError(
            f"{self._path} was made with another {_differing(found, header)}: give what was given then, choose "
            "another output, or start anew with --force"
        )

    def _refuse_to_replace(self) -> None:
        for path in (self.job.output, self.job.beside(REJECTED)):
            if path.exists() and not self.job.force:
                raise InputError(f"{path} exists: choose another output, or replace it with --force")

    @property
    def _from_stdin(self) -> bool:
        return any(source.path is None for source in self._sources)

    def _check_stdin(self, receipt: Receipt) -> None:
        """Of what can be read but once, that a finished run had the same is known only now."""
        if self._from_stdin:
            digest = ""
            for window in self._windows(None):
                digest = window.digest
            if digest != receipt.rows:
                raise self._other_rows()

    def _windows(self, after: Done | None) -> Iterator[Window]:
        """The windows of the input, or those after one of them."""
        if after is None:
            found = windows(self._rows(Place()))
        else:
            found = windows(self._rows(after.place), number=after.number + 1, digest=after.digest)
        for window in found:
            refuse_if_strict(window, strict=self.job.strict)
            yield window

    def _rows(self, start: Place) -> Iterator[Placed]:
        """The rows from a place on; `_place` says up to where they were taken."""
        for number, source in enumerate(self._sources):
            if number < start.source:
                continue
            skip = start.rows if number == start.source else 0
            for count, row in enumerate(source.rows(skip), start=skip + 1):
                self._place = Place(number, count)
                yield Placed(source.name, row)

    def _decide_all(self, journal: Journal, state: State) -> int:
        """Decides every window that is not in the journal; gives the texts kept of the window that was at work."""
        start: Done | None = state.last
        self.done = state.counts.notes
        self._counts = state.counts
        if self._start_audit(journal, state) < state.counts.notes:
            start, self._counts = state.before, state.counts_before  # for the last window's rows to be logged
        if self._from_stdin or (self.job.strict and state.counts.rejected):
            start = None  # every row must be seen again
        self._digest = start.digest if start else ""
        seen = start.number + 1 if start else 0
        kept = 0
        for window in self._windows(start):
            self._digest = window.digest
            seen = window.number + 1
            self._read_before = self._read
            self._read = self._position() / self._bytes if self._bytes else 0.0
            if window.number >= state.windows:
                kept += self._decide(window, journal, state.batches if window.number == state.windows else [])
                self._report()
            elif window.number == state.windows - 1 and state.last:
                self._recall(window, state.last)
        if seen < state.windows + bool(state.batches):
            raise self._other_rows()
        return kept

    def _recall(self, window: Window, done: Done) -> None:
        """Takes up a window that an earlier run finished."""
        self._check_rows(window, done.digest)
        if self._counts != done.counts:  # it is not counted yet: its rows may be missing from the log
            self._log(window, done.decisions())
        self._counts = done.counts

    def _decide(self, window: Window, journal: Journal, kept: Sequence[bytes]) -> int:
        """Decides what is missing of a window; gives the number of texts that were not."""
        parts = batches(window.texts, self.job.batch_size)
        if len(kept) > len(parts):
            raise self._other_rows()
        for text in kept:
            self._check_rows(window, json.loads(text)["input"])
        decisions = decisions_of(kept)
        texts_kept = len(decisions)
        self.done += texts_kept
        for number, texts in enumerate(parts[len(kept) :], start=len(kept)):
            with self._stops.held():
                found = self._decider.decide_many(
                    texts, rationale=self.job.rationale, check=self.job.check, batch_size=self.job.batch_size
                )
                records = [decision.to_json() for decision in found]
                for record in records:
                    del record["id"], record["ms"]  # a text may stand in several rows; times differ between runs
                journal.append({"batch": number, "input": window.digest, "decisions": records})
            decisions += records
            self._decided += len(texts)
            self.done += len(texts)
            self._labels.update(record["label"] for record in records if record["label"] is not None)
            self._abstained += sum(record["abstained"] for record in records)
            self._report((number + 1) / len(parts))
        place = {text: number for number, text in enumerate(window.texts)}
        before = self._counts
        counts = Counts(
            before.notes + len(window.notes),
            before.texts + len(window.texts),
            before.rejected + len(window.rejected),
        )
        with self._stops.held():
            journal.append(
                window_record(
                    window.number,
                    window.digest,
                    self._place,
                    counts,
                    notes=[(note.id, place[note.text]) for note in window.notes],
                    rejected=window.rejected,
                )
            )
            if self._audit is not None:
                journal.sync()  # what the log holds is never lost here
                self._log(window, [decisions[place[note.text]] for note in window.notes])
        self._counts = counts
        self.done = counts.notes
        return texts_kept

    def _start_audit(self, journal: Journal, state: State) -> int:
        """Opens the log, and gives the number of rows that need not be logged."""
        if self.job.audit is None:
            return state.counts.notes
        least = state.counts_before.notes
        self._audit = BatchAudit(self.job.audit, self._decider.bundle.digest, state.audit, least=least)
        if state.audit is None:
            journal.append({"audit": self._audit.name})
            journal.sync()
        return self._audit.logged

    def _log(self, window: Window, decisions: Sequence[Record]) -> None:
        """Appends a finished window's rows to the audit log, unless they are there."""
        if self._audit is not None:
            self._audit.record(window.notes, decisions, first_row=self._counts.notes)

    def _check_rows(self, window: Window, digest: str) -> None:
        if window.digest != digest:
            raise self._other_rows()

    def _other_rows(self) -> InputError:
        return InputError(
            f"the input's rows are not those that {self._path} was made with: give the same input, choose another "
            "output, or start anew with --force"
        )

    def _position(self) -> int:
        """About how many bytes of the inputs have been read."""
        sources = self._sources[: self._place.source + 1]
        return sum(source.size or 0 for source in sources[:-1]) + sources[-1].position

    def _report(self, part: float = 1.0) -> None:
        """Tells how far the work is: `part` of the window at work is done."""
        if self._on_progress is None:
            return
        share = self._read_before + (self._read - self._read_before) * part if self._bytes else None
        rows = self._counts.notes + self._counts.rejected
        rate = self._decided / max(time.perf_counter() - self._start, 1e-9)
        self._on_progress(Progress(rows, self.done, share, self._labels, self._abstained, rate))


def _differing(found: Record, header: Record) -> str:
    """In words, what an earlier run's header says otherwise than this one's."""
    differing = [key for key in ("bundle", "input") if found.get(key) != header[key]]
    if found.get("engine") != header["engine"]:
        earlier = _mapping(found.get("engine"))
        differing.append(
            f"engine ({', '.join(key for key in header['engine'] if earlier.get(key) != header['engine'][key])})"
        )
    if found.get("processor") != header["processor"]:
        differing.append(
            f"processor ({_mapping(found.get('processor')).get('cpu')}; another may round scores otherwise)"
        )
    earlier = _mapping(found.get("options"))
    differing += [f"option {name}" for name, value in header["options"].items() if earlier.get(name) != value]
    return ", ".join(differing) or "version of this program"


def _mapping(value: object) -> Record:
    return value if isinstance(value, dict) else {}


def _check_output(job: Job, sources: Sequence[Source]) -> None:
    """Says before any work what stands against writing the output.

    Raises:
        InputError: its folder is not there, it is a folder itself or one of the inputs, or pyarrow is missing.
    """
    if not job.output.parent.is_dir():
        raise InputError(f"there is no folder {job.output.parent} for the output")
    if job.output.is_dir():
        raise InputError(f"{job.output} is a folder: name a file")
    own = [path.resolve() for path in (job.output, *(job.beside(suffix) for suffix in SUFFIXES))]
    for source in sources:
        if source.path is not None and source.path.resolve() in own:
            raise InputError(f"{source.name} would be overwritten by the output: choose another name for it")
    if job.audit is not None and job.audit.resolve() in [
        *own,
        *(source.path.resolve() for source in sources if source.path),
    ]:
        raise InputError(f"{job.audit} is an input or the output's own: choose another name for the audit log")
    if job.format == "parquet" or any(source.format == "parquet" for source in sources):
        load_parquet()
