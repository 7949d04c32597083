"""Study files: a TOML of data sets and axes, read into the list of cells that it asks for.

A cell is one training: one method, size, pair of sources, seed and data set. Axes that a method does not
depend on do not multiply its cells: standard fine-tuning reads no rationale, and only methods with a stage 1
have a source for it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from r2d_edge.bundle import Decoding
from train.evaluate import SET_NAME
from train.recipe import WITH_STAGE1, FitRecipe, RecipeError, Stage1Recipe, build_recipe
from train.study.scores import judge_problems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS = {
    *("name", "runs", "results", "plots", "reference", "methods", "sources", "seeds", "sizes", "data", "recipe"),
    *("by_method", "by_size", "by_data", "evaluation", "judge"),
}
_DATA_KEYS = {"train", "validation", "labels", "label_kind"}
_FILTERS = ("data", "size", "method", "stage1_source", "source", "seed", "name")
# What of `train.evaluate.evaluate` a study may choose.
_EVALUATION_KEYS = {"limit", "bertscore", "bertscore_model", "bertscore_layer", "decoding", "batch_size", "bf16"}
_OF_THE_CELL = {"checkpoint", "output", "stage1_checkpoint", "stage1_sources", "sources", "seed", *_DATA_KEYS}


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        source: the rationales that the method learns, and `stage1_source` those of its stage 1; None where it
            learns none.
        digest: SHA-256 of everything in the study file that this cell depends on.
    """

    data: str
    size: str
    method: str
    stage1_source: str | None
    source: str | None
    seed: int
    name: str
    digest: str
    recipe: FitRecipe

    @property
    def sources(self) -> str:
        """The sources in a reader's words."""
        if self.source is None:
            return "–"
        return self.source if self.stage1_source in (None, self.source) else f"{self.stage1_source} → {self.source}"

    @property
    def stage1(self) -> Stage1Recipe | None:
        """The recipe of its stage 1, in a folder that all cells with the same stage 1 share."""
        if self.stage1_source is None:
            return None
        recipe = self.recipe.stage1
        settings = {key: value for key, value in vars(recipe).items() if key != "output"}
        shared = _slug(self.data, self.size, self.stage1_source, str(self.seed))
        folder = self.recipe.output.parents[2] / "stage1" / f"{shared}-{_digest(settings)[:8]}"
        return replace(recipe, output=folder)


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        reference: the source whose rationales are the reference in evaluation, for every cell alike.
        runs: where checkpoints go (large, not for the repository).
        results: where the cells' result files go (small, for the repository). Studies that share runs and results
            share the cells that both have.
        plots: where its plots go.
        evaluation: options of `train.evaluate.evaluate`.
        judge: options of `train judge --score`, as its command line has them; empty for a study without a judge.
            No cell's digest depends on them: a judge can be added to what is trained.
    """

    name: str
    reference: str
    evaluation: Mapping[str, Any]
    runs: Path
    results: Path
    plots: Path
    cells: tuple[Cell, ...]
    judge: Mapping[str, Any] = field(default_factory=dict)


def read_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        RecipeError: it is not TOML, or a key is unknown, missing or of the wrong type, or a cell's recipe is
            not one that can be trained.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    return build_study(data, str(path))


def build_study(data: Mapping[str, Any], where: str) -> Study:
    """Makes a study of plain data (see `read_study`)."""
    problems = [f"unknown key {key!r}" for key in data if key not in _KEYS]
    problems += [
        f"missing or empty {key!r}"
        for key in ("name", "methods", "sources", "seeds", "sizes", "data")
        if not data.get(key)
    ]
    for key in ("data", "sizes", "recipe", "by_method", "by_size", "by_data", "evaluation", "judge"):
        if not isinstance(data.get(key, {}), dict):
            problems.append(f"{key!r} must be a table")
    if not problems:
        problems += _axis_problems(data)
    if problems:
        raise RecipeError(f"{where}: " + "; ".join(problems))
    name = _slug(data["name"])
    runs = Path(data.get("runs", f"runs/studies/{name}"))
    pairs = [_pair(item) for item in data["sources"]]
    reference = data.get("reference", pairs[0][1])
    evaluation = dict(data.get("evaluation", {}))
    for_all = {"reference": reference, "evaluation": dict(evaluation)}
    if "decoding" in evaluation:
        try:
            evaluation["decoding"] = Decoding(**evaluation["decoding"])
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{where}: evaluation.decoding: {error}") from None
    cells: dict[str, Cell] = {}
    # Seeds before methods: a grid that is cut has compared all methods on the seeds it got to.
    axes = itertools.product(data["data"], data["sizes"], pairs, data["seeds"], data["methods"])
    for data_name, size, pair, seed, method in axes:
        cell = _cell(data, data_name, size, method, pair, seed, runs, for_all, where)
        twin = cells.setdefault(cell.name, cell)
        if twin.digest != cell.digest:
            raise RecipeError(f"{where}: two cells would both be called {cell.name!r}: rename an axis")
    results = Path(data.get("results", f"benchmarks/results/studies/{name}"))
    plots = Path(data.get("plots", results / "plots"))
    return Study(name, reference, evaluation, runs, results, plots, tuple(cells.values()), data.get("judge", {}))


def chosen(cells: Sequence[Cell], filters: Sequence[str]) -> list[Cell]:
    """The cells that all `key=value` filters let through; several values of one key are alternatives.

    A cell that does not depend on a source passes the filters of that source.

    Raises:
        RecipeError: a filter is not `key=value`, its key is not an axis, or no cell passes.
    """
    wanted: dict[str, set[str]] = {}
    for text in filters:
        key, separator, value = text.partition("=")
        if not separator or key not in _FILTERS:
            raise RecipeError(f"filter {text!r} is not KEY=VALUE with a KEY of {', '.join(_FILTERS)}")
        wanted.setdefault(key, set()).add(value)
    found = [cell for cell in cells if all(_passes(cell, key, values) for key, values in wanted.items())]
    if not found:
        raise RecipeError(f"no cell passes the filters {', '.join(filters)}")
    return found


def _passes(cell: Cell, key: str, values: set[str]) -> bool:
    own = getattr(cell, key)
    return own is None or str(own) in values


def _axis_problems(data: Mapping[str, Any]) -> list[str]:
    problems = []
    if not isinstance(data["name"], str):
        problems.append(f"name must be text, not {data['name']!r}")
    for key, kind in (("methods", str), ("seeds", int), ("sources", (str, list))):
        values = data[key]
        if not isinstance(values, list) or not all(isinstance(item, kind) for item in values):
            problems.append(f"{key!r} cannot be {values!r}")
    unknown = sorted(set(data.get("evaluation", {})) - _EVALUATION_KEYS)
    problems += [f"evaluation has no option {key!r}; it has: {', '.join(sorted(_EVALUATION_KEYS))}" for key in unknown]
    problems += judge_problems(data.get("judge", {}))
    for item in data["sources"] if isinstance(data["sources"], list) else []:
        if isinstance(item, list) and (len(item) != 2 or not all(isinstance(part, str) for part in item)):
            problems.append(f"a pair of sources is [stage 1, stage 2], not {item!r}")
    for name, entry in data["data"].items():
        if (
            not isinstance(entry, dict)
            or set(entry) - _DATA_KEYS
            or not {"train", "validation", "labels"} <= set(entry)
        ):
            problems.append(f"data set {name!r} must have train, validation and labels, and may have label_kind")
        elif isinstance(entry["validation"], dict):
            wrong = [key for key in entry["validation"] if not SET_NAME.fullmatch(key)]
            problems += [f"set name {key!r} must be letters, digits, '.', '_' and '-': a file's" for key in wrong]
    axes = {"by_method": data["methods"], "by_size": data["sizes"], "by_data": data["data"]}
    for key, axis in axes.items():
        for name, changes in data.get(key, {}).items():
            if name not in axis:
                problems.append(f"{key} names {name!r}, which is not on that axis")
            if not isinstance(changes, dict):
                problems.append(f"{key}.{name} must be a table of recipe keys")
    for key in ("by_size", "by_data"):
        if any("method" in changes for changes in data.get(key, {}).values() if isinstance(changes, dict)):
            problems.append(f"{key} cannot change the method")
    if "method" in data.get("recipe", {}):
        problems.append("'method' is set by the axis 'methods', not by 'recipe'")
    tables = [data.get("recipe", {}), *(changes for key in axes for changes in data.get(key, {}).values())]
    taken = {key for table in tables if isinstance(table, dict) for key in table} & _OF_THE_CELL
    problems += [f"{key!r} is set by the study's axes, not by a recipe" for key in sorted(taken)]
    return problems


def _cell(
    data: Mapping[str, Any],
    data_name: str,
    size: str,
    method: str,
    pair: tuple[str, str],
    seed: int,
    runs: Path,
    for_all: Mapping[str, Any],
    where: str,
) -> Cell:
    settings = {"method": method, **data.get("recipe", {})}
    for key, value in (("by_data", data_name), ("by_size", size), ("by_method", method)):
        settings.update(data.get(key, {}).get(value, {}))
    stage1_source: str | None
    source: str | None
    stage1_source, source = pair
    # A method's own name on the axis may be that of a variant, whose table then names the method.
    kind = settings["method"]
    if kind == "sft":
        stage1_source = source = None
    elif kind not in WITH_STAGE1 or settings.get("stage1_epochs") == 0:
        stage1_source = None
    settings.update(data["data"][data_name], checkpoint=data["sizes"][size], seed=seed)
    if source is not None:
        settings["sources"] = [source]
    if stage1_source is not None:
        settings["stage1_sources"] = [stage1_source]
    sources = dict.fromkeys(part for part in (stage1_source, source) if part)
    name = _slug(data_name, size, method, "+".join(sources) or "none", str(seed))
    digest = _digest({**settings, **for_all})
    # A method that reads no rationale still names a source: the recipe asks for one.
    filled = {
        "sources": [for_all["reference"]],
        **settings,
        "output": str(runs / "cells" / f"{name}-{digest[:8]}" / "model"),
    }
    recipe = build_recipe(FitRecipe, filled, f"{where}, cell {name}")
    return Cell(data_name, size, method, stage1_source, source, seed, name, digest, recipe)


def _pair(item: str | list[str]) -> tuple[str, str]:
    return (item, item) if isinstance(item, str) else (item[0], item[1])


def _slug(*parts: str) -> str:
    return "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _plain(value: Any) -> Any:
    return value.as_posix() if isinstance(value, Path) else asdict(value)
