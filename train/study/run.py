"""Training and evaluating the cells of a study, each once, in whatever order and however often it is cut."""

from __future__ import annotations

import functools
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2d_edge.base_models import BaseModelError, locate
from r2d_edge.task import PROVENANCE_FILE, LabelSet
from train.comparison import EVALUATION
from train.data import DatasetError, read_dataset, sources
from train.evaluate import write_report
from train.files import file_sha256
from train.recipe import FitRecipe, RecipeError, Stage1Recipe, StageRecipe
from train.study.curves import curve_of
from train.study.results import Result, count_parameters, read_result, rows_of, write_result
from train.study.scores import open_judge, options_digest, score_sets
from train.study.spec import Cell, Study

Say = Callable[[str], None]
# Of a training's provenance.
_CONTEXT = (
    *("commit", "device", "versions", "steps", "best_step"),
    *("rationales_missing", "stage1_rationales_missing"),
)
# A name that a hub can have: OWNER/NAME or NAME.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


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
    """Whether a cell has its result, of this very recipe, data and starting weights, and its study's judge.

    A file that is not here, as in a checkout without data, is taken to be as it was.
    """
    result = read_result(result_path(study, cell))
    if result is None or result.error is not None or result.digest != cell.digest:
        return False
    if _is_judged(study, cell) and result.context.get("judge", {}).get("options") != options_digest(study.judge):
        return False
    inputs = inputs_of(cell.recipe)
    return all(inputs.get(name, hashed) == hashed for name, hashed in result.inputs.items())


def missing_files(cells: Sequence[Cell]) -> list[str]:
    """The data files and base models that cells start from and that are not here; a hub's may still be fetched."""
    files = {path for cell in cells for path in (*cell.recipe.train, *cell.recipe.validation.values())}
    bases = {cell.recipe.checkpoint for cell in cells}
    missing = {path.as_posix() for path in files if not path.is_file()}
    return sorted(missing | {base for base in bases if not _can_be_had(base)})


def check_files(cells: Sequence[Cell]) -> None:
    """Checks that all data files and base models are there before anything is trained.

    Raises:
        FileNotFoundError: some are missing; all of them are named.
    """
    if missing := missing_files(cells):
        raise FileNotFoundError(
            f"data files or base models that these cells start from are missing: {', '.join(missing)}"
        )


def inputs_of(recipe: StageRecipe) -> dict[str, str]:
    """SHA-256 of those of a recipe's data files and starting weights that are here; a hub name stands for itself."""
    weights = Path(recipe.checkpoint) / "model.safetensors"
    files = [*recipe.train, *recipe.validation.values(), weights]
    hashes = {
        path.as_posix(): _sha256(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()
    }
    return hashes if weights.as_posix() in hashes else {**hashes, "checkpoint": recipe.checkpoint}


def needs_stage1(cell: Cell) -> bool:
    """Whether a cell has a stage 1 that is not yet trained on these very data and weights."""
    return cell.stage1 is not None and not _is_trained(cell.stage1)


def forget(study: Study, cells: Sequence[Cell]) -> None:
    """Throws away what cells have left behind, results and checkpoints, so that they are trained anew.

    Raises:
        FileNotFoundError: they could not be trained, as something is missing; nothing is thrown away.
    """
    check_files(cells)
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
        FileNotFoundError: a data file or a base model that is needed is missing.
        RecipeError: the study's judge is a service that cannot be used.
    """
    todo = [cell for cell in cells if not is_finished(study, cell)]
    check_files(todo)
    if todo and "endpoint" in study.judge:
        open_judge(study.judge)
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
        The error that it failed with; None if it finished. Its result file then holds the error's kind, unless an
        earlier result stands there, which is left as it is.
    """
    folder, path = cell.recipe.output.parent, result_path(study, cell)
    try:
        result = _result_of(study, cell, work)
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        kept = read_result(path)
        if kept is None or kept.error is not None:
            write_result(path, Result(cell.digest, error=_named(error)))
        return f"{_named(error)} (see {folder / 'error.txt'})"
    write_result(path, result)
    (folder / "error.txt").unlink(missing_ok=True)
    shutil.rmtree(cell.recipe.output / "checkpoints", ignore_errors=True)  # optimizer states are large
    return None


def run_stage1(recipe: Stage1Recipe, work: Work) -> float:
    """Trains a shared stage 1 unless it is there; returns the seconds it took, now or then."""
    if not _is_trained(recipe):
        work.train_stage1(recipe)
        shutil.rmtree(recipe.output / "checkpoints", ignore_errors=True)
    return _seconds(recipe)


def _result_of(study: Study, cell: Cell, work: Work) -> Result:
    recipe = cell.recipe
    inputs = inputs_of(recipe)
    seconds: dict[str, float] = {}
    if cell.stage1 is not None:
        seconds["stage1"] = run_stage1(cell.stage1, work)
        recipe = replace(recipe, stage1_checkpoint=cell.stage1.output.as_posix())
    work.fit(recipe)  # which leaves a finished training as it is
    seconds["fit"] = _seconds(recipe)
    started = time.monotonic()
    output = recipe.output.parent / "evaluation"
    report = _evaluated(study, cell, work, output)
    seconds["evaluation"] = time.monotonic() - started
    context = _context(recipe, cell.stage1, report)
    scores: dict[str, dict[str, float]] = {}
    if _is_judged(study, cell):
        started = time.monotonic()
        cache = recipe.output.parent / "judge.answers.jsonl"
        scores, context["judge"] = score_sets(study.judge, output, recipe.validation, cache)
        seconds["judge"] = time.monotonic() - started
    return Result(
        cell.digest,
        inputs=inputs,
        parameters=count_parameters(recipe.output),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        curve=curve_of(recipe.output / "history.json", list(recipe.validation)),
        sets={
            name: rows_of(_records(output / f"{name}.jsonl"), recipe.labels, scores.get(name, {}))
            for name in recipe.validation
        },
        evaluation=report["sets"],
        context=context,
    )


def _is_judged(study: Study, cell: Cell) -> bool:
    """Whether a cell's rationales are to be scored; standard fine-tuning writes none."""
    return bool(study.judge) and cell.source is not None


def _evaluated(study: Study, cell: Cell, work: Work, output: Path) -> dict[str, Any]:
    """What evaluation reports of all sets; a set without references of the study's source is evaluated without any."""
    recipe = cell.recipe
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Path]] = {}
    for name, path in recipe.validation.items():
        there = sources(read_dataset(path, LabelSet((), "open")))
        options: dict[str, Any] = {"source": study.reference if cell.source is not None else None}
        if study.reference not in there:
            # Rationales of other sources are no references here: where a set has some, its labels alone count.
            options = {"source": next(iter(there)), "rationales": False} if there else {"source": None}
        groups.setdefault(tuple(options.items()), {})[name] = path
    reports = [
        work.evaluate(recipe.output, sets, output, train=recipe.train, **dict(options), **study.evaluation)
        for options, sets in groups.items()
    ]
    if len(reports) == 1:
        return reports[0]
    found = {name: figures for report in reports for name, figures in report["sets"].items()}
    explained = max(reports, key=lambda report: bool(report["settings"]["rationales"]))
    whole = {**explained, "sets": {name: found[name] for name in recipe.validation}}
    write_report(whole, output / EVALUATION)  # each call has written its own sets there
    return whole


def _context(recipe: FitRecipe, stage1: Stage1Recipe | None, report: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, software, and how the figures were made."""
    found = _provenance(recipe)
    if stage1 is not None:
        found["stage1_rationales_missing"] = _provenance(stage1).get("rationales_missing")
    context = {key: found[key] for key in _CONTEXT if key in found}
    return {**context, "bertscore": report["settings"]["bertscore"], "decoding": report["engine"]["decoding"]}


def _can_be_had(checkpoint: str) -> bool:
    """Whether a base model is here or has a name that a hub may know."""
    try:
        locate(checkpoint, local=True)
    except BaseModelError:
        return _HUB_NAME.fullmatch(checkpoint) is not None and not checkpoint.endswith(".gguf")
    return True


def _is_trained(recipe: StageRecipe) -> bool:
    """Whether a stage's folder holds its finished training; not, as far as can be told, where its data are missing."""
    if not recipe.output.is_dir():
        return False
    from train.trainer import is_finished

    try:
        return is_finished(recipe)
    except FileNotFoundError:
        return False


def _seconds(recipe: StageRecipe) -> float:
    """What a finished training took, in all its processes."""
    return float(_provenance(recipe).get("seconds", 0))


def _provenance(recipe: StageRecipe) -> dict[str, Any]:
    path = recipe.output / PROVENANCE_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _named(error: Exception) -> str:
    """An error for the repository: a library's own message may hold a path of this machine or worse."""
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, (RecipeError, DatasetError)) else kind


@functools.cache
def _sha256(path: Path, _modified: int, _size: int) -> str:
    """Data files and starting weights serve many cells: each is read once as long as it does not change."""
    return file_sha256(path)
