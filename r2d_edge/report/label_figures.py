"""Label figures as `bootstrap.Figure`s, so that each has an interval and a difference is drawn over the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from r2d_edge.bootstrap import Figure, Floats, divide

Indices = npt.NDArray[np.int64]

ECE_BINS = 15


def macro_f1(gold: Indices, predicted: Indices, classes: int, *, of_present: bool = False) -> Figure:
    """Macro-F1 of class numbers [n], -1 for no label: that of `metrics.macro_f1`.

    Args:
        of_present: average over the classes that gold or predicted hold (scikit-learn's own default, and the
            only choice for free text) instead of over the whole label set.
    """
    truth, claim = one_hot(gold, classes), one_hot(predicted, classes)

    def finish(sums: Floats) -> Floats:
        hits, support, claimed = np.split(sums, 3, axis=-1)
        f1 = divide(2 * hits, support + claimed, 0.0)
        if of_present:
            return divide(f1.sum(axis=-1), ((support + claimed) > 0).sum(axis=-1))
        return np.asarray(f1.mean(axis=-1))

    return Figure(np.hstack([truth * claim, truth, claim]), finish)


def calibration_error(right: npt.ArrayLike, confidence: Floats, bins: int = ECE_BINS) -> Figure:
    """Expected calibration error over equal-width bins: that of `metrics.expected_calibration_error`.

    Its intervals lie on the high side, as the noise of a resample opens gaps of its own.

    Args:
        right: whether each row's label is the gold one, [n].
        confidence: the probability of that label, [n].
        bins: how many.
    """
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = one_hot(place, bins) * (np.asarray(right, dtype=np.float64) - confidence)[:, None]

    def finish(sums: Floats) -> Floats:
        return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1])

    return Figure(np.column_stack([gaps, np.ones(len(gaps))]), finish)


def one_hot(numbers: Indices, classes: int) -> Floats:
    """[n, classes]; -1 is a row of zeros."""
    return np.asarray((numbers[:, None] == np.arange(classes)).astype(np.float64))
