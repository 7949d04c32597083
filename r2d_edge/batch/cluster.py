"""The same decisions on many machines: Ray Data hands out the windows of a batch run, and keeps what must be kept.

A file is cut into the windows and micro-batches of a local run (`windows`), so a window's decisions are those of a
local run with one worker and as many threads. Ray's rows are whole windows: one reads them, an actor with the model
decides each, and some are written as one part. What Ray may put into its logs, an error's words first of all, never
holds a note's text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

# Before Ray is imported: nothing is told to its makers, and what its own code has to say stays in its folder.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasink, TaskPoolStrategy

from r2d_edge.batch.job import NOTES_AT_ONCE, Summary, Tally
from r2d_edge.batch.output import PlainFile, writer_of
from r2d_edge.batch.places import DONE, PART, Folder, Table, absolute, open_table, reason_of, tables_of
from r2d_edge.batch.windows import Placed, Window, refuse_if_strict, windows
from r2d_edge.catalogue import SHORT_NAMES, model_names, open_model
from r2d_edge.decide import Decider, load
from r2d_edge.delimited import read_csv
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, EngineError, InputError, R2DError
from r2d_edge.inputs import BadRow, Note, read_jsonl
from r2d_edge.rendering import json_text
from r2d_edge.tables import ChosenLines, Reading, read_parquet

REJECTED = ".rejected"
PART_WINDOWS = 16
_ADDRESS = "RAY_ADDRESS"
_TABLE, _WINDOW, _DECIDED = "table", "window", "decided"  # the one column at each stage


@dataclass(frozen=True)
class ClusterJob:
    """What is to be decided, how, and by how many.

    Attributes:
        inputs: files and folders of tables, by path or URI; every machine must reach them.
        output: the folder of parts, by path or URI; bad rows go to a folder of its name with `.rejected`.
        format: `jsonl`, `csv` or `parquet`.
        model: as `r2d_edge.decide.load` takes it; every machine must have the same bundle there.
        engine: `workers` actors with `threads` each (0: one).
        batch_size: notes of one micro-batch.
    """

    inputs: tuple[str, ...]
    output: str
    format: str = "jsonl"
    reading: Reading = field(default_factory=Reading)
    model: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    setting: str | None = None
    beam_size: int | None = None
    rationale: bool = True
    check: bool = False
    batch_size: int = NOTES_AT_ONCE
    strict: bool = False
    force: bool = False

    @property
    def rejected(self) -> str:
        """The folder of the bad rows."""
        return self.output.rstrip("/\\") + REJECTED

    @property
    def threads(self) -> int:
        """Of one actor."""
        return self.engine.threads or 1


def run_on_ray(job: ClusterJob, *, shown: bool = False) -> Summary:
    """Decides a job's notes on the cluster that RAY_ADDRESS names, or else on a local one made for this run.

    Rows keep their order from part to part. There is no journal: what stops this program, or a damaged input, ends
    the run, and its output is removed; what stops a worker does not.

    Args:
        shown: whether Ray's progress bars are shown.

    Raises:
        InputError: an input cannot be read, the output is taken, or a row is bad in a strict job.
        BundleError: the bundle was refused, or a worker has another.
        EngineError: an engine cannot run there, or Ray gave up.
    """
    tables = [table for name in job.inputs for table in tables_of(name, job.reading)]
    folders = [Folder(job.output), Folder(job.rejected)]
    for folder in folders:
        folder.check(force=job.force)
        for table in tables:
            if folder.holds(table):
                raise InputError(f"{table.name} would be overwritten by the output: choose another name for it")
    bundle = open_model(job.model)
    labels = bundle.manifest.task.labels.labels
    with _cluster(job):
        start = time.perf_counter()
        parts = _Parts(folders[0], folders[1], job.format, tuple(labels))
        made: list[Folder] = []
        try:
            for folder in folders:
                folder.make(force=job.force)
                made.append(folder)
            with _settings(shown=shown):
                _decide_all(job, tables, bundle.digest, parts)
            if not parts.rejected:
                folders[1].remove()
            with folders[0].open(DONE):
                pass
        except BaseException as error:
            for folder in made:
                with contextlib.suppress(OSError):  # what stopped the work is what must be told
                    folder.remove()
            if isinstance(error, ray.exceptions.RayError):
                raise _told(error) from error
            raise
        return replace(parts.summary(), seconds=time.perf_counter() - start)


def _decide_all(job: ClusterJob, tables: list[Table], digest: str, parts: _Parts) -> None:
    """Reading and writing ask for no processor: the actors may take them all, and would wait for ever for rows."""
    workers = job.engine.workers
    model = job.model
    if model is not None and SHORT_NAMES.get(model, model) not in model_names():
        model = absolute(model)
    # An actor that asks for no GPU must not find one by itself: others may have asked for it.
    device = "cuda" if job.engine.device == "cuda" else "cpu"
    engine = replace(job.engine, device=device, threads=job.threads, workers=1)
    files = ray.data.from_items([{_TABLE: pickle.dumps(table)} for table in tables])
    files.map_batches(
        _read,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"reading": job.reading, "strict": job.strict},
        compute=TaskPoolStrategy(size=min(workers, len(tables))),
        num_cpus=0,
    ).map_batches(
        _Actor,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(replace(job, model=model, engine=engine), digest),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=job.threads,
        num_gpus=1 if device == "cuda" else 0,
    ).write_datasink(parts, ray_remote_args={"num_cpus": 0}, concurrency=workers)


@contextlib.contextmanager
def _without_text() -> Iterator[None]:
    """Errors of other kinds than this package's own may quote a note: of them only the kind is told."""
    try:
        yield
    except R2DError:
        raise
    except OSError as error:
        raise EngineError(f"a worker cannot read or write: {reason_of(error)}") from None
    except Exception as error:
        raise EngineError(f"a worker failed unexpectedly ({type(error).__name__})") from None


def _read(files: pyarrow.Table, *, reading: Reading, strict: bool) -> Iterator[pyarrow.Table]:
    """The windows of files, one a row."""
    with _without_text():
        for cell in files.column(_TABLE).to_pylist():
            for window in _windows_of(pickle.loads(cell), reading, strict=strict):
                yield _cells(_WINDOW, [pickle.dumps(window.rows)])


def _windows_of(table: Table, reading: Reading, *, strict: bool) -> Iterator[Window]:
    with open_table(table) as stream:
        for window in windows(Placed(table.name, row) for row in _rows_of(table, stream, reading)):
            refuse_if_strict(window, strict=strict)
            yield window


def _rows_of(table: Table, stream: Any, reading: Reading) -> Iterator[Note | BadRow]:
    if table.format == "parquet":
        return read_parquet(stream, table.name, reading)
    if table.format == "csv":
        return read_csv(stream, table.name, reading.columns, delimiter=reading.delimiter, where=reading.where)
    if reading.where:
        stream = ChosenLines(stream, reading.where)
    return read_jsonl(stream, table.name, reading.columns)


class _Actor:
    """Holds the model and decides windows."""

    def __init__(self, job: ClusterJob, digest: str) -> None:
        self._job = job
        self._decider: Decider | None = None
        try:
            with _without_text():
                self._decider = _open(job, digest)
        except R2DError as error:
            self._error = error  # raised with the first window: Ray would only start the actor again

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        if self._decider is None:
            raise self._error
        with _without_text():
            cells = rows.column(_WINDOW).to_pylist()
            return _cells(_DECIDED, [_decided(self._decider, self._job, pickle.loads(cell)) for cell in cells])


def _open(job: ClusterJob, digest: str) -> Decider:
    decider = load(job.model, job.engine, setting=job.setting)
    bundle = decider.bundle
    if bundle.digest != digest:
        raise BundleError(f"a worker has another bundle, {bundle.label}: lay the same one on every machine")
    if job.beam_size is not None:
        decoding = replace(bundle.manifest.decoding, beam_size=job.beam_size)
        bundle.manifest = replace(bundle.manifest, decoding=decoding)
    return decider


def _decided(decider: Decider, job: ClusterJob, rows: tuple[Placed, ...]) -> bytes:
    """A window's records in its rows' order, and its bad rows."""
    window = Window(0, rows, "")
    decisions = decider.decide_many(window.texts, rationale=job.rationale, check=job.check, batch_size=job.batch_size)
    found = {text: decision.to_json() for text, decision in zip(window.texts, decisions, strict=True)}
    for record in found.values():
        del record["ms"]  # times differ between runs
    notes = [placed.row for placed in rows if isinstance(placed.row, Note)]
    return pickle.dumps(([{**found[note.text], "id": note.id} for note in notes], window.rejected))


class _Parts(Datasink[Any]):
    """Writes parts and counts what is in them."""

    def __init__(self, folder: Folder, rejected: Folder, format_: str, labels: tuple[str, ...]) -> None:
        self._folder = folder
        self._rejected_folder = rejected
        self._format = format_
        self._labels = labels
        self._written: list[Tally] = []

    @property
    def min_rows_per_write(self) -> int:
        return PART_WINDOWS

    @_without_text()
    def write(self, blocks: Iterable[Any], ctx: Any) -> Tally:
        # A write that is tried again has the same number, and so replaces what it left.
        name = f"{PART}{ctx.task_idx:06d}"
        counts = Tally()
        bad: list[tuple[str, int, str]] = []
        with self._folder.open(f"{name}.{self._format}") as stream:
            # A writer asks of its file no more than `write`.
            writer = writer_of(self._format, cast(PlainFile, stream), self._labels, excel_bom=False)
            for block in blocks:
                for cell in block.column(_DECIDED).to_pylist():
                    records, rejected = pickle.loads(cell)
                    for record in records:
                        writer.write(record)
                        counts.add(record)
                    bad += rejected
            writer.close()
        if bad:
            counts.rejected = len(bad)
            with self._rejected_folder.open(f"{name}.jsonl") as stream:
                for source, line, reason in bad:
                    row = {"input": source, "line": line, "reason": reason}
                    stream.write((json_text(row) + "\n").encode("utf-8"))
        return counts

    def on_write_complete(self, write_result: Any) -> None:
        self._written = write_result.write_returns

    @property
    def rejected(self) -> int:
        """How many bad rows there were."""
        return sum(counts.rejected for counts in self._written)

    def summary(self) -> Summary:
        """What came of all parts."""
        notes = sum(counts.notes for counts in self._written)
        labels = sum((counts.labels for counts in self._written), Counter[str]())
        abstained = sum((counts.abstained for counts in self._written), Counter[str]())
        return Summary(notes, self.rejected, labels, abstained, decided_now=notes)


def _cells(name: str, cells: list[bytes]) -> pyarrow.Table:
    return pyarrow.table({name: pyarrow.array(cells, pyarrow.large_binary())})


@contextlib.contextmanager
def _cluster(job: ClusterJob) -> Iterator[None]:
    """A connection to Ray; what a local cluster leaves on the disk, spilled notes among it, is removed."""
    if ray.is_initialized():
        yield
        return
    ends = signal.getsignal(signal.SIGTERM)
    address, folder = os.environ.get(_ADDRESS), None
    try:
        if address:
            _connect(address)
        else:
            # A short path: sockets lie below it, and theirs has some hundred bytes at most; macOS's own is longer.
            folder = tempfile.mkdtemp(prefix="r2d-", dir="/tmp" if sys.platform == "darwin" else None)
            processors = max(os.cpu_count() or 1, job.engine.workers * job.threads)
            _connect("local", num_cpus=processors, include_dashboard=False, _temp_dir=folder)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ends)  # Ray puts its own in its place
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str, **settings: Any) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **settings)
    except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.RayError) as error:
        where = "here" if address == "local" else f"at {address} (is it up, and does it ask for RAY_AUTH_MODE=token?)"
        raise EngineError(f"no cluster to work with {where}: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def _settings(*, shown: bool) -> Iterator[None]:
    """How Ray Data works here."""
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # of bytes: each window by itself, so that any actor may take the next
    context.raise_original_map_exception = True
    context.enable_progress_bars = shown
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # its file holds it all
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Ray's own settings
        yield


def _told(error: Exception) -> R2DError:
    """What was raised in a worker, or that Ray gave up."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, R2DError):
        return cause
    return EngineError(f"Ray gave up ({type(error).__name__}): a worker died too often, or the cluster was lost")
