"""Learning curves: validation macro-F1 by optimizer step, of the evaluations during training alone.

Earlier versions scored the chosen checkpoint once more after training and noted it at the last step; histories and
results that hold this point are read without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.study.results import Result


def curve_of(history: Path, sets: Sequence[str]) -> dict[str, list[float]]:
    """The curve of a run's `history.json`: `step` and one list a set; empty where there is no such file."""
    if not history.is_file():
        return {}
    points: dict[int, Mapping[str, Any]] = {}
    for entry in json.loads(history.read_text(encoding="utf-8"))["log"]:
        if all(f"eval_{name}_macro_f1" in entry for name in sets):
            # Where the last step had an evaluation of its own, it comes before the chosen checkpoint's.
            points.setdefault(entry["step"], entry)
    steps = _regular(sorted(points))
    return {
        "step": [*steps],
        **{name: [round(float(points[step][f"eval_{name}_macro_f1"]), 4) for step in steps] for name in sets},
    }


def training_curve(result: Result) -> dict[str, list[float]]:
    """A result's curve without the chosen checkpoint's point, where it has one; empty for a result without a curve.

    At a step of its own that point is told by its step; in the place of the last evaluation by its figures, which
    are then those of the best step.
    """
    curve = {name: [*values] for name, values in result.curve.items()}
    steps = curve.get("step", [])
    kept = len(_regular(steps))
    best = result.context.get("best_step")
    if kept == len(steps) and best in steps[:-1]:
        place = steps.index(best)
        kept -= all(values[-1] == values[place] for name, values in curve.items() if name != "step")
    return {name: values[:kept] for name, values in curve.items()}


def _regular(steps: Sequence[int] | Sequence[float]) -> Sequence[Any]:
    """Sorted steps; a last one that is no multiple of the first, as those of evaluations in training are, left out."""
    return steps[:-1] if steps and steps[-1] % steps[0] else steps
