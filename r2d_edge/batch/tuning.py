"""How many workers and threads a batch run gets: what was measured here for this bundle, or a rule.

A measurement takes some seconds, is made the first time that a bundle meets work that is worth it, and is remembered
beside that of `r2d-edge info --tune`. A run that goes on takes what its journal was begun with: scores may depend on
it in their last digits.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2d_edge.batch.job import LABELS_AT_ONCE, NOTES_AT_ONCE
from r2d_edge.batch.journal import read_header
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import InputError
from r2d_edge.threads import machine_key, recall, remember

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle
    from r2d_edge.decide import Decider

MIN_BYTES = 1 << 20  # of input: below, a measurement takes longer than it saves
PROBE_NOTES = 8
LAP_SECONDS = 1.5  # of one measurement
MAX_SECONDS = 30.0  # for all choices
WORTH = 0.95  # of the best rate: what takes fewer cores for as much is taken
_TOO_SLOW: list[int] = []
_DISTRIBUTIONS = {"ctranslate2": "ctranslate2", "llama.cpp": "llama-cpp-python"}

Choice = tuple[int, int]  # workers and threads of each


@dataclass(frozen=True)
class Plan:
    """Workers, threads of each (0: the engine's rule), and why."""

    workers: int = 1
    threads: int = 0
    why: str = "rule"

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{workers} of {threads}{' each' if self.workers > 1 else ''}"


def plan_of_journal(path: Path, digest: str) -> Plan | None:
    """What the run was begun with that a journal belongs to; None where there is none.

    Args:
        path: of the journal.
        digest: the bundle's; another one's journal says nothing.
    """
    try:
        header = read_header(path) or {}
        bundle, choice = header["bundle"], [header["options"]["workers"], header["engine"]["threads"]]
    except (InputError, KeyError, TypeError):
        return None
    if bundle != digest or not _is_choice(choice):
        return None
    workers, threads = choice
    return Plan(workers, threads, "as this job was begun")


def remembered_plan(bundle: Bundle, options: EngineOptions, *, rationale: bool) -> Plan | None:
    """What was measured here before; None if nothing was."""
    found = recall(_key(bundle, options, rationale=rationale))
    if not isinstance(found, list) or not _is_choice(found):
        return None
    workers, threads = found
    return Plan(workers, threads, "as measured here before")


def choose_plan(
    bundle: Bundle,
    options: EngineOptions,
    open_decider: Callable[[EngineOptions], Decider],
    *,
    rationale: bool,
    size: int,
    tell: Callable[[str], None],
) -> Plan | None:
    """What was measured here before, or is now; None where the rule must do.

    Args:
        options: device and compute type.
        open_decider: opens the bundle with other workers and threads.
        rationale: whether rationales are to be written.
        size: bytes of input; a measurement is made for `MIN_BYTES` and more.
        tell: called before a measurement is made.
    """
    if found := remembered_plan(bundle, options, rationale=rationale):
        return found
    too_slow = recall(_key(bundle, options, rationale=rationale)) == _TOO_SLOW
    if too_slow or size < MIN_BYTES or not is_tunable(bundle, options):
        return None
    tell("measuring how many workers and threads are fastest here: this takes some seconds and is done once")
    return tuned_plan(bundle, options, open_decider, rationale=rationale)[0]


def tuned_plan(
    bundle: Bundle,
    options: EngineOptions,
    open_decider: Callable[[EngineOptions], Decider],
    *,
    rationale: bool,
) -> tuple[Plan | None, dict[Choice, float]]:
    """Measures every choice on the bundle's golden notes and remembers the best.

    Where the model is so slow that not all can be measured in `MAX_SECONDS`, that alone is remembered: the first
    choices take the fewest cores, and the best of them would not be the best.

    Args:
        options: device and compute type.
        open_decider: opens the bundle with other workers and threads.
        rationale: whether rationales are to be written.

    Returns:
        The plan, and each choice's notes a second; None and nothing where it takes too long.
    """
    rates = _rates(bundle, options, open_decider, rationale=rationale)
    if not rates:
        remember(_key(bundle, options, rationale=rationale), _TOO_SLOW)
        return None, rates
    best = max(rates.values())
    chosen = min(
        (choice for choice, rate in rates.items() if rate >= WORTH * best),
        key=lambda choice: (choice[0] * choice[1], -rates[choice]),
    )
    remember(_key(bundle, options, rationale=rationale), list(chosen))
    return Plan(*chosen, f"fastest of {len(rates)} ways measured now, and remembered"), rates


def is_tunable(bundle: Bundle, options: EngineOptions) -> bool:
    """Whether there is a choice: on a GPU, and with golden notes missing, there is none."""
    if (os.cpu_count() or 1) < 2 or bundle.manifest.engine not in _DISTRIBUTIONS or not bundle.golden():
        return False
    if options.device != "auto" or bundle.manifest.engine != "ctranslate2":
        return options.device == "cpu"
    import ctranslate2

    return not ctranslate2.get_cuda_device_count()


def input_bytes(inputs: Iterable[str]) -> int:
    """About how much there is to decide; stdin, and what is not there, counts as nothing."""
    paths = [Path(name) for name in inputs if name != "-"]
    files = itertools.chain.from_iterable(path.rglob("*.txt") if path.is_dir() else [path] for path in paths)
    return sum(path.stat().st_size for path in files if path.is_file())


def choices(cores: int, *, replicas: bool) -> list[Choice]:
    """The workers and threads worth a try: one of each, and what fills the cores, or half of them, in a few ways.

    Args:
        cores: as the system counts them; two of them may share one core's arithmetic.
        replicas: whether the engine can work on several batches at once.
    """
    found = {(1, 1)}
    for total in {cores, cores // 2} - {0}:
        powers = (2**power for power in range(total.bit_length()))
        found |= {(total // threads if replicas else 1, threads) for threads in powers}
    return sorted(found, key=lambda choice: (choice[0] * choice[1], choice[1]))


def _rates(
    bundle: Bundle, options: EngineOptions, open_decider: Callable[[EngineOptions], Decider], *, rationale: bool
) -> dict[Choice, float]:
    """Each choice's notes a second; nothing where measuring all would take too long."""
    start = time.perf_counter()
    golden = [row["text"] for row in bundle.golden()]
    most = NOTES_AT_ONCE if rationale else LABELS_AT_ONCE
    texts: Sequence[str] = ()
    rates: dict[Choice, float] = {}
    for workers, threads in choices(os.cpu_count() or 1, replicas=bundle.manifest.engine == "ctranslate2"):
        decider = open_decider(replace(options, workers=workers, threads=threads))
        probe = _seconds(decider, _spread(golden, PROBE_NOTES), rationale=rationale, workers=workers)
        if not texts:  # one lap of the first choice sets how many notes all are given
            texts = _spread(golden, min(most, max(PROBE_NOTES, int(LAP_SECONDS * PROBE_NOTES / probe))))
        if time.perf_counter() - start + 2 * probe * len(texts) / PROBE_NOTES > MAX_SECONDS:
            return {}
        lap = min(_seconds(decider, texts, rationale=rationale, workers=workers) for _ in range(2))
        rates[workers, threads] = len(texts) / lap
    return rates


def _seconds(decider: Decider, texts: Sequence[str], *, rationale: bool, workers: int) -> float:
    start = time.perf_counter()
    size = NOTES_AT_ONCE if rationale else LABELS_AT_ONCE
    for _ in decider.decide_many(texts, rationale=rationale, batch_size=size * workers):
        pass
    return time.perf_counter() - start


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """So many of the texts, of all lengths, the shortest first; some come again where there are fewer."""
    ordered = sorted(itertools.islice(itertools.cycle(texts), max(count, len(texts))), key=len)
    return [ordered[place * len(ordered) // count] for place in range(count)]


def _key(bundle: Bundle, options: EngineOptions, *, rationale: bool) -> str:
    engine = bundle.manifest.engine
    try:
        version = importlib.metadata.version(_DISTRIBUTIONS.get(engine, engine))
    except importlib.metadata.PackageNotFoundError:
        version = "?"
    work = "rationales" if rationale else "labels"
    return f"{machine_key(bundle)}/{engine} {version}/{options.device}/{options.compute_type}/batch of {work}"


def _is_choice(found: Sequence[Any]) -> bool:
    """Whether these are numbers of workers and threads that this machine has the cores for."""
    cores = os.cpu_count() or 1
    return len(found) == 2 and all(type(count) is int and 0 < count <= cores for count in found)
