"""Two models on the same rows: differences of figures with paired bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r2d_edge.bootstrap import PAIRED_RESAMPLES, Estimate, difference
from r2d_edge.task import LabelSet
from train.scoring import FIGURES, OF_VOCABULARY, Record, Rows

EVALUATION = "evaluation.json"
# What of the settings must be the same for a figure to be compared.
_DEPENDS_ON = {"bertscore_f1": "bertscore", **dict.fromkeys(OF_VOCABULARY, "fact_vocabulary_sha256")}


def paired_difference(
    first: Sequence[Record],
    second: Sequence[Record],
    metric: str,
    *,
    labels: LabelSet | None = None,
    seed: int = 13,
    resamples: int = PAIRED_RESAMPLES,
) -> Estimate:
    """`first` minus `second` in one figure, with its 95 % interval over rows.

    Args:
        first: the records of one model.
        second: those of the other on the same rows, in any order.
        metric: a key of `scoring.FIGURES`.
        labels: the label set; by default the one that the probabilities are over, taken as ordered.
        seed: of the bootstrap.
        resamples: how many.

    Raises:
        ValueError: the rows, gold labels or references differ, or one of the two has no such figure.
    """
    labels = labels or _labels_of(first)
    one, other = Rows(first, labels), Rows(_aligned(first, second), labels)
    if metric not in FIGURES:
        raise ValueError(f"figure {metric!r} is unknown; known: {', '.join(FIGURES)}")
    pair = FIGURES[metric](one), FIGURES[metric](other)
    if pair[0] is None or pair[1] is None:
        lacking = [name for name, figure in zip(("first", "second"), pair, strict=True) if figure is None]
        raise ValueError(f"there is no {metric!r} in the records of the {' and the '.join(lacking)} model")
    return difference(pair[0], pair[1], seed=seed, resamples=resamples)


def compare(first: Path, second: Path, *, seed: int = 13, resamples: int = PAIRED_RESAMPLES) -> dict[str, Any]:
    """Every figure of `scoring.FIGURES` that two evaluations have in common, on the sets they share.

    The differences are `first` minus `second`. Left out are BERTScores by two encoders, terms by two vocabularies, and
    unsupported facts where the records were written by a version that did not count them.

    Args:
        first: a folder that `evaluate` wrote.
        second: another.
        seed: of the bootstrap.
        resamples: how many.

    Returns:
        JSON-ready: `first` and `second` (names of the models) and `sets`: by set and figure `value`, `low`,
        `high` and `first` and `second`, each model's own value.

    Raises:
        FileNotFoundError: a folder holds no evaluation.
        ValueError: they share no set, or a set differs in rows, gold labels or references.
    """
    reports = [_report(folder) for folder in (first, second)]
    shared = [name for name in reports[0]["sets"] if name in reports[1]["sets"]]
    if not shared:
        raise ValueError(f"{first} and {second} have no set in common: {[sorted(r['sets']) for r in reports]}")
    settings = [report["settings"] for report in reports]
    metrics = [
        metric
        for metric in FIGURES
        if (key := _DEPENDS_ON.get(metric)) is None or settings[0].get(key) == settings[1].get(key)
    ]
    labels = LabelSet(tuple(reports[0]["labels"]), reports[0]["label_kind"])
    found: dict[str, Any] = {}
    for name in shared:
        a, b = (read_records(folder / f"{name}.jsonl") for folder in (first, second))
        try:
            found[name] = _differences(a, b, metrics, labels, seed=seed, resamples=resamples)
        except ValueError as error:
            raise ValueError(f"set {name!r}: {error}") from None
    return {
        "first": reports[0]["model"],
        "second": reports[1]["model"],
        "resamples": resamples,
        "seed": seed,
        "sets": found,
    }


def _differences(
    first: Sequence[Record],
    second: Sequence[Record],
    metrics: Iterable[str],
    labels: LabelSet,
    *,
    seed: int,
    resamples: int,
) -> dict[str, dict[str, float]]:
    """Of those metrics that the records of both models suffice for."""
    one, two = Rows(first, labels), Rows(_aligned(first, second), labels)
    found = {}
    for metric in metrics:
        pair = FIGURES[metric](one), FIGURES[metric](two)
        if pair[0] is not None and pair[1] is not None:
            estimate = difference(pair[0], pair[1], seed=seed, resamples=resamples)
            found[metric] = {**estimate._asdict(), "first": pair[0].value(), "second": pair[1].value()}
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records that `evaluate` wrote for one set."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def excludes_zero(estimate: Mapping[str, float | None]) -> bool:
    """Whether an interval (`low`, `high`) lies on one side of 0."""
    low, high = estimate["low"], estimate["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def _report(folder: Path) -> dict[str, Any]:
    path = folder / EVALUATION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {EVALUATION}: make it with `python -m train evaluate`")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _labels_of(records: Iterable[Record]) -> LabelSet:
    names = next((tuple(record["probabilities"]) for record in records), ())
    return LabelSet(names, "ordered") if names else LabelSet((), "open")


def _aligned(first: Sequence[Record], second: Sequence[Record]) -> list[Record]:
    """`second` in the order of `first`."""
    by_id = {record["id"]: record for record in second}
    ids = [record["id"] for record in first]
    if alone := sorted({*ids} ^ {*by_id}):
        raise ValueError(f"the models were not evaluated on the same rows; in one only: {', '.join(alone[:10])}")
    for key in ("gold", "reference"):
        other = [record["id"] for record in first if record.get(key) != by_id[record["id"]].get(key)]
        if other:
            raise ValueError(f"the rows' {key} differs between the two evaluations: {', '.join(other[:10])}")
    return [by_id[name] for name in ids]
