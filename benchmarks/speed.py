"""The measurement of one model: every side in a process of its own, in turn, over the same notes.

The sides go round by round, a few notes each, so that a drift of the machine meets all of them alike. A side
that fails is left out from there on, with its reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import laps
from benchmarks.making import Tell
from benchmarks.models import FULL_SIZE, PRODUCT, Model, SideSpec
from benchmarks.notes import FIXED_LABEL, FIXED_NOTE, mixed_rows
from benchmarks.process import SideError, SideProcess
from benchmarks.sides import Wish

Lap = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        notes: for latency, a side.
        rounds: in which they are taken in turn.
        many: notes for throughput.
        seconds: a side that has used so many on one kind of measurement is stopped after its round.
        parts: of `latency`, `throughput`; opening and memory are measured in any case.
    """

    notes: int = 30
    rounds: int = 3
    many: int = 64
    seconds: float = 60.0
    parts: frozenset[str] = frozenset({"latency", "throughput"})


@dataclass
class Entry:
    """A side while it is measured: its process, and its part of the result."""

    spec: SideSpec
    process: SideProcess | None = None
    result: dict[str, Any] = field(default_factory=dict)
    laps: dict[str, list[Lap]] = field(default_factory=dict)

    def ask(self, do: str, **request: Any) -> dict[str, Any] | None:
        """The side's answer; None once it has failed, which then stands in the result."""
        if self.process is None:
            return None
        try:
            return self.process.ask(do, **request)
        except SideError as error:
            self.fail(str(error))
            return None

    def fail(self, reason: str) -> None:
        """Ends the side with a reason."""
        self.close()
        self.result |= {"status": "failed", "reason": reason}

    def close(self) -> None:
        """Ends the side's process, if there is one."""
        if self.process is not None:
            self.process.close()
            self.process = None


def measure(model: Model, effort: Effort, tell: Tell) -> dict[str, Any]:
    """All figures of a model, JSON-ready: each side's under `sides`, by name."""
    entries = [Entry(spec) for spec in model.sides]
    try:
        for entry in entries:
            tell(f"{model.name}: {entry.spec.name}")
            _open(entry, model, threads=1)
        _measure_latency(entries, model, effort, tell)
        if "throughput" in effort.parts:
            tell(f"{model.name}: {effort.many} notes at once")
            _measure_throughput(entries, model, effort)
    finally:
        for entry in entries:
            entry.close()
    if "latency" in effort.parts:
        _measure_threads(entries, model, effort, tell)
    return {
        "weights": model.weights,
        "equal": asdict(model.equal),
        "natural": asdict(model.natural) if model.natural else None,
        "parity": model.parity,
        "sides": {entry.spec.name: entry.result for entry in entries},
    }


def _open(entry: Entry, model: Model, threads: int) -> None:
    """Starts a side's process; from its start to the fixed note's label, and the memory after its rationale."""
    spec = entry.spec
    entry.result = {"status": "run", "reason": None, "size_bytes": sum(path.stat().st_size for path in spec.files)}
    if spec.reason is not None:
        entry.result = {"status": "not run", "reason": spec.reason}
        return
    start = time.perf_counter()
    try:
        entry.process = SideProcess(threads, spec.python)
    except SideError as error:
        entry.fail(str(error))
        return
    opened = entry.ask("open", kind=spec.kind, settings={**spec.settings, "threads": threads})
    opening = time.perf_counter() - start
    fixed = _rows(spec, [{"text": FIXED_NOTE, "label": FIXED_LABEL}])
    answer = entry.ask("notes", rows=fixed, wish=asdict(model.equal))
    if opened is None or answer is None:
        return
    [lap] = answer["laps"]
    entry.result["about"] = opened["about"]
    entry.result["opening"] = {
        "seconds": opening,
        "first_label_seconds": opening + lap["label"],
        "peak_bytes": answer["peak_bytes"],
    }


def _measure_latency(entries: Sequence[Entry], model: Model, effort: Effort, tell: Tell) -> None:
    """Note by note: equal work on all sides, then each model's own way, then the fixed note."""
    if "latency" not in effort.parts:
        return
    engines = [entry for entry in entries if entry.spec.kind != PRODUCT]
    products = [entry for entry in entries if entry.spec.kind == PRODUCT]
    notes = mixed_rows(effort.notes)
    tell(f"{model.name}: note by note")
    # Of random weights, what the product does by itself is the equal work, too.
    _take_turns(engines if model.natural else entries, "equal", notes, model.equal, effort)
    if model.natural is not None:
        _take_turns(entries, "natural", notes, model.natural, effort)
    fixed = [{"text": FIXED_NOTE, "label": FIXED_LABEL}] * effort.notes
    _take_turns(products, "fixed note", fixed, model.natural or model.equal, effort)
    for entry in entries:
        if entry.laps:
            entry.result["latency"] = {kind: laps.latency(found) for kind, found in entry.laps.items() if found}
    full = next((entry for entry in entries if entry.spec.name == FULL_SIZE), None)
    for entry in entries:
        if full is not None and full.laps and entry.laps:
            _compare(entry, full)


def _compare(entry: Entry, full: Entry) -> None:
    """How many times faster than the full-size model, and how often the very same tokens."""
    kinds = [kind for kind in entry.laps if entry.laps[kind] and full.laps.get(kind)]
    entry.result["times_full_size"] = {kind: laps.ratio(full.laps[kind], entry.laps[kind]) for kind in kinds}
    if "equal" in kinds and entry.spec.kind != PRODUCT and entry.spec.same_network:
        pairs = list(zip(full.laps["equal"], entry.laps["equal"], strict=False))
        entry.result["same_tokens"] = sum(one["ids"] == other["ids"] for one, other in pairs) / len(pairs)


def _take_turns(
    entries: Iterable[Entry], kind: str, notes: Sequence[dict[str, str]], wish: Wish, effort: Effort
) -> None:
    """Adds laps of the notes to every entry, a part of the notes a round."""
    live = [entry for entry in entries if entry.process is not None]
    used = dict.fromkeys(range(len(live)), 0.0)
    for entry in live:
        entry.laps[kind] = []
    for part in _parts(notes, effort.rounds):
        for number, entry in enumerate(live):
            if used[number] > effort.seconds:
                continue
            answer = entry.ask("notes", rows=_rows(entry.spec, part), wish=asdict(wish))
            if answer is not None:
                entry.laps[kind] += answer["laps"]
                used[number] += sum(lap["label"] + lap["rationale"] for lap in answer["laps"])


def _measure_throughput(entries: Sequence[Entry], model: Model, effort: Effort) -> None:
    """Many notes at once: each batch size once, then each side's best one again; the better time counts."""
    rows = mixed_rows(effort.many)
    wish = model.natural or model.equal
    for again in (False, True):
        for entry in entries:
            spent = 0.0
            found = entry.result.get("throughput", {}).get("batch_sizes", {})
            tried = [size for size in entry.spec.batch_sizes if size <= effort.many]
            sizes = [int(best)] if again and (best := _best(found)) is not None else tried
            for size in sizes:
                if spent > effort.seconds:
                    break
                answer = entry.ask("many", rows=_rows(entry.spec, rows), wish=asdict(wish), batch_size=size)
                if answer is None:
                    break
                spent += answer["seconds"]
                if str(size) not in found or answer["seconds"] < found[str(size)]["seconds"]:
                    found[str(size)] = _of_many(answer, len(rows))
            if found and (best := _best(found)) is not None:
                entry.result["throughput"] = {"batch_sizes": found, "best": {"batch_size": int(best), **found[best]}}


def _of_many(answer: dict[str, Any], notes: int) -> dict[str, Any]:
    return {
        "notes": notes,
        "seconds": answer["seconds"],
        "notes_per_second": notes / answer["seconds"],
        "tokens": answer["tokens"] / notes,
        "tokens_per_second": answer["tokens"] / answer["seconds"],
        "cpu_seconds_per_1000_notes": 1000 * answer["cpu"] / notes,
        "peak_bytes": answer["peak_bytes"],
    }


def _best(found: dict[str, dict[str, Any]]) -> str | None:
    return min(found, key=lambda size: found[size]["seconds"]) if found else None


def _measure_threads(entries: Sequence[Entry], model: Model, effort: Effort, tell: Tell) -> None:
    """The chosen sides with more threads, a third of the notes; the fastest number of threads is kept."""
    cores = os.cpu_count() or 1
    counts = sorted({2**power for power in range(1, 6) if 2**power < cores} | {cores}) if cores > 1 else []
    for count in counts:
        tell(f"{model.name}: {count} threads")
        others = [Entry(entry.spec) for entry in entries if entry.spec.best_threads and "latency" in entry.result]
        try:
            for other in others:
                _open(other, model, threads=count)
            _take_turns(others, "equal", mixed_rows(max(1, effort.notes // 3)), model.equal, effort)
        finally:
            for other in others:
                other.close()
        by_name = {entry.spec.name: entry for entry in entries}
        for other in others:
            if found := other.laps.get("equal"):
                threads = by_name[other.spec.name].result.setdefault("threads", {})
                threads[str(count)] = laps.latency(found)


def _rows(spec: SideSpec, notes: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Notes as a side reads them: the gold label is given to the rationale, so that all sides explain the same."""
    assert spec.encoder is not None
    return [
        {
            "text": note["text"],
            "predict": spec.encoder.predict(note["text"]).ids,
            "explain": spec.encoder.explain(note["text"], note["label"]).ids,
        }
        for note in notes
    ]


def _parts(notes: Sequence[dict[str, str]], count: int) -> list[Sequence[dict[str, str]]]:
    """The notes in so many parts, none empty."""
    size = -(-len(notes) // count)
    return [notes[start : start + size] for start in range(0, len(notes), size)]
