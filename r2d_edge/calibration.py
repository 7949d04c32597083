"""Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2), and its test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
