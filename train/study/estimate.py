"""How much there is to do: optimizer steps of a cell, and minutes where a like cell has been timed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.recipe import FitRecipe
from train.study.results import Result
from train.study.run import is_finished, needs_stage1
from train.study.spec import Cell, Study


def plan(study: Study, cells: Sequence[Cell], results: Mapping[str, Result]) -> list[str]:
    """A line for each cell: name, state, steps, minutes."""
    lines, total, unknown = [], 0.0, 0
    begun: set[Path] = set()
    for cell in cells:
        if is_finished(study, cell):
            lines.append(f"{cell.name}: finished")
            continue
        state = "failed before" if cell.name in results and results[cell.name].error else "to do"
        parts = [state]
        stage1 = cell.stage1
        if stage1 is not None and stage1.output not in begun and needs_stage1(cell):
            begun.add(stage1.output)
        else:
            stage1 = None
        steps = _steps(cell.recipe)
        if steps is not None:
            parts.append(f"{steps} steps" + (" after its stage 1" if stage1 is not None else ""))
        seconds = _seconds(study, cell, results, with_stage1=stage1 is not None)
        if seconds is None:
            unknown += 1
        else:
            total += seconds
            parts.append(f"about {seconds / 60:.0f} min")
        lines.append(f"{cell.name}: {', '.join(parts)}")
    left = sum(not line.endswith(": finished") for line in lines)
    timed = f"about {total / 60:.0f} min as timed for cells like them" if left > unknown else ""
    untimed = f"{unknown} are like none that was timed" if unknown else ""
    lines.append("; ".join(part for part in (f"{left} of {len(cells)} cells to do", timed, untimed) if part))
    return lines


def _steps(recipe: FitRecipe) -> int | None:
    """Optimizer steps of the label stage; None where the rows cannot be counted."""
    rows = 0
    for path in recipe.train:
        if path.suffix != ".jsonl" or not path.is_file():
            return None
        rows += sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    return math.ceil(recipe.epochs * math.ceil(rows / (recipe.batch_size * recipe.gradient_accumulation)))


def _seconds(study: Study, cell: Cell, results: Mapping[str, Result], *, with_stage1: bool) -> float | None:
    """The mean of finished cells of the same data, size and method."""
    like = [
        results[other.name].seconds
        for other in study.cells
        if (other.data, other.size, other.method) == (cell.data, cell.size, cell.method)
        and other.name in results
        and results[other.name].error is None
    ]
    if not like:
        return None
    kept = [name for name in ("stage1", "fit", "evaluation", "judge") if with_stage1 or name != "stage1"]
    return sum(seconds.get(name, 0.0) for seconds in like for name in kept) / len(like)
