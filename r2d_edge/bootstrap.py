"""Bootstrap intervals of figures that depend on their rows through sums alone.

Accuracy, macro-F1, kappa, calibration error, BLEU, chrF and every mean are such figures: each row gives a
few numbers, the numbers are summed, and the figure is worked out from the sums. A resample then is a vector
of how often each row was drawn, and thousands of resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
PAIRED_RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 4_000_000  # numbers held at once for a block of resamples


@dataclass(frozen=True)
class Figure:
    """A figure of n rows.

    Attributes:
        rows: what each row adds to the sums, [n, m].
        finish: sums [..., m] to the figure [...], nan where it is undefined.
    """

    rows: Floats
    finish: Callable[[Floats], Floats]

    def value(self) -> float:
        """The figure of all rows."""
        return float(self.finish(self.rows.sum(axis=0)))


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


def mean(values: npt.ArrayLike) -> Figure:
    """The mean of one number a row, [n]."""
    column = np.asarray(values, dtype=np.float64)
    return ratio(column, np.ones(len(column)))


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Figure:
    """The sum of one column over the sum of another, both [n]; nan over 0."""
    return Figure(np.column_stack([numerator, denominator]).astype(np.float64), _quotient)


def estimate(figure: Figure, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
    """The figure with its percentile bootstrap interval over rows (Efron 1979, Annals of Statistics 7:1).

    Resamples in which the figure is undefined are left out; the bounds are nan if that leaves none.
    """
    return _interval(figure.value(), _resampled([figure], seed, resamples)[0], level)


def difference(
    first: Figure, second: Figure, *, seed: int, resamples: int = PAIRED_RESAMPLES, level: float = LEVEL
) -> Estimate:
    """`first` minus `second` with its paired bootstrap interval (Koehn 2004, EMNLP).

    Row i of both must be of the same case: each resample draws the same rows for both.

    Raises:
        ValueError: they have different numbers of rows.
    """
    if len(first.rows) != len(second.rows):
        raise ValueError(f"figures of {len(first.rows)} and {len(second.rows)} rows are not paired")
    a, b = _resampled([first, second], seed, resamples)
    return _interval(first.value() - second.value(), a - b, level)


def _resampled(figures: list[Figure], seed: int, resamples: int) -> list[Floats]:
    """Each figure in each resample, [resamples]; all figures see the same draws."""
    n = len(figures[0].rows)
    if n < 1 or resamples < 1:
        raise ValueError(f"need a row and a resample or more, not {n} and {resamples}")
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // max(n, *(figure.rows.shape[1] for figure in figures)))
    blocks: list[list[Floats]] = [[] for _ in figures]
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = rng.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        for block, figure in zip(blocks, figures, strict=True):
            block.append(figure.finish(times @ figure.rows))
    return [np.concatenate(block) for block in blocks]


def _interval(value: float, samples: Floats, level: float) -> Estimate:
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def _quotient(sums: Floats) -> Floats:
    return divide(sums[..., 0], sums[..., 1])


def divide(numerator: Floats, denominator: Floats, otherwise: float = float("nan")) -> Floats:
    """Quotients of arrays of one shape, `otherwise` where the denominator is 0."""
    out = np.full(np.shape(numerator), otherwise)
    quotient: Floats = np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)
    return quotient
