import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from r2d_edge import metrics
from r2d_edge.bootstrap import difference
from r2d_edge.report.label_figures import calibration_error, macro_f1

RNG = np.random.default_rng(21)
GOLD = RNG.integers(0, 4, size=120)
FIRST = np.where(RNG.random(120) < 0.7, GOLD, RNG.integers(0, 4, size=120))
SECOND = np.where(RNG.random(120) < 0.9, FIRST, RNG.integers(0, 4, size=120))


def sklearn_f1(gold, said):
    return f1_score(gold, said, labels=range(4), average="macro", zero_division=0)


def test_macro_f1_is_that_of_scikit_learn_also_without_some_classes():
    assert macro_f1(GOLD, FIRST, 4).value() == pytest.approx(sklearn_f1(GOLD, FIRST))
    few = np.array([0, 0, 1]), np.array([0, 1, 1])
    assert macro_f1(*few, 4).value() == pytest.approx(sklearn_f1(*few))


def test_the_paired_interval_of_macro_f1_is_that_of_scipy():
    found = difference(macro_f1(GOLD, SECOND, 4), macro_f1(GOLD, FIRST, 4), seed=1, resamples=4000)
    expected = stats.bootstrap(
        (np.arange(120),),
        lambda rows: sklearn_f1(GOLD[rows], SECOND[rows]) - sklearn_f1(GOLD[rows], FIRST[rows]),
        vectorized=False,
        n_resamples=1200,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.value == pytest.approx(sklearn_f1(GOLD, SECOND) - sklearn_f1(GOLD, FIRST))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_calibration_error_of_rows_drawn_several_times():
    probabilities = RNG.dirichlet(np.ones(4), size=120)
    figure = calibration_error(probabilities.argmax(axis=1) == GOLD, probabilities.max(axis=1))
    assert figure.value() == pytest.approx(metrics.expected_calibration_error(GOLD, probabilities))
    drawn = RNG.integers(0, 120, size=120)
    again = float(figure.finish(figure.rows[drawn].sum(axis=0)))
    assert again == pytest.approx(metrics.expected_calibration_error(GOLD[drawn], probabilities[drawn]))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.55, 0.58, 0.95, 0.95])
    # Bins of 0.5: one with confidences of 0.7575 on the whole and 3 of 4 right.
    assert calibration_error([1, 0, 1, 1], confidence, bins=2).value() == pytest.approx(0.7575 - 0.75)
    assert calibration_error([1, 0, 1, 1], confidence, bins=10).value() == pytest.approx(
        (abs(1 - 0.55 - 0.58) + abs(2 - 1.9)) / 4
    )
