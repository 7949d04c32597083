import math

import numpy as np
import pytest
from scipy import stats

from r2d_edge.bootstrap import Figure, difference, divide, estimate, mean, ratio

RNG = np.random.default_rng(5)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = RNG.exponential(size=80)
    found = estimate(mean(values), seed=1, resamples=20_000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_a_figure_that_is_no_mean() -> None:
    """The interval of a correlation, from sums, against scipy's resampling of pairs."""
    x = RNG.normal(size=60)
    y = 0.6 * x + RNG.normal(size=60)

    def finish(sums):
        n, a, b, aa, bb, ab = np.moveaxis(sums, -1, 0)
        return (n * ab - a * b) / np.sqrt((n * aa - a**2) * (n * bb - b**2))

    figure = Figure(np.column_stack([np.ones(60), x, y, x**2, y**2, x * y]), finish)
    expected = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    found = estimate(figure, seed=1, resamples=1500)
    assert found.value == pytest.approx(stats.pearsonr(x, y)[0])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_the_same_seed_gives_the_same_interval_whatever_the_width_of_the_figure() -> None:
    values = RNG.normal(size=40)
    wide = Figure(np.column_stack([values, np.ones(40), np.zeros((40, 300))]), lambda s: s[..., 0] / s[..., 1])
    assert estimate(mean(values), seed=4) == estimate(mean(values), seed=4) == pytest.approx(estimate(wide, seed=4))
    assert estimate(mean(values), seed=4) != estimate(mean(values), seed=5)


def test_blocks_of_resamples_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=30)
    whole = estimate(mean(values), seed=4, resamples=1000)
    monkeypatch.setattr("r2d_edge.bootstrap._CHUNK", 70)  # two resamples a block, and half a block at the end
    assert estimate(mean(values), seed=4, resamples=999).low == pytest.approx(whole.low, abs=0.05)
    assert estimate(mean(values), seed=4, resamples=1) != whole


def test_a_model_does_not_differ_from_itself() -> None:
    values = RNG.normal(size=50)
    assert difference(mean(values), mean(values.copy()), seed=1) == (0.0, 0.0, 0.0)


def test_a_known_shift_is_found_where_rows_are_paired() -> None:
    """Rows differ far more than models: only pairing shows the shift."""
    hard = RNG.normal(scale=5, size=200)
    first, second = hard + 0.5 + RNG.normal(scale=0.2, size=200), hard
    found = difference(mean(first), mean(second), seed=1)
    assert 0 < found.low < 0.5 < found.high < 0.6
    expected = stats.ttest_1samp(first - second, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)
    assert found.value == pytest.approx((first - second).mean())
    shuffled = difference(mean(first), mean(RNG.permutation(second)), seed=1)
    assert shuffled.low < 0 < shuffled.high
    assert difference(mean(second), mean(first), seed=1).value == -found.value


def test_rows_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 rows"):
        difference(mean([1, 2, 3]), mean([1, 2]), seed=1)
    with pytest.raises(ValueError, match="need a row"):
        estimate(mean([]), seed=1)


def test_resamples_without_a_figure_are_left_out() -> None:
    rare = ratio([0, 0, 1], [0, 0, 1])  # undefined in the resamples without the last row
    assert estimate(rare, seed=1) == (1.0, 1.0, 1.0)
    never = estimate(ratio([0, 0], [0, 0]), seed=1)
    assert all(math.isnan(value) for value in never)


def test_division() -> None:
    found = divide(np.array([1.0, 2.0]), np.array([2.0, 0.0]), 7.0)
    assert found.tolist() == [0.5, 7.0]
