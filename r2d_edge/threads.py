"""How many threads an engine gets: what was measured on this machine, or a rule until then.

A small model is bound by the memory traffic of one token's weights: a second thread costs more in
waiting than it brings. So the rule is one thread for small models, and `r2d-edge info --tune`
measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle

SMALL_MODEL_BYTES = 100_000_000
# llama.cpp's threads meet after every operation of every token. On two cores with other work, a second thread made
# a token of SmolLM2 135M in Q8_0 slower (14 ms for 9.5 ms) and the reading of a prompt no faster.
SMALL_GGUF_BYTES = 500_000_000
MAX_RULE_THREADS = 4


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads and why it was chosen."""

    count: int
    why: str


def choose_threads(bundle: Bundle, asked: int = 0) -> ThreadChoice:
    """The threads for a bundle: as asked, as measured here before, or by the rule."""
    if asked > 0:
        return ThreadChoice(asked, "as asked")
    measured = recall(machine_key(bundle))
    if isinstance(measured, int) and 0 < measured <= (os.cpu_count() or 1):
        return ThreadChoice(measured, "fastest of those measured on this machine")
    size = sum(entry["size"] for entry in bundle.manifest.files.values())
    small = SMALL_GGUF_BYTES if bundle.manifest.engine == "llama.cpp" else SMALL_MODEL_BYTES
    if size < small:
        return ThreadChoice(1, f"rule for models below {small // 1_000_000} MB; `r2d-edge info --tune` measures")
    count = min(MAX_RULE_THREADS, os.cpu_count() or 1)
    return ThreadChoice(count, "rule for larger models; `r2d-edge info --tune` measures")


def tune(bundle: Bundle, work: Callable[[int], Callable[[], object]], repeats: int = 3) -> dict[int, float]:
    """Measures a piece of work with 1, 2, 4 … threads and remembers the fastest for this bundle.

    Args:
        work: gives, for a number of threads, the call to time (its set-up is not timed).

    Returns:
        Seconds per call (the best of `repeats`) by number of threads.
    """
    cores = os.cpu_count() or 1
    counts = sorted({1, cores, *(2**power for power in range(1, 6) if 2**power < cores)})
    seconds: dict[int, float] = {}
    for count in counts:
        call = work(count)
        call()
        laps = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            laps.append(time.perf_counter() - start)
        seconds[count] = min(laps)
    remember(machine_key(bundle), min(seconds, key=lambda count: seconds[count]))
    return seconds


def recall(key: str) -> Any:
    """What was remembered under a key; None if nothing was."""
    return _read_cache().get(key)


def remember(key: str, value: Any) -> None:
    """Keeps a measurement for later runs; where the home cannot be written to, it is forgotten.

    Args:
        value: JSON-ready data.
    """
    _write_cache({**_read_cache(), key: value})


def cache_folder() -> Path:
    """Where this user's measurements are kept."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "r2d-edge"


def machine_key(bundle: Bundle) -> str:
    """What a measurement holds for: this machine and this bundle."""
    return f"{platform.node()}/{os.cpu_count()}/{bundle.digest}"


def _read_cache() -> dict[str, Any]:
    try:
        data = json.loads((cache_folder() / "threads.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return data if isinstance(data, dict) else {}


def _write_cache(cache: dict[str, Any]) -> None:
    # No home, or one that cannot be written to: measured, but not remembered.
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder()
        temporary = folder / f"threads.{os.getpid()}.tmp"
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(cache, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / "threads.json")
