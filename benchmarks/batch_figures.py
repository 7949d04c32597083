"""What a batch run costs beside the engine alone: throughput, memory at any size, and the price of going on."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.batch_notes import cycled, distinct, write_notes
from benchmarks.process import run_tool
from r2d_edge.batch.job import LABELS_AT_ONCE, NOTES_AT_ONCE, Job
from r2d_edge.batch.run import Progress, run_batch
from r2d_edge.decide import Decider
from r2d_edge.decision import Decision

LEAST_SHARE = 0.90
MOST_GROWTH = 0.10
MOST_RESUME_SECONDS = 2.0
BATCH_SIZES = (64, 1024)
PROBE_NOTES = 384
MEMORY_TEXTS = 4  # decided in every window, so that both sizes do the same again and again
ROUNDS = 2
RESUMES = 3
SEED = 13

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Lap:
    """Seconds on the clock and of the processor."""

    wall: float
    processor: float


def throughput(decider: Decider, folder: Path, notes: int, *, rationale: bool, tell: Tell) -> dict[str, Any]:
    """A batch run over a file beside `Decider.decide_many` over the same notes in the best order, in turn.

    Returns:
        Notes a second of both, and the shares of the engine's peak by the clock and by the processor's time: the
        first is what a user sees, the second holds while something else runs.
    """
    source, output = folder / "notes.jsonl", folder / "out.jsonl"
    write_notes(source, distinct(notes))
    texts = sorted((text for _, text in distinct(notes)), key=len)
    size = _best_size(decider, texts, rationale=rationale)
    # One worker, and as many notes at once as the command takes by itself.
    at_once = NOTES_AT_ONCE if rationale else LABELS_AT_ONCE
    job = Job((str(source),), output, rationale=rationale, batch_size=at_once, force=True)
    batch: list[Lap] = []
    engine: list[Lap] = []
    for number in range(ROUNDS):
        _remove(output)
        batch.append(_lap(lambda: run_batch(job, lambda: decider)))
        engine.append(_lap(lambda: _exhaust(decider.decide_many(texts, rationale=rationale, batch_size=size))))
        tell(f"round {number + 1}: batch {batch[-1].wall:.1f} s, engine alone {engine[-1].wall:.1f} s")
    _remove(output)
    wall = min(lap.wall for lap in batch), min(lap.wall for lap in engine)
    processor = min(lap.processor for lap in batch), min(lap.processor for lap in engine)
    return {
        "notes": notes,
        "rationale": rationale,
        "batch_size": {"batch": at_once, "engine": size},
        "notes_per_second": {"batch": notes / wall[0], "engine": notes / wall[1]},
        "share_of_peak": wall[1] / wall[0],
        "share_by_processor_time": processor[1] / processor[0],
    }


def peak_bytes(folder: Path, rows: int, options: Sequence[str]) -> dict[str, Any]:
    """The most memory that `r2d-edge batch` held over so many rows, the engine's among it.

    Raises:
        SideError: it failed.
    """
    source, output, target = folder / "rows.jsonl", folder / "rows.out.jsonl", folder / "peak"
    write_notes(source, cycled(rows, MEMORY_TEXTS))
    command = ["batch", str(source), "-o", str(output), "--no-rationale", "--threads", "1", *options]
    start = time.perf_counter()
    run_tool([sys.executable, "-m", "benchmarks.peak", str(target), "r2d_edge", *command], threads=1)
    seconds = time.perf_counter() - start
    source.unlink()
    _remove(output)
    return {"rows": rows, "peak_bytes": int(target.read_text(encoding="ascii")), "seconds": seconds}


def resume(decider: Decider, folder: Path, rows: int) -> dict[str, Any]:
    """Seconds until the first note is decided: of a new run, and of one that goes on after so many finished rows.

    The journal is made by a decider that gives every note the same kind of decision without thinking, with a
    rationale of common length: its records are as long as real ones.
    """
    source, output = folder / "rows.jsonl", folder / "rows.out.jsonl"
    write_notes(source, distinct(rows))
    job = Job((str(source),), output, rationale=decider.task.explains)
    unthinking = cast(Decider, _Unthinking(decider))

    def stop(progress: Progress) -> None:
        if progress.notes >= rows - 1024:
            raise _StoppedError

    with contextlib.suppress(_StoppedError):
        run_batch(job, lambda: unthinking, on_progress=stop)
    journal = job.beside(".journal").stat().st_size
    fresh = replace(job, output=folder / "fresh.jsonl")
    waiting = cast(Decider, _Waiting(decider))
    begin, go_on = [], []
    for _ in range(RESUMES):
        begin.append(_until_first_note(fresh, waiting))
        _remove(fresh.output)
        go_on.append(_until_first_note(job, waiting))
    source.unlink()
    _remove(output)
    adds = min(lap.wall for lap in go_on) - min(lap.wall for lap in begin)
    adds_processor = min(lap.processor for lap in go_on) - min(lap.processor for lap in begin)
    return {
        "rows": rows,
        "journal_bytes": journal,
        "seconds_to_first_note": {"new": min(lap.wall for lap in begin), "resumed": min(lap.wall for lap in go_on)},
        "adds_seconds_per_million": 1e6 * adds / rows,
        "adds_processor_seconds_per_million": 1e6 * adds_processor / rows,
    }


def figures(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures to reach with what was measured."""
    found = []
    for measured in result["throughput"]:
        what = "labels and rationales" if measured["rationale"] else "labels"
        share = measured["share_of_peak"]
        name = f"throughput of a file of {measured['notes']:,} notes, of the engine's own, {what}"
        found.append(_figure(name, f"≥ {LEAST_SHARE:g}", share, share >= LEAST_SHARE))
    small, large = result["memory"]
    growth = large["peak_bytes"] / small["peak_bytes"] - 1
    name = f"peak memory, {large['rows']:,} rows beside {small['rows']:,}"
    found.append(_figure(name, f"≤ +{MOST_GROWTH:.0%}", growth, growth <= MOST_GROWTH))
    adds = result["resume"]["adds_seconds_per_million"]
    name = f"seconds that a resume adds a million finished rows (measured with {result['resume']['rows']:,})"
    found.append(_figure(name, f"< {MOST_RESUME_SECONDS:g}", adds, adds < MOST_RESUME_SECONDS))
    return found


def _figure(name: str, target: str, value: float, reached: bool) -> dict[str, Any]:
    return {"name": name, "target": target, "value": value, "reached": reached, "reason": None}


def _best_size(decider: Decider, texts: Sequence[str], *, rationale: bool) -> int:
    """The batch size with which the engine alone is fastest, on a part of the notes."""
    if len(texts) <= PROBE_NOTES // 2:
        return BATCH_SIZES[0]
    # With rationales a fourth of the notes takes as long.
    count = min(len(texts), PROBE_NOTES // 4 if rationale else PROBE_NOTES)
    part = sorted(random.Random(SEED).sample(list(texts), count), key=len)
    _exhaust(decider.decide_many(part[:16], rationale=rationale))

    def seconds(size: int) -> float:
        return _lap(lambda: _exhaust(decider.decide_many(part, rationale=rationale, batch_size=size))).processor

    return min(BATCH_SIZES, key=seconds)


class _StoppedError(Exception):
    """A run is far enough."""


class _Stand:
    """What a batch run asks of a decider besides decisions."""

    def __init__(self, decider: Decider) -> None:
        self.bundle, self.task, self.engine = decider.bundle, decider.task, decider.engine


class _Unthinking(_Stand):
    """Gives decisions at once."""

    def decide_many(self, texts: Sequence[str], **_: Any) -> Iterator[Decision]:
        labels = self.task.labels.labels
        for text in texts:
            first = (len(text) % 89 + 1) / 90
            rest = {label: (1 - first) / (len(labels) - 1) for label in labels[1:]}
            probabilities = {labels[0]: first, **rest}
            yield Decision("0", labels[0], probabilities, self.bundle.label, rationale=text)


class _Waiting(_Stand):
    """Ends the run when the first note is to be decided."""

    def decide_many(self, texts: Sequence[str], **_: Any) -> Iterable[Decision]:
        raise _StoppedError


def _until_first_note(job: Job, decider: Decider) -> Lap:
    def run() -> None:
        try:
            run_batch(job, lambda: decider)
        except _StoppedError:
            return
        raise RuntimeError("the run came to its end without a note to decide")

    return _lap(run)


def _lap(work: Callable[[], object]) -> Lap:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Lap(time.perf_counter() - wall, time.process_time() - processor)


def _exhaust(decided: Iterable[Decision]) -> None:
    for _ in decided:
        pass


def _remove(output: Path) -> None:
    """An output with all that lies beside it."""
    for path in output.parent.glob(f"{output.name}*"):
        path.unlink()


def rounded(value: Any) -> Any:
    """Floats to six significant digits: more is noise."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.6g}"))
