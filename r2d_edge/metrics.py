"""Figures that say how good labels and their probabilities are. NumPy only.

`gold` and `predicted` are label indices, int [n]; `probabilities` are float [n, k] over the whole label
set, rows summing to 1; `classes` is k. Of an ordered label set, index 0 is the most severe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

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


def negative_log_likelihood(gold: Labels, probabilities: Floats) -> float:
    """Mean negative logarithm (nats) of the gold label's probability; infinite where one is 0."""
    _check_probabilities(gold, probabilities)
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities[np.arange(len(gold)), gold]).mean())


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram: low < confidence <= high; the means are nan where it is empty."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(gold: Labels, probabilities: Floats, bins: int = 10) -> list[Bin]:
    """The bins of a reliability diagram of the best label, cut as in `expected_calibration_error`."""
    _check_probabilities(gold, probabilities)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}")
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == gold
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        rows = place == number
        means = (float(confidence[rows].mean()), float(right[rows].mean())) if rows.any() else (math.nan, math.nan)
        found.append(Bin(number / bins, (number + 1) / bins, int(rows.sum()), *means))
    return found


def risk_coverage(confidences: Floats, losses: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The risk-coverage curve: what a model that decides only its surest rows gets wrong.

    Args:
        confidences: how sure each row is, [n].
        losses: what deciding it costs, [n]: 1 for an error and 0 for none, or any other.

    Returns:
        Shares decided 1/n ... 1, and the mean loss of the rows decided, both [n]. Within rows of equal confidence
        the losses are averaged, so the order of the rows does not matter.
    """
    total = _selected_losses(confidences, losses)
    decided = np.arange(1, len(total) + 1)
    return decided / len(total), total / decided


def aurc(confidences: Floats, losses: Floats) -> float:
    """Area under the risk-coverage curve: the mean of its risks (Geifman, Uziel and El-Yaniv 2019, ICLR)."""
    return float(risk_coverage(confidences, losses)[1].mean())


def augrc(confidences: Floats, losses: Floats) -> float:
    """Area under the generalized risk-coverage curve (Traub et al. 2024, NeurIPS, arXiv 2407.01032).

    The generalized risk is the loss of the rows decided over all rows; the area is the average risk of an error
    that is not noticed. Of 0/1 errors it is (1 - AUROC) * a * (1 - a) + (1 - a)^2 / 2 with accuracy a and the AUROC
    of telling right from wrong.
    """
    total = np.concatenate([[0.0], _selected_losses(confidences, losses)])
    return float((total[1:] + total[:-1]).sum() / 2 / (len(total) - 1) ** 2)


def _selected_losses(confidences: Floats, losses: Floats) -> npt.NDArray[np.float64]:
    """Sum of the losses of the 1, 2, ... n surest rows, [n]."""
    if confidences.shape != losses.shape or confidences.ndim != 1 or not len(losses):
        raise ValueError(f"confidences {confidences.shape} and losses {losses.shape} must be [n] with the same n > 0")
    if np.isnan(confidences).any() or not np.isfinite(losses).all():
        raise ValueError("confidences must be numbers and losses finite")
    _, place, count = np.unique(-confidences, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=losses.astype(float)) / count
    return np.asarray(np.cumsum(np.repeat(means, count)))


def kullback_leibler(first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """KL(first || second) of each row of two arrays of distributions [n, k], in nats [n].

    Infinite where `second` gives no probability to what `first` has some for.
    """
    _check_distributions(first, second)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(first > 0, first * np.log(first / second), 0.0)
    return np.asarray(np.maximum(terms.sum(axis=1), 0.0))


def jensen_shannon(first: Floats, second: Floats) -> npt.NDArray[np.float64]:
    """Jensen-Shannon divergence of each row (Lin 1991, IEEE Trans. Inf. Theory 37:1), in nats [n], 0 to ln 2."""
    middle = (first + second) / 2
    return (kullback_leibler(first, middle) + kullback_leibler(second, middle)) / 2


def margins(probabilities: Floats) -> npt.NDArray[np.float64]:
    """How far the best label of each row lies above the second best, [n]."""
    best = np.sort(probabilities, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], dtype=np.float64)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test: is each side as often the only one that is right?

    Args:
        first_only: rows that the first got right and the second wrong.
        second_only: the other way round. With none of either, 1.
    """
    if first_only < 0 or second_only < 0:
        raise ValueError(f"counts must not be negative: {first_only}, {second_only}")
    both = first_only + second_only
    return min(1.0, 2 * binomial_tail(min(first_only, second_only), both, 0.5))


def wilson(count: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a share (Wilson 1927, JASA 22:158); nan without rows."""
    _check_count(count, rows, level)
    if not rows:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = count / rows, z * z / rows
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / rows + weight / (4 * rows)) / (1 + weight)
    # At the ends the bound is exactly 0 or 1; the rounding of the root must not move it.
    return (max(0.0, middle - half) if count else 0.0), (min(1.0, middle + half) if count < rows else 1.0)


def share_at_most(count: int, rows: int, level: float = 0.95) -> float:
    """One-sided exact upper bound of a share (Clopper and Pearson 1934, Biometrika 26:404).

    For a count of 0 it is 1 - (1 - level)^(1/rows): about 3/rows at 95 %, the rule of three.
    """
    _check_count(count, rows, level)
    if count == rows:
        return 1.0
    return _root(lambda share: binomial_tail(count, rows, share) - (1 - level))


def net_share_at_most(first: float, second: float, rows: int, level: float = 0.95) -> float:
    """One-sided upper bound of the difference between two shares of the same rows that exclude each other.

    Such as rows that moved up, less rows that moved down. The score bound of Tango 1998 (Statistics in Medicine
    17:891), which is that of paired proportions: only the rows on which the pairs differ count.

    Args:
        first: rows of the one kind.
        second: rows of the other; need not be whole numbers.
        rows: all rows.
        level: the confidence.
    """
    if first < 0 or second < 0 or rows < 1 or first + second > rows or not 0 < level < 1:
        raise ValueError(f"need two counts within the rows and 0 < level < 1, not {first}, {second}, {rows}, {level}")
    z = NormalDist().inv_cdf(level)
    net = (first - second) / rows
    return _root(lambda bound: _tango_score(first, second, rows, bound) + z, net)


def _tango_score(first: float, second: float, rows: int, difference: float) -> float:
    """How many standard errors the observed difference lies above a supposed one, under which the errors are."""
    linear = (2 * rows - first + second) * difference - first - second
    constant = -second * difference * (1 - difference)
    share = (math.sqrt(linear * linear - 8 * rows * constant) - linear) / (
        4 * rows
    )  # of the second kind, at most likely
    variance = rows * (2 * share + difference * (1 - difference))
    gap = first - second - rows * difference
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)


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


def binomial_tail(count: int, rows: int, share: float) -> float:
    """P(X <= count) for X binomial(rows, share)."""
    if share <= 0 or count >= rows:
        return 1.0
    if share >= 1:
        return 0.0
    steps = np.arange(1, count + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((rows - steps + 1) / steps))])
    taken = np.arange(count + 1)
    logs = ways + taken * math.log(share) + (rows - taken) * math.log1p(-share)
    highest = logs.max()
    return min(1.0, float(np.exp(highest) * np.exp(logs - highest).sum()))


def _root(falling: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Where a falling function crosses 0, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _check_count(count: int, rows: int, level: float) -> None:
    if not 0 <= count <= rows or not 0 < level < 1:
        raise ValueError(f"need 0 <= count <= rows and 0 < level < 1, not {count}, {rows}, {level}")


def _check_distributions(first: Floats, second: Floats) -> None:
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"distributions {first.shape} and {second.shape} must both be [n, k]")


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
