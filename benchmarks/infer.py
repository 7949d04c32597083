"""What a person's own `r2d-edge infer` costs: its memory and the wait from process start to the label."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import coldstart
from benchmarks.notes import FIXED_NOTE
from benchmarks.process import run_tool


def peak_bytes(model: str | None) -> int:
    """The most memory that one `r2d-edge infer` of the fixed note held, label and rationale.

    Args:
        model: a bundle; None: the embedded one.

    Raises:
        SideError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "peak"
        command = [sys.executable, "-m", "benchmarks.peak", str(target), "r2d_edge", "infer", FIXED_NOTE]
        run_tool([*command, *_chosen(model)], threads=1)
        return int(target.read_text(encoding="ascii"))


def first_label(model: str | None, runs: int) -> dict[str, dict[str, float]]:
    """Seconds from process start to the label's line in a pipe, and to the end, by `coldstart.measure`."""
    arguments = [*_chosen(model), "--no-rationale"]
    return coldstart.measure(lambda: coldstart.first_line(arguments), runs)


def measure(model: str | None, runs: int, parts: frozenset[str]) -> dict[str, Any]:
    """Both, as far as they are among `parts` (`memory`, `coldstart`)."""
    result: dict[str, Any] = {}
    if "memory" in parts:
        result["peak_bytes"] = peak_bytes(model)
    if "coldstart" in parts:
        result["first_label_seconds"] = {"runs": runs, **first_label(model, runs)["first"]}
    return result


def _chosen(model: str | None) -> list[str]:
    return ["--model", model] if model is not None else []
