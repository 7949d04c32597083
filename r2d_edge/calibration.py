"""Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def probabilities(log_probabilities: FloatArray, temperature: float) -> FloatArray:
    """Calibrated probabilities [n, k] from raw label log-probabilities [n, k]."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    scaled = log_probabilities / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def negative_log_likelihood(log_probabilities: FloatArray, gold: npt.NDArray[np.int64], temperature: float) -> float:
    """Mean negative log-likelihood (nats) of the gold labels [n] at a temperature."""
    scaled = log_probabilities / temperature
    scaled = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
    return float(-scaled[np.arange(len(gold)), gold].mean())


def fit_temperature(
    log_probabilities: FloatArray, gold: npt.NDArray[np.int64], bounds: tuple[float, float] = (0.05, 20.0)
) -> float:
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
