"""Label figures as `bootstrap.Figure`s, so that each has an interval and a difference is drawn over the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from r2d_edge.bootstrap import Figure, Floats, divide

Indices = npt.NDArray[np.int64]


def macro_f1(gold: Indices, predicted: Indices, classes: int) -> Figure:
    """Macro-F1 over the whole label set, of class numbers [n]: that of `metrics.macro_f1`."""
    truth, claim = np.eye(classes)[gold], np.eye(classes)[predicted]

    def finish(sums: Floats) -> Floats:
        hits, support, claimed = np.split(sums, 3, axis=-1)
        return np.asarray(divide(2 * hits, support + claimed, 0.0).mean(axis=-1))

    return Figure(np.hstack([truth * claim, truth, claim]), finish)


def calibration_error(gold: Indices, probabilities: Floats, bins: int) -> Figure:
    """Expected calibration error of probabilities [n, k]: that of `metrics.expected_calibration_error`."""
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == gold).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.eye(bins)[place] * (right - confidence)[:, None]

    def finish(sums: Floats) -> Floats:
        return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1])

    return Figure(np.column_stack([gaps, np.ones(len(gaps))]), finish)
