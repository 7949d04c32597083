import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from r2d_edge.calibration import (
    crossfitted,
    debiased_error,
    error_if_calibrated,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
)
from r2d_edge.metrics import expected_calibration_error


def _scores(seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 5)) * 2
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gold = np.array([rng.choice(5, p=row) for row in true])
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), gold


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_finds_the_temperature_that_scipy_finds(factor: float) -> None:
    scores, gold = _scores(1)
    overconfident = scores * factor
    expected = minimize_scalar(
        lambda t: negative_log_likelihood(overconfident, gold, float(np.exp(t))), bounds=(-3, 3), method="bounded"
    )
    fitted = fit_temperature(overconfident, gold)
    assert fitted == pytest.approx(float(np.exp(expected.x)), rel=1e-3)
    assert fitted == pytest.approx(factor, rel=0.25)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_probabilities_sum_to_one_and_keep_the_order(seed: int, temperature: float) -> None:
    scores, _ = _scores(seed, rows=5)
    found = probabilities(scores, temperature)
    assert found.sum(axis=1) == pytest.approx(np.ones(5))
    assert (found.argmax(1) == scores.argmax(1)).all()


def test_refuses() -> None:
    with pytest.raises(ValueError, match="positive"):
        probabilities(np.zeros((1, 2)), 0.0)
    with pytest.raises(ValueError, match="no rows"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_a_row_is_judged_at_a_temperature_fitted_without_it() -> None:
    scores, gold = _scores(2, rows=60)
    found = crossfitted(scores * 3, gold, folds=3, repeats=2)
    assert found.shape == (2, 60, 5)
    assert np.array_equal(found, crossfitted(scores * 3, gold, folds=3, repeats=2))
    assert not np.array_equal(found[0], found[1])
    temperatures = [
        fit_temperature((scores * 3)[rows], gold[rows])
        for rows in (_others(found[0], scores * 3, row) for row in range(3))
    ]
    for row, temperature in enumerate(temperatures):
        assert probabilities(scores[row : row + 1] * 3, temperature)[0] == pytest.approx(found[0, row], abs=1e-4)
    changed = gold.copy()
    changed[0] = (gold[0] + 1) % 5
    assert crossfitted(scores * 3, changed, folds=3, repeats=1)[0, 0] == pytest.approx(found[0, 0])


def _others(found: np.ndarray, scores: np.ndarray, row: int) -> np.ndarray:
    """The rows that do not share the temperature of `row`, read off the ratios of log-probabilities."""
    logs = np.log(found)
    inverse = (logs[:, 0] - logs[:, 1]) / (scores[:, 0] - scores[:, 1])
    return np.flatnonzero(~np.isclose(inverse, inverse[row], rtol=1e-6))


def test_settings_are_fitted_apart() -> None:
    scores, gold = _scores(3, rows=1000)
    settings = ["loud"] * 500 + ["quiet"] * 500
    skewed = np.concatenate([scores[:500] * 4, scores[500:] * 0.5])
    together, apart = crossfitted(skewed, gold, repeats=2), crossfitted(skewed, gold, settings, repeats=2)

    def loss(found: np.ndarray) -> float:
        return float(-np.log(found[:, np.arange(1000), gold]).mean())

    assert loss(apart) == pytest.approx(negative_log_likelihood(scores, gold, 1.0), abs=0.01)
    assert loss(together) > loss(apart) + 0.05
    with pytest.raises(ValueError, match="3 rows"):
        crossfitted(scores, gold, ["few"] * 3 + ["many"] * 997)


def test_what_a_calibrated_model_would_show() -> None:
    scores, gold = _scores(4, rows=2000)
    true = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    mean, low, high = error_if_calibrated(true, draws=300)
    assert low < mean < high
    assert low < expected_calibration_error(gold, true) < high
    few, _, _ = error_if_calibrated(true[:100], draws=300)
    assert few > 3 * mean  # few rows alone make an error
    sharp = probabilities(scores, 0.4)
    assert expected_calibration_error(gold, sharp) > error_if_calibrated(sharp, draws=300)[2]


def test_debiased_error_by_hand() -> None:
    calibrated = np.array([[0.7, 0.3]] * 4 + [[0.95, 0.05]])  # the last is alone in its bin
    gold = np.array([0, 0, 0, 1, 0])
    expected = 4 / 5 * ((0.7 - 0.75) ** 2 - 0.75 * 0.25 / 3)
    assert expected < 0
    assert debiased_error(gold, calibrated) == 0
    gold = np.array([1, 1, 1, 1, 0])
    assert debiased_error(gold, calibrated) == pytest.approx(np.sqrt(4 / 5) * 0.7)
    gold = np.array([1, 1, 1, 0, 0])
    assert debiased_error(gold, calibrated) == pytest.approx(np.sqrt(4 / 5 * (0.45**2 - 0.25 * 0.75 / 3)))


def test_debiased_error_does_not_grow_with_fewer_rows() -> None:
    scores, gold = _scores(5, rows=20_000)
    sharp = probabilities(scores, 0.5)
    whole = debiased_error(gold, sharp)
    parts = [debiased_error(gold[part::50], sharp[part::50]) ** 2 for part in range(50)]
    assert np.sqrt(np.mean(parts)) == pytest.approx(whole, rel=0.1)
