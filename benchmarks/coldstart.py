"""How long a person waits: from process start to the first label, and what the imports cost.

Run as `python -m benchmarks.coldstart [--model BUNDLE] [--runs 10] [-o FILE]`. A table for people, and
one line of JSON last. The first run of each kind is left out: it reads the files into the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

NOTE = (
    "62F, chest pressure for 40 minutes, spreading to the left arm, clammy, vomited once. "
    "BP 104/62 HR 98 RR 20 SpO2 95% RA. Diabetic, on insulin."
)
PROGRAM = [sys.executable, "-m", "r2d_edge", "infer", NOTE]
IMPORTS = (
    "pass",
    "import numpy",
    "import r2d_edge",
    "import r2d_edge.cli",
    "import r2d_edge.decide",
    "import ctranslate2",
)
TARGET_SECONDS = 0.6
LIMIT_SECONDS = 60


def first_line(arguments: Sequence[str]) -> tuple[float, float]:
    """Runs `infer` into a pipe; seconds to the first whole line, and to the end of the process."""
    start = time.perf_counter()
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        label = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or not json.loads(line)["label"]:
        raise RuntimeError(f"infer gave no label (exit code {process.returncode})")
    return label, time.perf_counter() - start


def first_label(arguments: Sequence[str], labels: Sequence[str]) -> tuple[float, float]:
    """Runs `infer` on a terminal of its own; seconds until a label stands there, and to the end."""
    import pty

    leader, follower = pty.openpty()
    shown = b""
    label = None
    start = time.perf_counter()
    process = subprocess.Popen([*PROGRAM, *arguments], stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    try:
        while time.perf_counter() - start < LIMIT_SECONDS:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # how Linux says that the other side has closed
                break
            if not piece:
                break
            shown += piece
            if label is None and b"\n" in shown and any(name.encode() in shown for name in labels):
                label = time.perf_counter() - start
    finally:
        os.close(leader)
    process.wait(LIMIT_SECONDS)
    if process.returncode or label is None:
        raise RuntimeError(f"infer showed no label (exit code {process.returncode})")
    return label, time.perf_counter() - start


def imported(code: str) -> tuple[float, float]:
    """Seconds of a Python process that only runs `code`, given twice for want of a first label."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    taken = time.perf_counter() - start
    return taken, taken


def measure(trial: Callable[[], tuple[float, float]], runs: int) -> dict[str, dict[str, float]]:
    """p50, p95, least and greatest seconds to the first label and to the end, over `runs` runs."""
    import numpy as np

    trial()
    laps = np.array([trial() for _ in range(runs)])
    return {
        name: {
            "p50": float(np.percentile(column, 50)),
            "p95": float(np.percentile(column, 95)),
            "min": float(column.min()),
            "max": float(column.max()),
        }
        for name, column in zip(("first", "end"), laps.T, strict=True)
    }


def run(model: str | None, runs: int) -> dict[str, Any]:
    """All measurements with what they were made on."""
    import ctranslate2

    from r2d_edge import __version__
    from r2d_edge.bundle import open_bundle
    from r2d_edge.decide import find_model

    bundle = open_bundle(find_model(model))
    labels = bundle.manifest.task.labels.labels
    chosen = ["--model", model] if model else []
    trials: dict[str, Callable[[], tuple[float, float]]] = {
        "infer --no-rationale, piped": lambda: first_line([*chosen, "--no-rationale"]),
        "infer, piped": lambda: first_line(chosen),
    }
    if sys.platform != "win32":  # Windows lends no terminal; there the piped label must do
        trials["infer, terminal"] = lambda: first_label(chosen, labels)
    label_first = "infer, terminal" if "infer, terminal" in trials else "infer --no-rationale, piped"
    seconds = {name: measure(trial, runs) for name, trial in trials.items()}
    return {
        "benchmark": "coldstart",
        "r2d_edge": __version__,
        "model": bundle.label,
        "bundle_bytes": sum(entry["size"] for entry in bundle.manifest.files.values()),
        "runs": runs,
        "seconds": seconds,
        "import_seconds": {code: measure(partial(imported, code), runs)["end"] for code in IMPORTS},
        "first_label": {"how": label_first, "target": TARGET_SECONDS, **seconds[label_first]["first"]},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # what else ran meanwhile
            "platform": platform.platform(),
            "python": platform.python_version(),
            "ctranslate2": ctranslate2.__version__,
        },
    }


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"cold start, {result['model']}", box=None, title_justify="left", header_style="bold")
    table.add_column("seconds")
    for column in ("first label p50", "p95", "end p50", "p95"):
        table.add_column(column, justify="right")
    for name, times in result["seconds"].items():
        cells = [times[part][quantile] for part in ("first", "end") for quantile in ("p50", "p95")]
        table.add_row(name, *(f"{cell:.3f}" for cell in cells))
    for code, times in result["import_seconds"].items():
        table.add_row(f'python -c "{code}"', "", "", f"{times['p50']:.3f}", f"{times['p95']:.3f}")
    Console().print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coldstart", description=__doc__)
    parser.add_argument("--model", help="bundle folder, .zip or embedded model's name; default: the embedded one")
    parser.add_argument("--runs", type=int, default=10, help="runs of each kind, after one that is left out")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs must be 1 or more, not {arguments.runs}")
    result = run(arguments.model, arguments.runs)
    show(result)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
