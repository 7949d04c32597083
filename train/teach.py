"""A trained model writes for the rows of data files what a smaller one can learn from it.

Its rationales (sequence-level distillation: Kim & Rush, EMNLP 2016, D16-1139) become a source called `teacher`, its
label distributions (Hinton et al. 2015, arXiv 1503.02531) the column `teacher_probabilities`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge import calibration
from r2d_edge.task import LabelSet
from train.answering import Answer, Model
from train.data import DatasetError, Example, normal, read_dataset
from train.files import replace_file

SOURCE = "teacher"
_DIGITS = 8  # significant ones: a small probability must keep its logarithm
_OPEN = LabelSet((), "open")


@dataclass(frozen=True)
class Taught:
    """How many rows were written, and of how many the teacher said what.

    Attributes:
        rows: all.
        labelled: those with a gold label.
        disagreed: those whose gold label is not the teacher's.
        explained: those with a rationale of the teacher.
        unread: those that the runtime would not read at all; they are written as they came.
    """

    rows: int
    labelled: int
    disagreed: int
    explained: int
    unread: int


def teach(
    model: Model, data: Sequence[Path], output: Path, *, unlabelled: Sequence[Path] = (), others: Sequence[Model] = ()
) -> Taught:
    """Writes the rows of all files to one JSON Lines file, with the teacher's rationales and label distributions.

    Gold labels and other rationales are kept. The distributions are raw: what calibration did is undone, since
    softening is the student's recipe's to choose. Where the teacher's label is not the gold one it gives no
    rationale, for that would argue for another label than the row's.

    Args:
        model: the teacher.
        data: files in the dataset schema; rows may lack a label.
        output: the JSON Lines file, written whole or not at all.
        unlabelled: files whose labels, if any, are of another task and are left out.
        others: more teachers of the same labels, whose distributions are averaged with its own.

    Raises:
        DatasetError: a file has faults, or an id occurs in two of them.
        ValueError: the teacher's label set is open and it writes no rationales: it has nothing to teach. Or
            another teacher has other labels.
    """
    for other in others:
        if model.task.labels.kind == "open" or other.task.labels.labels != model.task.labels.labels:
            raise ValueError(
                f"{other.name} does not have the labels of {model.name} in their order, or they are open: no average"
            )
    if model.task.labels.kind == "open" and not model.task.explains:
        raise ValueError("this teacher has neither a list of labels nor rationales: it has nothing to teach")
    examples = [row for path in data for row in read_dataset(path, model.task.labels, unlabelled="taken")]
    for path in unlabelled:
        examples += [replace(row, label="") for row in read_dataset(path, _OPEN, unlabelled="taken")]
    twice = [row_id for row_id, count in Counter(example.id for example in examples).items() if count > 1]
    if twice:
        raise DatasetError("these files together", {"ids that occur in two files": twice})
    texts = [example.text for example in examples]
    answers = model.answer(texts, rationales=model.task.explains)
    teachers = [model, *others]
    said = [answers, *(other.answer(texts, rationales=False) for other in others)]
    rows = [
        _row(example, answer, teachers, opinions)
        for example, answer, opinions in zip(examples, answers, zip(*said, strict=True), strict=True)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return Taught(
        len(rows),
        sum(bool(example.label) for example in examples),
        sum(_disagree(example, answer) for example, answer in zip(examples, answers, strict=True)),
        sum(SOURCE in row["rationales"] for row in rows),
        sum(answer.label is None for answer in answers),
    )


def _row(example: Example, answer: Answer, teachers: Sequence[Model], opinions: Sequence[Answer]) -> dict[str, Any]:
    rationales = {source: text for source, text in example.rationales.items() if source != SOURCE}
    if answer.rationale and answer.rationale.strip() and not _disagree(example, answer):
        rationales[SOURCE] = answer.rationale
    row: dict[str, Any] = {"id": example.id, "text": example.text}
    if example.label:
        row["label"] = example.label
    row["rationales"] = rationales
    if all(opinion.probabilities for opinion in opinions):
        row["teacher_probabilities"] = _averaged(
            [
                raw_probabilities(opinion.probabilities, teacher.temperature)
                for teacher, opinion in zip(teachers, opinions, strict=True)
            ]
        )
    return {**row, "teacher": " + ".join(teacher.name for teacher in teachers)}


def _averaged(distributions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        label: float(f"{sum(one[label] for one in distributions) / len(distributions):.{_DIGITS}g}")
        for label in distributions[0]
    }


def _disagree(example: Example, answer: Answer) -> bool:
    return bool(example.label) and answer.label is not None and normal(answer.label) != normal(example.label)


def raw_probabilities(calibrated: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The probabilities of each label before they were calibrated with a temperature."""
    with np.errstate(divide="ignore"):  # a probability of 0 stays 0
        logarithms = np.log(np.array([list(calibrated.values())]))
    raw = calibration.probabilities(logarithms, 1 / temperature)[0].tolist()
    return {label: float(f"{p:.{_DIGITS}g}") for label, p in zip(calibrated, raw, strict=True)}
