import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.spatial import distance
from scipy.stats import bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from r2d_edge import metrics

GOLD = np.array([0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 1, 1, 1, 0, 2])


@st.composite
def label_pairs(draw):
    classes = draw(st.integers(2, 6))
    n = draw(st.integers(1, 40))
    column = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n).map(np.array)
    return draw(column), draw(column), classes


@st.composite
def scored(draw):
    gold, _, classes = draw(label_pairs())
    cell = st.floats(0.001, 1.0)
    raw = np.array(
        draw(st.lists(st.lists(cell, min_size=classes, max_size=classes), min_size=len(gold), max_size=len(gold)))
    )
    return gold, raw / raw.sum(axis=1, keepdims=True)


def test_by_hand():
    assert metrics.accuracy(GOLD, PREDICTED) == pytest.approx(4 / 6)
    scores = metrics.per_class(GOLD, PREDICTED, 3)
    assert scores.precision == pytest.approx([1 / 2, 2 / 3, 1])
    assert scores.recall == pytest.approx([1 / 2, 1, 1 / 2])
    assert scores.f1 == pytest.approx([1 / 2, 4 / 5, 2 / 3])
    assert scores.support.tolist() == [2, 2, 2]
    assert metrics.macro_f1(GOLD, PREDICTED, 3) == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert metrics.under_triage(GOLD, PREDICTED) == pytest.approx(1 / 6)
    assert metrics.over_triage(GOLD, PREDICTED) == pytest.approx(1 / 6)
    # observed disagreement 1 + 4; by chance 2*(2 rows)*(row, column shares): 2,3,1 columns
    # sum w e = (2/6)*[(3*1 + 1*4) + (2*1 + 1*1) + (2*4 + 3*1)] = (2/6)*21 = 7
    assert metrics.quadratic_kappa(GOLD, PREDICTED, 3) == pytest.approx(1 - 5 / 7)


def test_a_class_that_nothing_holds_counts_as_zero():
    perfect = np.array([0, 1])
    assert metrics.macro_f1(perfect, perfect, 4) == pytest.approx(0.5)


def test_kappa_is_undefined_for_one_class():
    assert math.isnan(metrics.quadratic_kappa(np.array([1, 1]), np.array([1, 1]), 3))


@given(label_pairs())
def test_labels_against_scikit_learn(case):
    gold, predicted, classes = case
    labels = list(range(classes))
    assert np.array_equal(metrics.confusion(gold, predicted, classes), confusion_matrix(gold, predicted, labels=labels))
    expected = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    scores = metrics.per_class(gold, predicted, classes)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        assert ours == pytest.approx(theirs)
    macro = f1_score(gold, predicted, labels=labels, average="macro", zero_division=0)
    assert metrics.macro_f1(gold, predicted, classes) == pytest.approx(macro)


@given(label_pairs())
def test_kappa_against_scikit_learn(case):
    gold, predicted, classes = case
    assume(len(np.unique(np.concatenate([gold, predicted]))) > 1)
    expected = cohen_kappa_score(gold, predicted, labels=list(range(classes)), weights="quadratic")
    assert metrics.quadratic_kappa(gold, predicted, classes) == pytest.approx(expected)


@given(label_pairs())
def test_right_under_and_over_share_the_rows(case):
    gold, predicted, _ = case
    total = (
        metrics.accuracy(gold, predicted) + metrics.under_triage(gold, predicted) + metrics.over_triage(gold, predicted)
    )
    assert total == pytest.approx(1)
    assert metrics.under_triage(gold, predicted) == metrics.over_triage(predicted, gold)


def test_calibration_error_by_hand():
    # Two bins: 0.9 and 0.7 lie in (0.5, 1], right and wrong; 0.5 lies in (0, 0.5], right.
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    gold = np.array([0, 0, 0])
    expected = 2 / 3 * abs(1 / 2 - 0.8) + 1 / 3 * abs(1 - 0.5)
    assert metrics.expected_calibration_error(gold, probabilities, bins=2) == pytest.approx(expected)
    assert metrics.expected_calibration_error(np.array([0, 1]), np.eye(2)) == 0
    assert metrics.expected_calibration_error(np.array([1, 0]), np.eye(2)) == 1


@given(scored(), st.integers(1, 20))
def test_calibration_error_against_the_definition(case, bins):
    gold, probabilities = case
    total = 0.0
    for m in range(bins):
        rows = [i for i, p in enumerate(probabilities) if m == np.clip(math.ceil(max(p) * bins) - 1, 0, bins - 1)]
        if rows:
            right = sum(int(np.argmax(probabilities[i])) == gold[i] for i in rows) / len(rows)
            total += len(rows) / len(gold) * abs(right - sum(max(probabilities[i]) for i in rows) / len(rows))
    assert metrics.expected_calibration_error(gold, probabilities, bins) == pytest.approx(total)


def test_brier_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (1 + 0 + 1)) / 2
    assert metrics.brier(np.array([0, 0]), probabilities) == pytest.approx(expected)


@given(scored())
def test_brier_against_scikit_learn(case):
    gold, probabilities = case
    labels = list(range(probabilities.shape[1]))
    expected = brier_score_loss(gold, probabilities, labels=labels, scale_by_half=False)
    assert metrics.brier(gold, probabilities) == pytest.approx(expected)


def test_bootstrap_against_scipy():
    sample = np.random.default_rng(0).normal(size=80)
    low, high = metrics.bootstrap_interval(lambda rows: float(sample[rows].mean()), len(sample), seed=1)
    expected = bootstrap(
        (sample,), np.mean, method="percentile", n_resamples=20_000, random_state=2
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02)
    narrow = metrics.bootstrap_interval(lambda rows: float(sample[rows].mean()), len(sample), level=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_repeats_and_leaves_undefined_resamples_out():
    def statistic(rows):
        return float(rows[0]) if rows[0] != 3 else math.nan

    first = metrics.bootstrap_interval(statistic, 4, seed=7)
    assert first == metrics.bootstrap_interval(statistic, 4, seed=7) == (0.0, 2.0)
    assert all(math.isnan(bound) for bound in metrics.bootstrap_interval(lambda rows: math.nan, 4, seed=7))
    mean = {metrics.bootstrap_interval(lambda rows: float(rows.mean()), 50, seed=seed) for seed in (1, 2)}
    assert len(mean) == 2


@settings(max_examples=20)
@given(st.integers(2, 5), st.integers(5, 60))
def test_bootstrap_interval_holds_the_statistic_of_a_constant(classes, n):
    gold = np.arange(n) % classes
    assert metrics.bootstrap_interval(
        lambda rows: metrics.accuracy(gold[rows], gold[rows]), n, resamples=20, seed=0
    ) == (1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.macro_f1(np.array([], dtype=int), np.array([], dtype=int), 2), "n > 0"),
        (lambda: metrics.macro_f1(np.array([0, 1]), np.array([0]), 2), "2 rows"),
        (lambda: metrics.macro_f1(np.array([0, 2]), np.array([0, 1]), 2), "from 0 to 2; there are 2"),
        (lambda: metrics.macro_f1(np.array([0.0]), np.array([0]), 2), "integers"),
        (lambda: metrics.accuracy(np.array([0, 1]), np.array([0])), "same n"),
        (lambda: metrics.under_triage(np.array([]), np.array([])), "same n"),
        (lambda: metrics.brier(np.array([0]), np.array([[0.5, 0.4]])), "sum to 1"),
        (lambda: metrics.brier(np.array([0]), np.array([[np.nan, 1.0]])), "finite"),
        (lambda: metrics.brier(np.array([0, 1]), np.array([[0.5, 0.5]])), "n = 2"),
        (lambda: metrics.expected_calibration_error(np.array([0]), np.array([[1.0, 0.0]]), 0), "bins"),
        (lambda: metrics.bootstrap_interval(lambda rows: 0.0, 0, seed=1), "n >= 1"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (0, 300), (1, 495), (20, 495), (494, 495), (7, 7), (900, 100_000)])
def test_bounds_of_a_share_are_those_of_scipy(count, rows):
    interval = stats.binomtest(count, rows).proportion_ci
    assert metrics.wilson(count, rows) == pytest.approx(tuple(interval(method="wilson")), abs=1e-12)
    assert metrics.wilson(count, rows, 0.9) == pytest.approx(tuple(interval(0.9, method="wilson")), abs=1e-12)
    # A two-sided 90 % Clopper-Pearson interval ends at the one-sided bounds at 95 %.
    assert metrics.share_at_most(count, rows) == pytest.approx(interval(0.9, method="exact").high, abs=1e-9)


def test_the_rule_of_three():
    for rows in (100, 300, 5000):
        assert metrics.share_at_most(0, rows) == pytest.approx(3 / rows, rel=0.02)
        assert metrics.share_at_most(0, rows) == pytest.approx(1 - 0.05 ** (1 / rows), abs=1e-12)


def test_a_share_without_rows():
    assert all(math.isnan(bound) for bound in metrics.wilson(0, 0))
    assert metrics.share_at_most(0, 0) == 1
    for count, rows in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="need 0 <= count <= rows"):
            metrics.wilson(count, rows)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (3, 9), (6, 6), (1, 40), (700, 800)])
def test_mcnemar_is_a_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1
    assert metrics.mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    # of 5 coins all fall on one side: 2 / 2^5
    assert metrics.mcnemar_exact(0, 5) == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="must not be negative"):
        metrics.mcnemar_exact(-1, 2)


def test_divergences_are_those_of_scipy():
    rng = np.random.default_rng(8)
    first, second = rng.dirichlet(np.ones(5), size=40), rng.dirichlet(np.ones(5) * 0.3, size=40)
    expected = stats.entropy(first, second, axis=1)
    assert metrics.kullback_leibler(first, second) == pytest.approx(expected)
    js = distance.jensenshannon(first, second, axis=1) ** 2
    assert metrics.jensen_shannon(first, second) == pytest.approx(js)
    assert metrics.jensen_shannon(first, first) == pytest.approx(np.zeros(40), abs=1e-12)


def test_divergences_at_the_ends():
    first, second = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    assert metrics.kullback_leibler(first, second).tolist() == [math.inf, math.inf]
    # ln 2 where nothing is shared; by hand (1/2) ln(4/3) + (1/4) ln(2/3) + (1/4) ln 2 for the other
    half = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert metrics.jensen_shannon(first, second) == pytest.approx([math.log(2), half])
    with pytest.raises(ValueError, match="must both be"):
        metrics.kullback_leibler(first, second[:1])


def test_nll_is_that_of_scikit_learn():
    rng = np.random.default_rng(9)
    gold, probabilities = rng.integers(0, 4, size=60), rng.dirichlet(np.ones(4), size=60)
    expected = log_loss(gold, probabilities, labels=range(4))
    assert metrics.negative_log_likelihood(gold, probabilities) == pytest.approx(expected)
    assert metrics.negative_log_likelihood(np.array([1]), np.array([[1.0, 0.0]])) == math.inf


def test_margins():
    assert metrics.margins(np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])) == pytest.approx([0.5, 0.0])


def test_reliability_is_that_of_scikit_learn_and_adds_up_to_the_calibration_error():
    rng = np.random.default_rng(10)
    gold, probabilities = rng.integers(0, 3, size=200), rng.dirichlet(np.ones(3), size=200)
    found = metrics.reliability(gold, probabilities, 10)
    right = probabilities.argmax(axis=1) == gold
    accuracy, confidence = calibration_curve(right, probabilities.max(axis=1), n_bins=10)
    full = [one for one in found if one.count]
    assert [one.accuracy for one in full] == pytest.approx(accuracy)
    assert [one.confidence for one in full] == pytest.approx(confidence)
    assert (found[0].low, found[-1].high, sum(one.count for one in found)) == (0, 1, 200)
    assert all(math.isnan(one.accuracy) and math.isnan(one.confidence) for one in found if not one.count)
    error = sum(one.count * abs(one.accuracy - one.confidence) for one in full) / 200
    assert metrics.expected_calibration_error(gold, probabilities, 10) == pytest.approx(error)


@pytest.mark.parametrize(("first", "second", "rows"), [(12, 2, 50), (5, 3, 495), (0, 4, 60), (1, 0, 40), (3, 9, 2000)])
def test_the_bound_of_a_net_share_is_the_score_bound(first, second, rows):
    """At the bound the score test rejects at 5 %; its variance from the likelihood, which scipy maximizes."""
    bound = metrics.net_share_at_most(first, second, rows)

    def unlikely(share):  # of the second kind, where the first is larger by the bound
        kinds = (share + bound, share, 1 - 2 * share - bound)
        return -sum(n * np.log(p) for n, p in zip((first, second, rows - first - second), kinds, strict=True) if n)

    edges = (max(0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12)
    share = optimize.minimize_scalar(unlikely, bounds=edges, method="bounded", options={"xatol": 1e-12}).x
    error = math.sqrt(rows * (2 * share + bound - bound**2))
    assert (rows * bound - (first - second)) / error == pytest.approx(stats.norm.ppf(0.95), rel=1e-3)


def test_a_net_share_without_any_row_of_either_kind():
    # the score of a single share: z^2 / (n + z^2)
    z = stats.norm.ppf(0.95)
    assert metrics.net_share_at_most(0, 0, 100) == pytest.approx(z**2 / (100 + z**2))
    with pytest.raises(ValueError, match="two counts within the rows"):
        metrics.net_share_at_most(3, 3, 5)


def test_risk_coverage_by_hand():
    confidences, losses = np.array([0.5, 0.9, 0.7, 0.7]), np.array([1.0, 0.0, 1.0, 0.0])
    coverage, risk = metrics.risk_coverage(confidences, losses)
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # The two of equal confidence count a half each.
    assert risk == pytest.approx([0, 0.5 / 2, 1 / 3, 2 / 4])
    assert metrics.aurc(confidences, losses) == pytest.approx((0 + 1 / 4 + 1 / 3 + 1 / 2) / 4)
    # Trapezoids under 0, 0, 1/8, 1/4, 2/4.
    assert metrics.augrc(confidences, losses) == pytest.approx((0 + 1 / 16 + 3 / 16 + 3 / 8) / 4)
    assert metrics.aurc(np.ones(3), np.array([1, 0, 0])) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_augrc_follows_from_the_auroc_of_scikit_learn(rows):
    """Traub et al. 2024: for 0/1 errors the area is one of accuracy and AUROC."""
    confidences = np.array([confidence / 5 for confidence, _ in rows])
    right = np.array([good for _, good in rows])
    assume(0 < right.sum() < len(right))
    share = right.mean()
    expected = (1 - roc_auc_score(right, confidences)) * share * (1 - share) + (1 - share) ** 2 / 2
    assert metrics.augrc(confidences, (~right).astype(float)) == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2)), min_size=1, max_size=40), st.randoms())
def test_risk_coverage_does_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    (first, losses), (second, others) = (np.array(list(zip(*given, strict=True))) for given in (rows, shuffled))
    assert metrics.aurc(first, losses) == pytest.approx(metrics.aurc(second, others))
    assert metrics.augrc(first, losses) == pytest.approx(metrics.augrc(second, others))
    assert metrics.risk_coverage(first, losses)[1][-1] == pytest.approx(losses.mean())


def test_risk_coverage_refuses():
    with pytest.raises(ValueError, match="same n"):
        metrics.aurc(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        metrics.augrc(np.array([np.nan]), np.ones(1))
