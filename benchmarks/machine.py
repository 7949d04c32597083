"""The machine that figures come from, and whether anything else is using it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import Any

from r2d_edge.machine import describe_machine

MAX_BUSY_CORES = 0.25
WATCH_SECONDS = 2.0
_PACKAGES = ("ctranslate2", "llama-cpp-python", "numpy", "r2d-edge", "tokenizers", "torch", "transformers")


class MachineBusyError(RuntimeError):
    """Something else is using the processor: what would be timed is that as well."""


def describe() -> dict[str, Any]:
    """CPU model, instruction sets, cores, system, Python, and the libraries' versions (null: not installed)."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        versions[package] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {**describe_machine(), "versions": versions}


def busy_cores(seconds: float = WATCH_SECONDS) -> float:
    """How many cores are in use while this process only waits; the load average where nothing better is told."""
    before = _core_seconds()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else _stolen_cores(seconds)
    start = time.perf_counter()
    time.sleep(seconds)
    after = _core_seconds()
    assert after is not None
    return max(0.0, (after - before) / (time.perf_counter() - start))


def refuse_if_busy(busy_ok: bool = False) -> float:
    """The cores in use by others.

    Args:
        busy_ok: measure all the same.

    Raises:
        MachineBusyError: more than `MAX_BUSY_CORES`.
    """
    busy = busy_cores()
    if busy > MAX_BUSY_CORES and not busy_ok:
        raise MachineBusyError(
            f"{busy:.2f} of {os.cpu_count() or 1} cores are in use by something else (allowed: {MAX_BUSY_CORES:g}): "
            "what is timed now would be that as well. Stop it, or measure all the same with --busy-ok"
        )
    return busy


def _core_seconds() -> float | None:
    """Seconds that all cores together have worked since the start; None where the system does not tell."""
    if sys.platform == "win32":
        import ctypes

        idle, kernel, user = (ctypes.c_uint64() for _ in range(3))
        ask = ctypes.windll.kernel32.GetSystemTimes
        if not ask(ctypes.byref(idle), ctypes.byref(kernel), ctypes.byref(user)):
            return None
        return (kernel.value + user.value - idle.value) / 1e7  # the kernel's time holds the idle time
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    user_, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, first[1:9])
    return (user_ + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _stolen_cores(seconds: float) -> float:
    """How much of one core others take from a loop that wants it whole."""
    start, used = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < seconds:
        pass
    return max(0.0, 1 - (time.process_time() - used) / passed)
