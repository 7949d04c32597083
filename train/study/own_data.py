"""A study of the user's own data: files with `text`, `label` and `rationale`, and nothing else to say."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from r2d_edge.base_models import locate
from r2d_edge.task import PROVENANCE_FILE, LabelKind, LabelSet, Prompts
from train.data import DatasetError, Example, check_split, normal, read_dataset, sources
from train.recipe import FitRecipe, RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VALIDATION_SHARE = 0.15
HELD_OUT = "held-out"
_MOST_LABELS = 50
_ALL_PIECES = 30_522  # of MiniLM: in a small file most words that new notes will hold do not occur
# What suits models grown from the warm start, whose encoder is trained and whose decoder is not or little; any other
# base keeps the recipe's defaults, which are the papers'.
_WARM_RECIPE = {"learning_rate": 3e-4, "encoder_rate": 0.3, "stage1_learning_rate": 5e-4, "max_input": 384}


def prepare(
    data: Path,
    folder: Path,
    *,
    validation: Path | None = None,
    labels: Sequence[str] = (),
    ordered: bool = False,
    base: str | None = None,
    seeds: Sequence[int] = (13,),
    overrides: Sequence[str] = (),
    draft: Path | None = None,
) -> Path:
    """Writes a study of one data set to `folder`, data and base model included.

    Args:
        data: a `.csv`, `.jsonl` or `.parquet` file (see `train.data`).
        folder: where the study, its data and its runs go.
        validation: a file like it; without one a share of `data` is set apart (see `_split`). A file without the
            rationales that are learned serves for the labels, and rationales are evaluated on a share of `data`, as
            a second set.
        labels: all labels that may occur; by default those that do.
        ordered: whether the labels run from the most to the least severe.
        base: the checkpoint to start from; by default the packaged MiniLM, warm-started on this data. The recipe
            follows it: rates for what is grown from a warm start, inputs no longer than it has positions.
        seeds: of the trainings.
        overrides: `key=value` over the recipe's.
        draft: a folder that the files go to instead, without a base model, to see what would be done.

    Returns:
        The study file.

    Raises:
        DatasetError: the data have faults, or a part lacks rationales or a label.
        RecipeError: an override is not `key=value`, or order is asked of labels that are not given.
    """
    if ordered and not labels:
        raise RecipeError("ordered labels must be given, the most severe first")
    kind: LabelKind = "ordered" if ordered else "plain"
    rows, held_out, names = _parts(data, validation, labels, kind)
    source = _source(data, rows)
    sets = {"validation": held_out}
    apart = validation is not None and not _explained(held_out, source)
    if apart:  # stage 1 is watched by the loss of validation rationales, and methods are compared by theirs
        rows, sets[HELD_OUT] = _split(rows)
    if not _explained(rows, source) or not any(_explained(part, source) for part in sets.values()):
        lack = f"too few rows have a {source!r} rationale to set a share apart (give a validation file with them)"
        raise DatasetError(str(data), {lack: []})
    check_split(rows, [row for part in sets.values() for row in part], LabelSet(tuple(names), kind))
    if apart:
        click.echo(
            f"{validation} has no {source!r} rationales: it serves for the labels alone; {len(sets[HELD_OUT])} rows of "
            f"{data} are set apart as the set {HELD_OUT!r}, on which rationales are compared",
            err=True,
        )
    chosen = _parsed(overrides)
    place = draft or folder
    place.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [_write(rows, place / "train.jsonl").as_posix()],
        "validation": {name: _write(part, place / f"{name}.jsonl").as_posix() for name, part in sets.items()},
        "labels": names,
        "label_kind": kind,
    }
    recipe: dict[str, Any] = {"max_rationale": 128, "epochs": 5, "stage1_epochs": 2, "evaluations": 10}
    if base is None:
        recipe |= _WARM_RECIPE
        base = (folder / "base").as_posix()
        if draft is None:
            _warm_start(folder / "base", rows, names)
    else:
        recipe = _fitted(recipe, base)
    name = _last_name(folder)
    study = {
        "name": name,
        "runs": folder.as_posix(),
        "results": (folder / "results").as_posix(),
        "methods": ["sft", "dss", "r2d", "r2d-c"],
        "sources": [source],
        "seeds": list(seeds),
        "sizes": {_last_name(base): base},
        "data": {name: parts},
        "recipe": recipe | chosen,
    }
    path = place / "study.toml"
    path.write_text(_toml(study), encoding="utf-8", newline="\n")
    return path


def _parts(
    data: Path, validation: Path | None, labels: Sequence[str], kind: LabelKind
) -> tuple[list[Example], list[Example], list[str]]:
    """Training rows, validation rows and the names of the labels."""
    allowed = LabelSet(tuple(labels), kind) if labels else LabelSet((), "open")
    rows = read_dataset(data, allowed)
    held_out = read_dataset(validation, allowed) if validation is not None else []
    names = list(labels) or _labels(data, [*rows, *held_out])
    if validation is None:
        rows, held_out = _split(rows)
        drawn = {row.label for row in held_out}
        if missing := [repr(label) for label in names if label not in drawn]:
            raise DatasetError(
                str(data), {"labels that fewer than two different texts have (give a validation file)": missing}
            )
    else:
        rows, held_out = _with_ids(rows, data, "train"), _with_ids(held_out, validation, "validation")
    return rows, held_out, names


def _source(path: Path, rows: Sequence[Example]) -> str:
    """The source that most rows have a rationale of."""
    counts = sources(rows)
    if not counts:
        raise DatasetError(str(path), {"it has no rationales (a column 'rationale')": []})
    return max(counts, key=lambda name: counts[name])


def _labels(path: Path, rows: Sequence[Example]) -> list[str]:
    found = sorted({row.label for row in rows})
    if not 2 <= len(found) <= _MOST_LABELS:
        raise DatasetError(str(path), {f"it has {len(found)} labels; 2 to {_MOST_LABELS} can be compared": []})
    return found


def _split(rows: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Training and validation rows: of every label a share of its texts, at least one where there are two.

    The texts with the smallest hashes are drawn, so that the same data are always split alike. Rows of one text, which
    count for the label of the first, stay together.
    """
    label_of: dict[str, str] = {}
    for row in rows:
        label_of.setdefault(normal(row.text), row.label)
    texts: dict[str, list[str]] = {}
    for text in sorted(label_of, key=lambda text: hashlib.sha256(text.encode("utf-8")).digest()):
        texts.setdefault(label_of[text], []).append(text)
    drawn: set[str] = set()
    for same in texts.values():
        if len(same) > 1:
            drawn.update(same[: max(1, round(VALIDATION_SHARE * len(same)))])
    parts: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        parts[normal(row.text) in drawn].append(row)
    return parts


def _explained(rows: Sequence[Example], source: str) -> bool:
    return any(source in row.rationales for row in rows)


def _with_ids(rows: Sequence[Example], path: Path, part: str) -> list[Example]:
    """The rows; those whose ids were made from their file's name get them from their part's.

    Two files of one name in two folders would otherwise seem to share rows.
    """
    if any(row.id != f"{path.stem}-{number}" for number, row in enumerate(rows, start=1)):
        return list(rows)
    return [replace(row, id=f"{part}-{number}") for number, row in enumerate(rows, start=1)]


def _write(rows: Sequence[Example], path: Path) -> Path:
    lines = [{"id": row.id, "text": row.text, "label": row.label, "rationales": dict(row.rationales)} for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _warm_start(output: Path, rows: Sequence[Example], labels: Sequence[str]) -> None:
    from train.warmstart import LAST_FILE, warmstart

    if not (output / LAST_FILE).is_file():
        texts = [text for row in rows for text in (row.text, *row.rationales.values())]
        required = [*labels, *vars(Prompts()).values(), *texts]
        warmstart(output, required_texts=required, vocabulary_size=_ALL_PIECES)


def _fitted(recipe: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The recipe as it suits a base of the user's own; what is only known to a hub is left to the recipe's defaults."""
    folder = Path(locate(base)[0])
    fitted = {**recipe, **(_WARM_RECIPE if _is_grown(_json(folder / PROVENANCE_FILE)) else {})}
    positions = _json(folder / "config.json").get("max_position_embeddings")
    if positions is not None:
        for key, default in (("max_input", FitRecipe.max_input), ("max_rationale", FitRecipe.max_rationale)):
            if fitted.get(key, default) > positions:
                fitted[key] = positions
    return fitted


def _is_grown(provenance: Any) -> bool:
    """Whether a checkpoint or one that it comes from, as its provenance says, is a warm start."""
    while isinstance(provenance, dict):
        if str(provenance.get("method")).startswith("warm start"):
            return True
        provenance = provenance.get("from")
    return False


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _last_name(path: Path | str) -> str:
    """The last name of a path, also of `.` and `..`."""
    name = Path(path).name
    return name if name not in ("", "..") else Path(path).resolve().name


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in overrides:
        try:
            found |= tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise RecipeError(
                f"override {text!r} is not key=value, with the value as in TOML (text in quotes)"
            ) from None
    known = {item.name for item in fields(FitRecipe)}
    if unknown := sorted(set(found) - known):
        raise RecipeError(f"no recipe has the key {', '.join(unknown)}; keys: {', '.join(sorted(known))}")
    return found


def _toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """Plain data as TOML: JSON's numbers, strings and lists are TOML's too."""
    lines, nested = [], []
    for key, value in tables.items():
        name = json.dumps(key, ensure_ascii=False)
        if isinstance(value, Mapping):
            nested.append(f"\n[{prefix}{name}]\n{_toml(value, f'{prefix}{name}.')}")
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join([*lines, *nested])
