"""A study of the user's own data: files with `text`, `label` and `rationale`, and nothing else to say."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from r2d_edge.task import LabelKind, LabelSet, Prompts
from train.data import DatasetError, Example, check_split, normal, read_dataset, sources
from train.recipe import FitRecipe, RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VALIDATION_SHARE = 0.15
_MOST_LABELS = 50
_ALL_PIECES = 30_522  # of MiniLM: in a small file most words that new notes will hold do not occur
# What suits the warm start, whose encoder is trained and whose decoder is not; a base of the user's own keeps
# the recipe's defaults, which are the papers'.
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
        validation: a file like it; without one a share of `data` is set apart, by a hash of the text, so that
            equal texts stay together and the same rows are drawn every time.
        labels: all labels that may occur; by default those that do.
        ordered: whether the labels run from the most to the least severe.
        base: the checkpoint to start from; by default the packaged MiniLM, warm-started on this data.
        seeds: of the trainings.
        overrides: `key=value` over the recipe's.
        draft: a folder that the files go to instead, without a base model, to see what would be done.

    Returns:
        The study file.

    Raises:
        DatasetError: the data have faults, or no rationales, or a part lacks a label.
        RecipeError: an override is not `key=value`, or order is asked of labels that are not given.
    """
    if ordered and not labels:
        raise RecipeError("ordered labels must be given, the most severe first")
    kind: LabelKind = "ordered" if ordered else "plain"
    rows, held_out, names = _parts(data, validation, labels, kind)
    source = _source(data, rows)
    chosen = _parsed(overrides)
    place = draft or folder
    place.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [_write(rows, place / "train.jsonl").as_posix()],
        "validation": {"validation": _write(held_out, place / "validation.jsonl").as_posix()},
        "labels": names,
        "label_kind": kind,
    }
    recipe: dict[str, Any] = {"max_rationale": 128, "epochs": 5, "stage1_epochs": 2, "evaluations": 10}
    if base is None:
        recipe |= _WARM_RECIPE
        base = (folder / "base").as_posix()
        if draft is None:
            _warm_start(folder / "base", rows, names)
    study = {
        "name": folder.name,
        "runs": folder.as_posix(),
        "results": (folder / "results").as_posix(),
        "methods": ["sft", "dss", "r2d", "r2d-c"],
        "sources": [source],
        "seeds": list(seeds),
        "sizes": {Path(base).name: base},
        "data": {folder.name: parts},
        "recipe": recipe | chosen,
    }
    path = place / "study.toml"
    path.write_text(_toml(study), encoding="utf-8", newline="\n")
    return path


def _parts(
    data: Path, validation: Path | None, labels: Sequence[str], kind: LabelKind
) -> tuple[list[Example], list[Example], list[str]]:
    """Training rows, validation rows and the names of the labels, of which both parts have all."""
    allowed = LabelSet(tuple(labels), kind) if labels else LabelSet((), "open")
    rows = read_dataset(data, allowed)
    held_out = read_dataset(validation, allowed) if validation is not None else []
    names = list(labels) or _labels(data, [*rows, *held_out])
    if validation is None:
        rows, held_out = _split(data, rows, names)
    else:
        rows, held_out = _with_ids(rows, data, "train"), _with_ids(held_out, validation, "validation")
    check_split(rows, held_out, LabelSet(tuple(names), kind))
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


def _split(path: Path, rows: Sequence[Example], labels: Sequence[str]) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, by the hash of the text."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(normal(row.text).encode("utf-8")).digest()
        parts[int.from_bytes(digest[:4], "big") < VALIDATION_SHARE * 2**32].append(row)
    for part, name in zip(parts, ("training", "validation"), strict=True):
        missing = [label for label in labels if label not in {row.label for row in part}]
        if missing:
            text = f"labels that no row of the {name} part has, when a share is set apart (give a validation file)"
            raise DatasetError(str(path), {text: [repr(label) for label in missing]})
    return parts


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
    from train.warmstart import warmstart

    if not (output / "model.safetensors").is_file():
        texts = [text for row in rows for text in (row.text, *row.rationales.values())]
        required = [*labels, *vars(Prompts()).values(), *texts]
        warmstart(output, required_texts=required, vocabulary_size=_ALL_PIECES)


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
