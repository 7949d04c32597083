"""Figures that say how good labels and their probabilities are. NumPy only.

`gold` and `predicted` are label indices, int [n]; `probabilities` are float [n, k] over the whole label
set, rows summing to 1; `classes` is k. Of an ordered label set, index 0 is the most severe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, all [k]; a ratio whose denominator is 0 is 0."""

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    f1: npt.NDArray[np.float64]
    support: npt.NDArray[np.int64]


def confusion(gold: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Counts of gold (rows) against predicted labels (columns), [k, k].

    Raises:
        ValueError: no rows, shapes that differ, or an index outside 0..k-1.
    """
    _check_labels(gold, "gold", classes)
    _check_labels(predicted, "predicted", classes)
    if gold.shape != predicted.shape:
        raise ValueError(f"gold has {len(gold)} rows, predicted has {len(predicted)}")
    cells = np.bincount(gold.astype(np.int64) * classes + predicted.astype(np.int64), minlength=classes * classes)
    return cells.astype(np.int64).reshape(classes, classes)


def accuracy(gold: Labels, predicted: Labels) -> float:
    """Share of rows whose label is right."""
    _check_pair(gold, predicted)
    return float(np.mean(gold == predicted))


def per_class(gold: Labels, predicted: Labels, classes: int) -> ClassScores:
    """Precision, recall, F1 and support of each class."""
    table = confusion(gold, predicted, classes)
    hits = np.diag(table).astype(float)
    support, claimed = table.sum(axis=1), table.sum(axis=0)
    return ClassScores(
        precision=_ratio(hits, claimed),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + claimed),
        support=support,
    )


def macro_f1(gold: Labels, predicted: Labels, classes: int) -> float:
    """Plain mean of the F1 of every class of the label set.

    A class that neither gold nor predicted holds counts as 0, as scikit-learn's `f1_score` does with
    `labels=range(k), average="macro", zero_division=0`: on a small sample the figure is a low one
    rather than a flattering one.
    """
    return float(per_class(gold, predicted, classes).f1.mean())


def quadratic_kappa(gold: Labels, predicted: Labels, classes: int) -> float:
    """Cohen's weighted kappa with quadratic weights (Cohen 1968, Psychological Bulletin 70:213).

    1 is agreement, 0 what chance gives; nan where it is undefined (one and the same class throughout).
    """
    table = confusion(gold, predicted, classes).astype(float)
    steps = np.arange(classes)
    weights = (steps[:, None] - steps[None, :]) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    chance = float((weights * expected).sum())
    return 1.0 - float((weights * table).sum()) / chance if chance else float("nan")


def under_triage(gold: Labels, predicted: Labels) -> float:
    """Share of all rows that were given a less severe label than the gold one (ordered sets)."""
    _check_pair(gold, predicted)
    return float(np.mean(predicted > gold))


def over_triage(gold: Labels, predicted: Labels) -> float:
    """Share of all rows that were given a more severe label than the gold one (ordered sets)."""
    _check_pair(gold, predicted)
    return float(np.mean(predicted < gold))


def expected_calibration_error(gold: Labels, probabilities: Floats, bins: int = 15) -> float:
    """Gap between confidence and accuracy, averaged over equal-width bins of the best probability.

    Naeini et al. 2015 (AAAI) as used by Guo et al. 2017 (ICML, arXiv 1706.04599): bin m holds
    (m-1)/bins < confidence <= m/bins. 0 is perfect; the value depends on the number of bins.
    """
    _check_probabilities(gold, probabilities)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    confidence = probabilities.max(axis=1).astype(float)
    right = (probabilities.argmax(axis=1) == gold).astype(float)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(gold))


def brier(gold: Labels, probabilities: Floats) -> float:
    """Mean squared distance of the probabilities from the gold label, summed over classes (0 to 2).

    Brier 1950 (Monthly Weather Review 78:1), its original form for several classes.
    """
    _check_probabilities(gold, probabilities)
    truth = np.zeros(probabilities.shape)
    truth[np.arange(len(gold)), gold] = 1.0
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    n: int,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval over rows (Efron 1979, Annals of Statistics 7:1).

    Args:
        statistic: takes row indices [n], drawn with replacement, and returns the figure; resamples for
            which it is nan (undefined) are left out.
        n: the number of rows.
        resamples: how many resamples to draw.
        level: the share that the interval covers.
        seed: the same seed gives the same interval.

    Returns:
        Lower and upper bound; both nan if no resample gave a figure.
    """
    if n < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need n >= 1, resamples >= 1 and 0 < level < 1, not {n}, {resamples}, {level}")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, size=n)) for _ in range(resamples)], dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _check_labels(labels: Labels, name: str, classes: int) -> None:
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be integers [n] with n > 0, not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name} holds indices from {labels.min()} to {labels.max()}; there are {classes} classes")


def _check_pair(gold: Labels, predicted: Labels) -> None:
    if gold.shape != predicted.shape or gold.ndim != 1 or not len(gold):
        raise ValueError(f"gold {gold.shape} and predicted {predicted.shape} must be [n] with the same n > 0")


def _check_probabilities(gold: Labels, probabilities: Floats) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(gold):
        raise ValueError(f"probabilities {probabilities.shape} must be [n, k] with n = {len(gold)} as in gold")
    _check_labels(gold, "gold", probabilities.shape[1])
    sums = probabilities.sum(axis=1)
    if not np.all(np.isfinite(probabilities)) or probabilities.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        raise ValueError("probabilities must be finite, not negative, and sum to 1 in every row")
