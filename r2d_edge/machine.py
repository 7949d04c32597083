"""The machine that figures come from: its processor, instruction sets and system."""

from __future__ import annotations

import importlib
import os
import platform
import re
from pathlib import Path
from typing import Any

# What the engines' integer and half-precision kernels are chosen by.
_TELLING = re.compile(r"sse4_[12]|avx\w*|amx_\w+|fma|f16c|neon|asimd\w*|sve\w*|i8mm|bf16", re.IGNORECASE)
_CPUINFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, Any]:
    """CPU model, instruction sets, cores, system and Python."""
    return {
        "cpu": _cpu_name(),
        "features": _features(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for name in ("model name", "Model", "Hardware"):
        if found := _cpuinfo(name):
            return found
    return platform.processor() or platform.machine() or "unknown"


def _features() -> list[str]:
    listed = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    if not listed:
        try:
            known = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
        except (ImportError, AttributeError):  # not part of NumPy's promise
            return []
        listed = [name for name, there in known.items() if there]
    return sorted({name.lower() for name in listed if _TELLING.fullmatch(name)})


def _cpuinfo(field: str) -> str:
    """A field of Linux's list of processors; empty elsewhere."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(field)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
