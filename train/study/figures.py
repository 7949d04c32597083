"""Figures of a cell, over seeds, and between cells, all from the rows of committed results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.bootstrap import Estimate, Figure, Floats, difference, mean
from r2d_edge.report.label_figures import calibration_error, macro_f1
from train.overlap import bleu_of
from train.study.results import NO_BLEU, Rows

_SEED = 13
# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond them the normal one is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.96

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """A figure that the tables report.

    Attributes:
        figure: works it out of rows, one row of sums for each.
        counts: which rows it can be worked out for, [n].
        made_with: what figures must share to be compared, out of a result's context; None where that is not stated.
    """

    title: str
    higher_is_better: bool
    places: int
    figure: Callable[[Rows], Figure]
    counts: Callable[[Rows], Mask]
    made_with: Callable[[Mapping[str, Any]], Any] = lambda context: None


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean and half width of its 95 % interval (None with a single seed)."""

    mean: float
    half: float | None
    seeds: int


def value(metric: Metric, rows: Rows) -> float:
    """The figure of one cell on one set; nan if no row has it."""
    figure, kept = metric.figure(rows), metric.counts(rows)
    return Figure(figure.rows[kept], figure.finish).value() if kept.any() else math.nan


def spread(values: Sequence[float]) -> Spread | None:
    """Mean over seeds with its 95 % t interval (Student 1908); None if no seed has the figure."""
    found = [item for item in values if not math.isnan(item)]
    if not found:
        return None
    n = len(found)
    if n == 1:
        return Spread(found[0], None, 1)
    quantile = _T[n - 2] if n - 2 < len(_T) else _NORMAL
    return Spread(float(np.mean(found)), float(quantile * np.std(found, ddof=1) / math.sqrt(n)), n)


def paired_difference(metric: Metric, first: Mapping[int, Rows], second: Mapping[int, Rows]) -> Estimate | None:
    """The difference first − second, averaged over common seeds, with its 95 % paired bootstrap interval.

    Rows are resampled, both methods and all seeds on the same ones; so the interval speaks of other notes of
    the same kind, given these seeds.

    Args:
        metric: the figure.
        first: rows by seed.
        second: rows by seed.

    Returns:
        None without a common seed, or a row for which all have the figure.
    """
    seeds = sorted({*first} & {*second})
    runs = [*(first[seed] for seed in seeds), *(second[seed] for seed in seeds)]
    if not runs:
        return None
    shared = set(runs[0].ids).intersection(*(rows.ids for rows in runs))
    order = [row_id for row_id in runs[0].ids if row_id in shared]
    places = [_places(rows, order) for rows in runs]
    kept = np.all([metric.counts(rows)[at] for rows, at in zip(runs, places, strict=True)], axis=0)
    if not kept.any():
        return None
    figures = []
    for rows, at in zip(runs, places, strict=True):
        figure = metric.figure(rows)
        figures.append(Figure(figure.rows[at][kept], figure.finish))
    return difference(_average(figures[: len(seeds)]), _average(figures[len(seeds) :]), seed=_SEED)


def _places(rows: Rows, order: Sequence[str]) -> npt.NDArray[np.int64]:
    at = {row_id: place for place, row_id in enumerate(rows.ids)}
    return np.array([at[row_id] for row_id in order], dtype=np.int64)


def _average(figures: Sequence[Figure]) -> Figure:
    """The mean of figures over the same rows, as one figure."""
    ends = np.cumsum([figure.rows.shape[1] for figure in figures])[:-1]

    def finish(sums: Floats) -> Floats:
        parts = np.split(sums, ends, axis=-1)
        out: Floats = np.mean([figure.finish(part) for figure, part in zip(figures, parts, strict=True)], axis=0)
        return out

    return Figure(np.concatenate([figure.rows for figure in figures], axis=1), finish)


def _macro_f1(rows: Rows) -> Figure:
    is_open = not rows.labels
    classes = 1 + int(max(rows.gold.max(), rows.label.max())) if is_open else len(rows.labels)
    return macro_f1(rows.gold, rows.label, classes, of_present=is_open)


def _bleu(rows: Rows) -> Figure:
    # A rationale of k words has k - n + 1 n-grams, so their number need not be kept.
    totals = np.maximum(rows.bleu[:, :1] - np.arange(4), 0)
    return Figure(np.concatenate([rows.bleu, totals], axis=1).astype(float), bleu_of)


def _all(rows: Rows) -> Mask:
    return np.ones(len(rows.ids), dtype=bool)


METRICS: Mapping[str, Metric] = {
    "macro_f1": Metric("macro-F1", True, 3, _macro_f1, _all),
    "accuracy": Metric("accuracy", True, 3, lambda rows: mean(rows.label == rows.gold), _all),
    "ece": Metric(
        "ECE",
        False,
        3,
        lambda rows: calibration_error(rows.label == rows.gold, np.nan_to_num(rows.confidence)),
        lambda rows: ~np.isnan(rows.confidence),
    ),
    "bertscore": Metric(
        "BERTScore",
        True,
        3,
        lambda rows: mean(np.nan_to_num(rows.bertscore)),
        lambda rows: ~np.isnan(rows.bertscore),
        lambda context: (context.get("bertscore") or {}).get("encoder_sha256"),
    ),
    "bleu": Metric("BLEU", True, 1, _bleu, lambda rows: rows.bleu[:, 0] != NO_BLEU),
    "judge": Metric(
        "judge",
        True,
        2,
        lambda rows: mean(np.nan_to_num(rows.judge)),
        lambda rows: ~np.isnan(rows.judge),
        lambda context: context.get("judge", {}).get("identity"),
    ),
}
