import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from r2d_edge.calibration import (
    STARTS,
    THRESHOLDS,
    abstention,
    conformal_thresholds,
    crossfitted,
    debiased_error,
    error_if_calibrated,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
    rows_needed,
)
from r2d_edge.metrics import expected_calibration_error
from r2d_edge.policy import label_sets


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


def _few_rows_named(probabilities: np.ndarray, gold: np.ndarray, label: int) -> np.ndarray:
    return 1 - probabilities[gold == label, label]


def test_conformal_thresholds_by_hand() -> None:
    own = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    rows = np.column_stack([own, 1 - own])
    # Nine rows: the rank at 0.9 is 9, the greatest score; at 0.95 it is 10, of which there are too few.
    assert conformal_thresholds(rows, np.zeros(9, dtype=int), 0.9) == pytest.approx([0.9, 1.0])
    assert conformal_thresholds(rows, np.zeros(9, dtype=int), 0.95) == pytest.approx([1.0, 1.0])
    assert conformal_thresholds(rows, np.zeros(9, dtype=int), 0.5) == pytest.approx([0.5, 1.0])
    with pytest.raises(ValueError, match="coverage"):
        conformal_thresholds(rows, np.zeros(9, dtype=int), 1.0)


@pytest.mark.parametrize("coverage", [0.6, 0.8, 0.9])
def test_conformal_thresholds_are_quantiles_of_numpy(coverage: float) -> None:
    scores, gold = _scores(6)
    found = probabilities(scores, 1.0)
    for label, threshold in enumerate(conformal_thresholds(found, gold, coverage)):
        own = _few_rows_named(found, gold, label)
        level = np.ceil((len(own) + 1) * coverage) / len(own)
        assert threshold == pytest.approx(np.quantile(own, level - 1e-9, method="inverted_cdf") if level <= 1 else 1.0)


def test_label_sets_are_those_of_mapie() -> None:
    """Class by class, as MAPIE knows no class-conditional sets: its split method on each class's rows alone."""
    mapie = pytest.importorskip("mapie.classification", reason="MAPIE is an oracle of the tests, not a dependency")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Its inputs are the probabilities."""

        def fit(self, rows: np.ndarray, gold: np.ndarray) -> "Given":
            self.classes_, self.n_features_in_ = np.arange(rows.shape[1]), rows.shape[1]
            return self

        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return rows

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return rows.argmax(axis=1)

    scores, gold = _scores(7)
    found = probabilities(scores, 1.0)
    thresholds = conformal_thresholds(found, gold, 0.9)
    for label in range(5):
        oracle = mapie.SplitConformalClassifier(
            Given().fit(found, gold), confidence_level=0.9, prefit=True, conformity_score="lac"
        )
        oracle.conformalize(found[gold == label], gold[gold == label])
        _, sets = oracle.predict_set(found)
        assert (sets[:, label, 0] == (1 - found[:, label] <= thresholds[label])).all()


def test_every_label_is_covered_as_promised() -> None:
    """Over 200 draws of few rows; a threshold without the finite-sample correction covers about 4 % less."""
    rng = np.random.default_rng(8)
    held: dict[int, list[float]] = {0: [], 1: [], 2: []}
    uncorrected = []
    for _ in range(200):
        rows = rng.dirichlet([0.5, 1.0, 2.0], size=260)
        gold = np.array([rng.choice(3, p=row) for row in rows])
        used, new = slice(0, 160), slice(160, None)
        thresholds = conformal_thresholds(rows[used], gold[used], 0.9)
        members = label_sets(rows[new], thresholds, rows[new].argmax(axis=1), ordered=False)
        for label, shares in held.items():
            mine = gold[new] == label
            raw = 1 - rows[new][mine, label] <= thresholds[label]
            if mine.any():
                shares.append(float(raw.mean()))
                assert members[mine, label].mean() >= raw.mean()
        own = _few_rows_named(rows[used], gold[used], 0)
        if (gold[new] == 0).any() and len(own):
            plain = np.quantile(own, 0.9)
            uncorrected.append(float((1 - rows[new][gold[new] == 0, 0] <= plain).mean()))
    for shares in held.values():
        assert 0.89 < np.mean(shares) < 0.96
    assert np.mean(uncorrected) < 0.88


def _algorithm_1(confidences: np.ndarray, errors: np.ndarray, risk: float, delta: float) -> float | None:
    """Angelopoulos et al. 2021, algorithm 1, from binomial p-values."""
    passed = []
    for start in STARTS:
        for threshold in [value for value in THRESHOLDS if value <= start]:
            decided = confidences >= threshold
            if binom.cdf(errors[decided].sum(), decided.sum(), risk) > delta / len(STARTS):
                break
            passed.append(threshold)
    return min(passed, default=None)


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_that_of_learn_then_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.2, 1, size=300)
    errors = rng.random(300) < (1 - confidences) / 2
    found = abstention(confidences, errors, 0.1, 0.95)
    assert found.threshold == _algorithm_1(confidences, errors, 0.1, 0.05)
    if found.threshold is not None:
        decided = confidences >= found.threshold
        assert (found.decided, found.errors, found.rows) == (decided.sum(), errors[decided].sum(), 300)
        assert found.errors / found.decided < found.bound <= 0.1


def test_the_risk_is_kept_as_often_as_promised() -> None:
    """Over 200 draws, where the true risk of every threshold is known; a threshold chosen by the measured risk
    alone breaks it far more often."""
    rng = np.random.default_rng(9)

    broken = naive = some = 0
    for _ in range(200):
        confidences = rng.uniform(0.2, 1, size=1000)
        # The chance of an error falls from a half to none; above a threshold t it is (1 - t) / 3.2.
        errors = rng.random(1000) < (1 - confidences) / 1.6
        found = abstention(confidences, errors, 0.1, 0.9)
        if found.threshold is not None:
            some += 1
            broken += (1 - max(found.threshold, 0.2)) / 3.2 > 0.1
        shares = [
            threshold
            for threshold in THRESHOLDS
            if (confidences >= threshold).any() and errors[confidences >= threshold].mean() <= 0.1
        ]
        naive += (1 - max(min(shares), 0.2)) / 3.2 > 0.1
    assert some > 150
    assert broken < 20  # a tenth
    assert naive > 60


def test_too_few_rows_and_no_threshold_that_qualifies() -> None:
    needed = rows_needed(0.1, 0.95)
    assert needed == 49  # (0.05 / 8) >= 0.9 ** 49
    sure, right = np.full(needed, 0.99), np.zeros(needed, dtype=bool)
    enough = abstention(sure, right, 0.1, 0.95)
    assert (enough.threshold, enough.decided, enough.needed) == (0.0, needed, needed)
    few = abstention(sure[1:], right[1:], 0.1, 0.95)
    assert few.threshold is None
    assert few.rows < few.needed
    none = abstention(np.full(400, 0.99), np.arange(400) % 5 == 0, 0.1, 0.95)
    assert none.threshold is None
    assert none.rows > none.needed
    assert 0.2 < none.bound < 0.3
    never = abstention(np.full(400, -np.inf), np.zeros(400, dtype=bool), 0.1, 0.95)
    assert (never.threshold, never.bound) == (None, 1.0)
    for risk, confidence in ((0.0, 0.9), (0.1, 1.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            abstention(sure, right, risk, confidence)
