"""Decides the notes of a job, keeps every micro-batch in the journal, and writes the output from there."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from r2d_edge.batch import journal as journals
from r2d_edge.batch.files import Files
from r2d_edge.batch.finish import Receipt, is_intact, read_receipt, write_output
from r2d_edge.batch.job import JOURNAL, LOCK, REJECTED, SUFFIXES, Job, Summary
from r2d_edge.batch.journal import Journal, Record
from r2d_edge.batch.lock import locked
from r2d_edge.batch.stops import Stops
from r2d_edge.batch.windows import WINDOW_CHARACTERS, WINDOW_ROWS, Placed, Window, windows
from r2d_edge.errors import InputError, R2DError
from r2d_edge.tables import Source, load_parquet

if TYPE_CHECKING:
    from r2d_edge.decide import Decider

# How the records of a micro-batch and of a window's end begin.
_BATCH, _WINDOW = b'{"batch":', b'{"window":'


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


@dataclass
class _State:
    """What a journal holds: whole windows, and the first micro-batches of the next one."""

    windows: int = 0
    window_digest: str | None = None
    batches: list[bytes] = field(default_factory=list)
    end: int = 0
    crc: int = 0
    torn: int = 0


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
            to another bundle, input or options, or a row is bad in a strict job.
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
        self._rows = self._windows_seen = 0
        self._start = 0.0
        sizes = [source.size for source in sources]
        self._bytes = sum(size for size in sizes if size is not None) if None not in sizes else 0
        self._read_before = self._read = 0.0  # shares of these bytes, up to the window at work and to its end
        self._decided = self._kept = 0
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
            state, journal = _State(), Journal.create(self._path, header, self._files)
        else:
            state = _scan(self._path)
            journal = Journal.resume(self._path, self._files, state.end, state.crc)
        self._start = time.perf_counter()
        digest = self._decide_all(journal, state)
        seconds = time.perf_counter() - self._start
        summary = write_output(self.job, header, digest, self._decider.task.labels.labels, self._files)
        return replace(summary, decided_now=self._decided, kept=self._kept, seconds=seconds, torn=state.torn)

    def _header(self) -> Record:
        """What an output depends on: two runs of one job have the same."""
        decider, reading = self._decider, self.job.reading
        engine = {key: value for key, value in decider.engine.describe().items() if key != "threads_why"}
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
            },
            "engine": engine,
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
        differing = [key for key in ("bundle", "input", "engine") if found.get(key) != header[key]]
        earlier = found.get("options")
        earlier = earlier if isinstance(earlier, dict) else {}
        differing += [f"option {name}" for name, value in header["options"].items() if earlier.get(name) != value]
        raise InputError(
            f"{self._path} was made with another {', '.join(differing) or 'version of this program'}: give what was "
            "given then, choose another output, or start anew with --force"
        )

    def _refuse_to_replace(self) -> None:
        for path in (self.job.output, self.job.beside(REJECTED)):
            if path.exists() and not self.job.force:
                raise InputError(f"{path} exists: choose another output, or replace it with --force")

    def _check_stdin(self, receipt: Receipt) -> None:
        """Of what can be read but once, that a finished run had the same is known only now."""
        if any(source.path is None for source in self._sources):
            digest = ""
            for window in self._windows():
                digest = window.digest
            if digest != receipt.rows:
                raise self._other_rows()

    def _windows(self) -> Iterator[Window]:
        rows = (Placed(source.name, row) for source in self._sources for row in source.rows())
        for window in windows(rows):
            if self.job.strict and window.rejected:
                source, line, reason = window.rejected[0]
                raise InputError(f"{source}, line {line}: {reason}; nothing was written, since the job is strict")
            yield window

    def _decide_all(self, journal: Journal, state: _State) -> str:
        """Decides every window that is not in the journal; gives the digest of all rows."""
        digest = ""
        try:
            for window in self._windows():
                digest = window.digest
                self._windows_seen += 1
                self._read_before = self._read
                self._read = self._position() / self._bytes if self._bytes else 0.0
                if window.number < state.windows:
                    if window.number == state.windows - 1:
                        self._check_rows(window, state.window_digest)
                    self._kept += len(window.texts)
                    self.done += len(window.notes)
                else:
                    kept = state.batches if window.number == state.windows else []
                    self._decide(window, journal, kept)
                self._rows += len(window.rows)
                self._report()
            if self._windows_seen < state.windows + bool(state.batches):
                raise self._other_rows()
            journal.sync()
        except BaseException:
            with contextlib.suppress(OSError):  # what stopped the work is what must be told
                journal.sync()
            raise
        finally:
            journal.close()
        return digest

    def _decide(self, window: Window, journal: Journal, kept: Sequence[bytes]) -> None:
        batches = window.batches(self.job.batch_size)
        if len(kept) > len(batches):
            raise self._other_rows()
        for number, texts in enumerate(batches):
            if number < len(kept):
                self._check_rows(window, json.loads(kept[number])["input"])
                self._kept += len(texts)
                self.done += len(texts)
                continue
            with self._stops.held():
                found = self._decider.decide_many(
                    texts, rationale=self.job.rationale, check=self.job.check, batch_size=self.job.batch_size
                )
                records = [decision.to_json() for decision in found]
                for record in records:
                    del record["id"], record["ms"]  # a text may stand in several rows; times differ between runs
                journal.append({"batch": number, "input": window.digest, "decisions": records})
            self._decided += len(texts)
            self.done += len(texts)
            self._labels.update(record["label"] for record in records if record["label"] is not None)
            self._abstained += sum(record["abstained"] for record in records)
            self._report((number + 1) / len(batches))
        with self._stops.held():
            journal.append(
                {
                    "window": window.number,
                    "input": window.digest,
                    "notes": window.notes,
                    "rejected": window.rejected,
                }
            )

    def _check_rows(self, window: Window, digest: str | None) -> None:
        if window.digest != digest:
            raise self._other_rows()

    def _other_rows(self) -> InputError:
        return InputError(
            f"the input's rows are not those that {self._path} was made with: give the same input, choose another "
            "output, or start anew with --force"
        )

    def _position(self) -> int:
        """About how many bytes of the inputs have been read."""
        return sum(source.position for source in self._sources)

    def _report(self, part: float = 1.0) -> None:
        """Tells how far the work is: `part` of the window at work is done."""
        if self._on_progress is None:
            return
        share = self._read_before + (self._read - self._read_before) * part if self._bytes else None
        rate = self._decided / max(time.perf_counter() - self._start, 1e-9)
        self._on_progress(Progress(self._rows, self.done, share, self._labels, self._abstained, rate))


def _scan(path: Path) -> _State:
    """Where a journal ends and what it holds; only the last window's records are kept in memory."""
    state = _State()
    last: bytes | None = None
    with path.open("rb") as stream:
        for text, state.end, state.crc in journals.read(stream):
            if text.startswith(_WINDOW):
                state.windows += 1
                state.batches = []
                last = text
            elif state.end and text.startswith(_BATCH):
                state.batches.append(text)
    if last is not None:
        state.window_digest = json.loads(last)["input"]
    state.torn = path.stat().st_size - state.end
    return state


def _check_output(job: Job, sources: Sequence[Source]) -> None:
    """Says before any work what stands against writing the output.

    Raises:
        InputError: its folder is not there, it is a folder itself or one of the inputs, or pyarrow is missing.
    """
    if not job.output.parent.is_dir():
        raise InputError(f"there is no folder {job.output.parent} for the output")
    if job.output.is_dir():
        raise InputError(f"{job.output} is a folder: name a file")
    own = [job.output, *(job.beside(suffix) for suffix in SUFFIXES)]
    for source in sources:
        if source.path is not None and source.path.resolve() in [path.resolve() for path in own]:
            raise InputError(f"{source.name} would be overwritten by the output: choose another name for it")
    if job.format == "parquet" or any(source.format == "parquet" for source in sources):
        load_parquet()
