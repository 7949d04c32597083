"""Training and evaluating the cells of a study, each once, in whatever order and however often it is cut."""

from __future__ import annotations

import functools
import json
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2d_edge.task import PROVENANCE_FILE
from train.checkpoint import write_json
from train.data import DatasetError
from train.files import file_sha256
from train.recipe import FitRecipe, RecipeError, Stage1Recipe, StageRecipe
from train.study.results import Result, count_parameters, read_result, rows_of, write_result
from train.study.spec import Cell, Study

# What training of a folder is done says so in this file, after everything else.
DONE = "study.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """The steps that a cell is made of.

    Attributes:
        fit: `train.methods.fit`.
        train_stage1: `train.stage1.train_stage1`.
        evaluate: `train.evaluate.evaluate`.
    """

    fit: Callable[..., Path]
    train_stage1: Callable[..., Path]
    evaluate: Callable[..., dict[str, Any]]


def real_work() -> Work:
    """Training and evaluation as the other commands do them."""
    from train.evaluate import evaluate
    from train.methods import fit
    from train.stage1 import train_stage1

    return Work(fit, train_stage1, evaluate)


def result_path(study: Study, cell: Cell) -> Path:
    """Where a cell's result stands."""
    return study.results / f"{cell.name}.json"


def load_results(study: Study, folder: Path | None = None) -> dict[str, Result]:
    """The results by cell name that belong to the study file as it stands.

    Args:
        study: the study.
        folder: where they stand; default: where the study says.
    """
    found = {}
    for cell in study.cells:
        result = read_result((folder or study.results) / f"{cell.name}.json")
        if result is not None and result.digest == cell.digest:
            found[cell.name] = result
    return found


def is_finished(study: Study, cell: Cell) -> bool:
    """Whether a cell has its result, of this very recipe, data and starting weights."""
    result = read_result(result_path(study, cell))
    return (
        result is not None
        and result.error is None
        and result.digest == cell.digest
        and result.inputs == inputs_of(cell.recipe)
    )


def check_files(cells: Sequence[Cell]) -> None:
    """Checks that every data file is there before anything is trained.

    Raises:
        FileNotFoundError: some are missing; all of them are named.
    """
    files = {path for cell in cells for path in (*cell.recipe.train, *cell.recipe.validation.values())}
    missing = sorted(path.as_posix() for path in files if not path.is_file())
    if missing:
        raise FileNotFoundError(f"data files of this study are missing: {', '.join(missing)}")


def inputs_of(recipe: StageRecipe) -> dict[str, str]:
    """SHA-256 of a recipe's data files and starting weights; a hub name stands for itself."""
    files = {path.as_posix(): path for path in (*recipe.train, *recipe.validation.values())}
    weights = Path(recipe.checkpoint) / "model.safetensors"
    if weights.is_file():
        files[weights.as_posix()] = weights
    hashes = {name: _sha256(path, path.stat().st_mtime_ns, path.stat().st_size) for name, path in files.items()}
    return hashes if weights.is_file() else {**hashes, "checkpoint": recipe.checkpoint}


def forget(study: Study, cells: Sequence[Cell]) -> None:
    """Throws away what cells have left behind, results and checkpoints, so that they are trained anew."""
    for cell in cells:
        result_path(study, cell).unlink(missing_ok=True)
        for folder in (cell.recipe.output.parent, cell.stage1.output if cell.stage1 is not None else None):
            if folder is not None and folder.exists():
                shutil.rmtree(folder)


def run_cells(study: Study, cells: Sequence[Cell], work: Work, say: Say = print) -> list[str]:
    """Runs cells one after the other; finished ones are skipped.

    Returns:
        The names of the cells that failed.

    Raises:
        FileNotFoundError: a data file is missing.
    """
    check_files(cells)
    failed = []
    for number, cell in enumerate(cells, start=1):
        place = f"{number}/{len(cells)} {cell.name}"
        if is_finished(study, cell):
            say(f"{place}: finished before")
            continue
        say(f"{place}: begun")
        started = time.monotonic()
        error = run_cell(study, cell, work)
        if error is not None:
            failed.append(cell.name)
        say(f"{place}: {f'failed: {error}' if error else 'finished'} after {time.monotonic() - started:.0f} s")
    return failed


def run_cell(study: Study, cell: Cell, work: Work) -> str | None:
    """Trains and evaluates one cell, going on from what a cut run left, and writes its result.

    Returns:
        The error that it failed with, whose kind its result file then holds; None if it finished.
    """
    folder = cell.recipe.output.parent
    try:
        result = _result_of(study, cell, work)
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        write_result(result_path(study, cell), Result(cell.digest, error=_named(error)))
        return f"{_named(error)} (see {folder / 'error.txt'})"
    write_result(result_path(study, cell), result)
    (folder / "error.txt").unlink(missing_ok=True)
    shutil.rmtree(cell.recipe.output / "checkpoints", ignore_errors=True)  # optimizer states are large
    return None


def run_stage1(recipe: Stage1Recipe, work: Work) -> float:
    """Trains a shared stage 1 unless it is there; returns the seconds it took, now or then."""
    done = _done(recipe)
    if done is not None:
        return done
    started = time.monotonic()
    work.train_stage1(recipe)
    seconds = _seconds_of(recipe, started)
    _mark_done(recipe, seconds)
    shutil.rmtree(recipe.output / "checkpoints", ignore_errors=True)
    return seconds


def curve_of(history: Path, sets: Sequence[str]) -> dict[str, list[float]]:
    """Validation macro-F1 by optimizer step out of a run's `history.json`: `step` and one list a set."""
    if not history.is_file():
        return {}
    log = json.loads(history.read_text(encoding="utf-8"))["log"]
    points = {entry["step"]: entry for entry in log if all(f"eval_{name}_macro_f1" in entry for name in sets)}
    steps = sorted(points)
    return {
        "step": steps,
        **{name: [round(float(points[step][f"eval_{name}_macro_f1"]), 4) for step in steps] for name in sets},
    }


def _result_of(study: Study, cell: Cell, work: Work) -> Result:
    recipe = cell.recipe
    inputs = inputs_of(recipe)
    seconds: dict[str, float] = {}
    if cell.stage1 is not None:
        seconds["stage1"] = run_stage1(cell.stage1, work)
        recipe = replace(recipe, stage1_checkpoint=cell.stage1.output.as_posix())
    done = _done(recipe)
    if done is None:
        started = time.monotonic()
        work.fit(recipe)
        done = _seconds_of(recipe, started)
        _mark_done(recipe, done)
    seconds["fit"] = done
    started = time.monotonic()
    output = recipe.output.parent / "evaluation"
    report = work.evaluate(
        recipe.output,
        recipe.validation,
        output,
        source=study.reference if cell.source is not None else None,
        train=recipe.train,
        **study.evaluation,
    )
    seconds["evaluation"] = time.monotonic() - started
    context = _provenance(recipe)
    return Result(
        cell.digest,
        inputs=inputs,
        parameters=count_parameters(recipe.output),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        curve=curve_of(recipe.output / "history.json", list(recipe.validation)),
        sets={name: rows_of(_records(output / f"{name}.jsonl"), recipe.labels) for name in recipe.validation},
        evaluation=report["sets"],
        context={key: context[key] for key in ("commit", "device", "versions", "steps", "best_step") if key in context},
    )


def _seconds_of(recipe: StageRecipe, started: float) -> float:
    """What a training took: this process's part, or all of it where a process before was cut."""
    return max(time.monotonic() - started, float(_provenance(recipe).get("seconds", 0)))


def _provenance(recipe: StageRecipe) -> dict[str, Any]:
    path = recipe.output / PROVENANCE_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _identity(recipe: StageRecipe) -> dict[str, Any]:
    settings = {key: value for key, value in vars(recipe).items() if key not in ("output", "stage1_checkpoint")}
    if isinstance(recipe, FitRecipe) and recipe.stage1_checkpoint:
        settings["stage1"] = _sha256_of(Path(recipe.stage1_checkpoint) / "model.safetensors")
    plain: dict[str, Any] = json.loads(json.dumps({**settings, "inputs": inputs_of(recipe)}, default=str))
    return plain


def _done(recipe: StageRecipe) -> float | None:
    """The seconds that a finished training took; None if this folder holds none of this very recipe and data."""
    try:
        record = json.loads((recipe.output / DONE).read_text(encoding="utf-8"))
        return float(record["seconds"]) if record["of"] == _identity(recipe) else None
    except (OSError, ValueError, KeyError):
        return None


def _mark_done(recipe: StageRecipe, seconds: float) -> None:
    recipe.output.mkdir(parents=True, exist_ok=True)
    write_json(recipe.output / DONE, {"of": _identity(recipe), "seconds": round(seconds, 1)})


def _named(error: Exception) -> str:
    """An error for the repository: a library's own message may hold a path of this machine or worse."""
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, (RecipeError, DatasetError)) else kind


def _sha256_of(path: Path) -> str | None:
    return _sha256(path, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


@functools.cache
def _sha256(path: Path, _modified: int, _size: int) -> str:
    """Data files and starting weights serve many cells: each is read once as long as it does not change."""
    return file_sha256(path)
