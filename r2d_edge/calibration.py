"""Temperatures, thresholds of abstention with a bound on the risk of what is decided, and conformal thresholds.

Temperature scaling is that of Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Fixed before any data is seen: the bound below holds for no threshold that was chosen by looking.
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(99, -1, -1))
STARTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0)


def probabilities(log_probabilities: FloatArray, temperature: float) -> FloatArray:
    """Calibrated probabilities [n, k] from raw label log-probabilities [n, k]."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    scaled = log_probabilities / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def negative_log_likelihood(log_probabilities: FloatArray, gold: IntArray, temperature: float) -> float:
    """Mean negative log-likelihood (nats) of the gold labels [n] at a temperature."""
    scaled = log_probabilities / temperature
    scaled = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
    return float(-scaled[np.arange(len(gold)), gold].mean())


def fit_temperature(log_probabilities: FloatArray, gold: IntArray, bounds: tuple[float, float] = (0.05, 20.0)) -> float:
    """The temperature with the least negative log-likelihood, by golden-section search on its logarithm.

    The likelihood is convex in 1/temperature, so it has one minimum over the temperature too.

    Args:
        log_probabilities: raw label log-probabilities [n, k].
        gold: label indices [n].
        bounds: where to look.
    """
    if len(gold) == 0:
        raise ValueError("no rows to fit a temperature on")
    low, high = np.log(bounds[0]), np.log(bounds[1])
    ratio = (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    loss_left, loss_right = (negative_log_likelihood(log_probabilities, gold, float(np.exp(x))) for x in (left, right))
    while high - low > 1e-5:
        if loss_left < loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - ratio * (high - low)
            loss_left = negative_log_likelihood(log_probabilities, gold, float(np.exp(left)))
        else:
            low, left, loss_left = left, right, loss_right
            right = low + ratio * (high - low)
            loss_right = negative_log_likelihood(log_probabilities, gold, float(np.exp(right)))
    return float(np.exp((low + high) / 2))


def crossfitted(
    log_probabilities: FloatArray,
    gold: IntArray,
    settings: Sequence[str] | None = None,
    *,
    folds: int = 5,
    repeats: int = 10,
    seed: int = 13,
) -> FloatArray:
    """Probabilities of every row at a temperature that was fitted without it.

    What a bundle's temperature does on new notes: fitted on all rows, it is fitted on each of them too.

    Args:
        log_probabilities: raw label log-probabilities [n, k].
        gold: label indices [n].
        settings: where each row comes from; each setting then has a temperature of its own.
        folds: so many parts take turns at being left out.
        repeats: so many times the rows are dealt anew.
        seed: of the dealing.

    Returns:
        [repeats, n, k].

    Raises:
        ValueError: a setting has fewer rows than there are folds.
    """
    places = np.zeros(len(gold), dtype=np.int64) if settings is None else np.unique(settings, return_inverse=True)[1]
    counts = np.bincount(places, minlength=1)
    if folds < 2 or counts.min() < folds:
        raise ValueError(f"{counts.min()} rows of one setting cannot be cross-fitted in {folds} folds")
    found = np.empty((repeats, *log_probabilities.shape))
    generator = np.random.default_rng(seed)
    for repeat in range(repeats):
        for place in range(len(counts)):
            rows = generator.permutation(np.flatnonzero(places == place))
            for fold in range(folds):
                out = np.arange(len(rows)) % folds == fold
                temperature = fit_temperature(log_probabilities[rows[~out]], gold[rows[~out]])
                found[repeat, rows[out]] = probabilities(log_probabilities[rows[out]], temperature)
    return found


def error_if_calibrated(
    calibrated: FloatArray, *, bins: int = 15, draws: int = 1000, seed: int = 13
) -> tuple[float, float, float]:
    """The expected calibration error that these probabilities would show if they were right.

    ECE is a sum of absolute gaps, so on few rows it is above zero for a perfect model: a measured ECE
    means something only beside this (Bröcker and Smith 2007, Weather and Forecasting 22:3, draw their
    consistency bars the same way).

    Args:
        calibrated: probabilities [n, k].
        bins: as for `metrics.expected_calibration_error`.
        draws: so many times each row's best label is drawn right with its own probability.
        seed: of the draws.

    Returns:
        Mean, 2.5th and 97.5th percentile.
    """
    from r2d_edge.metrics import expected_calibration_error

    best, confidence = calibrated.argmax(axis=1), calibrated.max(axis=1)
    generator = np.random.default_rng(seed)
    other = (best + 1) % calibrated.shape[1]
    errors = [
        expected_calibration_error(np.where(generator.random(len(best)) < confidence, best, other), calibrated, bins)
        for _ in range(draws)
    ]
    low, high = np.percentile(errors, [2.5, 97.5])
    return float(np.mean(errors)), float(low), float(high)


def debiased_error(gold: IntArray, calibrated: FloatArray, bins: int = 15) -> float:
    """Root mean square calibration error of the best label, less what sampling alone adds to it.

    The estimator of Kumar, Liang and Ma 2019 (NeurIPS, arXiv 1909.10155), section 4, over equal-width bins;
    bins of one row are left out. 0 where the measured error is no larger than sampling explains.

    Args:
        gold: label indices [n].
        calibrated: probabilities [n, k].
        bins: the number of bins.
    """
    confidence = calibrated.max(axis=1)
    right = (calibrated.argmax(axis=1) == gold).astype(float)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    square = 0.0
    for one in np.unique(place):
        rows = place == one
        count = int(rows.sum())
        if count > 1:
            accuracy = right[rows].mean()
            noise = accuracy * (1 - accuracy) / (count - 1)
            square += count / len(gold) * ((confidence[rows].mean() - accuracy) ** 2 - noise)
    return float(np.sqrt(max(0.0, square)))


@dataclass(frozen=True)
class Abstention:
    """A threshold of abstention, or why there is none.

    Attributes:
        threshold: the least one that qualifies; None where none does.
        decided: so many of the rows are then decided.
        errors: so many of those are errors.
        rows: all rows.
        bound: what the test takes the risk of the decided to be at most. Where no threshold qualifies, the
            least that any start reached.
        needed: so many decided rows are needed at one threshold even if none of them is an error.
    """

    threshold: float | None
    decided: int
    errors: int
    rows: int
    bound: float
    needed: int


def rows_needed(risk: float, confidence: float) -> int:
    """How many rows without one error show that a risk is at most `risk`, in the test of `abstention`."""
    return math.ceil(math.log((1 - confidence) / len(STARTS)) / math.log1p(-risk))


def abstention(confidences: FloatArray, errors: npt.NDArray[np.bool_], risk: float, confidence: float) -> Abstention:
    """The least threshold for which the risk among the decided rows is shown to be at most a declared one.

    With probability `confidence` over the rows drawn, P(error | confidence of a note >= threshold) <= risk. This is
    the fixed-sequence test with several starts of Angelopoulos et al. 2021, "Learn then Test" (arXiv 2110.01052,
    algorithm 1), with exact binomial p-values: from each of `STARTS` the thresholds are tested downward, each at an
    equal share of the error allowed, until one fails. That the thresholds are fixed in advance
    makes the number of errors binomial given how many rows are decided. The guarantee is that of selective
    classification (Geifman and El-Yaniv 2017, NeurIPS).

    Args:
        confidences: of each row, [n]; -inf for a row that is abstained on in any case.
        errors: whether deciding it as planned is an error, [n].
        risk: the declared risk, between 0 and 1.
        confidence: with which it shall hold.

    Raises:
        ValueError: a share is not between 0 and 1, or the arrays do not match.
    """
    from r2d_edge.metrics import binomial_tail, share_at_most

    if not (0 < risk < 1 and 0 < confidence < 1):
        raise ValueError(f"risk and confidence must lie between 0 and 1, not {risk} and {confidence}")
    if confidences.shape != errors.shape or confidences.ndim != 1:
        raise ValueError(f"confidences {confidences.shape} and errors {errors.shape} must both be [n]")
    allowed = (1 - confidence) / len(STARTS)

    def decided(threshold: float) -> tuple[int, int]:
        rows = confidences >= threshold
        return int(rows.sum()), int(errors[rows].sum())

    passed = []
    for start in STARTS:
        for threshold in (value for value in THRESHOLDS if value <= start):
            count, wrong = decided(threshold)
            if not count or binomial_tail(wrong, count, risk) > allowed:
                break
            passed.append(threshold)
    needed = rows_needed(risk, confidence)
    if not passed:
        tested = [decided(start) for start in STARTS]
        least = min((share_at_most(wrong, count, 1 - allowed) for count, wrong in tested if count), default=1.0)
        return Abstention(None, 0, 0, len(errors), least, needed)
    count, wrong = decided(min(passed))
    return Abstention(min(passed), count, wrong, len(errors), share_at_most(wrong, count, 1 - allowed), needed)


def conformal_thresholds(probabilities: FloatArray, gold: IntArray, coverage: float) -> FloatArray:
    """Class-conditional conformal thresholds on 1 - probability, [k] (see `policy.LabelSetRule`).

    Of each class, the ceil((m + 1) * coverage)-th smallest 1 - probability of the gold label among its m rows;
    with too few rows for that rank, 1: the label is then in every set. A new note of that class has its label in
    its set with probability `coverage` or more, for exchangeable notes (Vovk 2012, "Conditional validity of
    inductive conformal predictors", label-conditional; Sadinle, Lei and Wasserman 2019, JASA 114:525).

    Args:
        probabilities: calibrated, [n, k], by a model and a temperature fitted on other rows.
        gold: label indices [n].
        coverage: between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, not {coverage}")
    scores = 1 - probabilities[np.arange(len(gold)), gold]
    thresholds = np.ones(probabilities.shape[1])
    for label in range(len(thresholds)):
        own = np.sort(scores[gold == label])
        # The small number takes back what 0.9 * 10 has too much in binary.
        rank = math.ceil((len(own) + 1) * coverage - 1e-9)
        if rank <= len(own):
            thresholds[label] = own[rank - 1]
    return thresholds
