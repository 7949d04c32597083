import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from r2d_edge.calibration import fit_temperature, negative_log_likelihood, probabilities


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
