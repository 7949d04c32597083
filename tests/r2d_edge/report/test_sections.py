"""Each figure against scikit-learn or scipy, or worked by hand on eight rows."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.spatial import distance
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, precision_recall_fscore_support

from r2d_edge.report import sections
from r2d_edge.report.sections import Draws, Labels

NAMES = ("resuscitation", "emergent", "urgent", "less urgent")
DRAWS = Draws(2000, 3)
# Row by row: kept right, kept wrong, right to wrong one lower, right to wrong two lower, wrong to right one
# higher, wrong to wrong, kept right twice.
ROWS = Labels(
    NAMES,
    gold=np.array([0, 1, 1, 0, 1, 3, 2, 3]),
    reference=np.array([0, 2, 1, 0, 2, 0, 2, 3]),
    candidate=np.array([0, 2, 2, 2, 1, 1, 2, 3]),
)
RNG = np.random.default_rng(12)
N = 300
MANY = Labels(NAMES, *(RNG.integers(0, 4, size=N) for _ in range(3)))
REFERENCE = RNG.dirichlet(np.ones(4), size=N)
CANDIDATE = RNG.dirichlet(np.ones(4), size=N)


def test_quality_is_that_of_scikit_learn():
    found = sections.quality(MANY, DRAWS)
    for name, said in (("reference", MANY.reference), ("candidate", MANY.candidate)):
        expected = precision_recall_fscore_support(MANY.gold, said, labels=range(4), zero_division=0)
        for key, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
            assert [found[name]["per_class"][label][key] for label in NAMES] == pytest.approx(values.tolist())
        assert found[name]["macro_f1"]["value"] == pytest.approx(expected[2].mean())
        assert found[name]["accuracy"]["value"] == pytest.approx((MANY.gold == said).mean())
        hits, support = int(((MANY.gold == 1) & (said == 1)).sum()), int((MANY.gold == 1).sum())
        interval = stats.binomtest(hits, support).proportion_ci(method="wilson")
        assert found[name]["per_class"]["emergent"]["recall_interval"] == pytest.approx(list(interval))
    gap = found["difference"]["accuracy"]
    assert gap["value"] == pytest.approx((MANY.gold == MANY.candidate).mean() - (MANY.gold == MANY.reference).mean())
    steps = (MANY.gold == MANY.candidate).astype(float) - (MANY.gold == MANY.reference)
    expected = stats.bootstrap((steps,), np.mean, n_resamples=5000, method="percentile", rng=RNG).confidence_interval
    assert (gap["low"], gap["high"]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_mcnemar_by_hand():
    found = sections.quality(ROWS, DRAWS)["mcnemar"]
    assert (found["reference_only"], found["candidate_only"]) == (2, 1)
    assert found["p"] == pytest.approx(1.0)  # 2 (1 + 3) / 8


def test_flips_by_hand():
    found = sections.flips(ROWS, DRAWS, ordered=True)
    assert found["matrix"] == [[1, 1, 1, 0], [0, 0, 1, 0], [0, 1, 2, 0], [0, 0, 0, 1]]
    assert found["matrix"] == confusion_matrix(ROWS.reference, ROWS.candidate, labels=range(4)).tolist()
    assert (found["count"], found["rate"]) == (4, 0.5)
    assert found["rate_interval"] == pytest.approx(list(stats.binomtest(4, 8).proportion_ci(method="wilson")))
    assert (found["right_to_wrong"], found["wrong_to_right"], found["wrong_to_wrong"]) == (2, 1, 1)
    severity = found["ordered"]
    assert (severity["under"], severity["over"], severity["two_levels_or_more"]) == (3, 1, 1)
    assert (severity["net_under_rate"], severity["gross_under_rate"]) == (2 / 8, 3 / 8)
    # less severe than gold: reference on rows 2 and 5, candidate on rows 2, 3 and 4
    gold = severity["gold_under_triage"]
    assert (gold["reference"]["value"], gold["candidate"]["value"]) == (2 / 8, 3 / 8)
    assert gold["difference"]["value"] == 1 / 8
    # five rows are of the top two; the reference names one of these two on 3, the candidate on 2
    top = severity["top_two_sensitivity"]
    assert (top["reference"]["value"], top["candidate"]["value"]) == (3 / 5, 2 / 5)
    assert top["reference"]["n"] == 5
    bounds = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert (top["candidate"]["low"], top["candidate"]["high"]) == pytest.approx(tuple(bounds))


def test_flips_of_labels_without_an_order():
    assert sections.flips(ROWS, DRAWS, ordered=False)["ordered"] is None
    two = Labels(("yes", "no"), np.array([0, 1]), np.array([0, 1]), np.array([1, 1]))
    assert sections.flips(two, DRAWS, ordered=True)["ordered"]["top_two_sensitivity"] is None


def test_drift_is_that_of_scipy():
    found = sections.drift(MANY, REFERENCE, CANDIDATE, (1.0, 1.0))
    kl = stats.entropy(REFERENCE, CANDIDATE, axis=1)
    js = distance.jensenshannon(REFERENCE, CANDIDATE, axis=1) ** 2
    for key, values in (("kl", kl), ("js", js)):
        expected = {"mean": values.mean(), "p99": np.percentile(values, 99), "max": values.max()}
        assert found[key] == pytest.approx(expected)
    assert found["uncalibrated"] is None
    shares = {name: share["reference"] for name, share in found["label_shift"].items()}
    assert shares == pytest.approx({name: (MANY.reference == place).mean() for place, name in enumerate(NAMES)})
    assert sum(share["candidate"] for share in found["label_shift"].values()) == pytest.approx(1)


def test_margins_of_flipped_rows_by_hand():
    rows = Labels(("a", "b", "c"), *(np.array(values) for values in ([0, 1, 2], [0, 1, 2], [1, 1, 0])))
    reference = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.1, 0.5]])
    found = sections.drift(rows, reference, reference, (None, None))
    assert found["flipped_margins"] == pytest.approx([0.1, 0.2])
    assert found["margin"] == pytest.approx({"flipped_mean": 0.15, "kept_mean": 0.7})
    same = Labels(rows.names, rows.gold, rows.gold, rows.gold)
    none = sections.drift(same, reference, reference, (None, None))
    assert none["flipped_margins"] == []
    assert np.isnan(none["margin"]["flipped_mean"])


def test_drift_without_the_temperatures():
    """Two temperatures over one model: all of the drift is theirs."""
    logs = np.log(REFERENCE)

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)

    found = sections.drift(MANY, softmax(logs / 2.5), softmax(logs / 0.8), (2.5, 0.8))
    assert found["kl"]["mean"] > 0.1
    assert found["uncalibrated"]["kl"]["max"] == pytest.approx(0, abs=1e-9)
    assert sections.drift(MANY, REFERENCE, CANDIDATE, (None, 2.0))["uncalibrated"] is None


def test_calibration_is_that_of_scikit_learn():
    found = sections.calibrated(MANY, REFERENCE, CANDIDATE, (1.0, 2.0), seed=5)
    truth = np.eye(4)[MANY.gold]
    for name, given in (("reference", REFERENCE), ("candidate", CANDIDATE)):
        assert found[name]["nll"] == pytest.approx(log_loss(MANY.gold, given, labels=range(4)))
        by_class = sum(brier_score_loss(truth[:, place], given[:, place]) for place in range(4))
        assert found[name]["brier"] == pytest.approx(by_class)
        assert len(found[name]["reliability"]) == 10
    assert (found["reference"]["temperature"], found["candidate"]["temperature"]) == (1.0, 2.0)


def test_the_refitted_temperature_is_that_of_scipy_and_its_figures_are_held_out():
    found = sections.calibrated(MANY, REFERENCE, CANDIDATE, (1.0, 2.0), seed=5)
    logs = np.log(CANDIDATE)

    def loss(temperature):
        scaled = logs / temperature
        scaled -= np.logaddexp.reduce(scaled, axis=1, keepdims=True)
        return -scaled[np.arange(N), MANY.gold].mean()

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
    # The probabilities were made at temperature 2: what is fitted to them comes on top.
    assert found["temperature_refitted"] == pytest.approx(2 * best.x, rel=1e-3)
    refitted = found["candidate_refitted"]
    assert loss(1.0) > refitted["nll"] >= best.fun - 1e-9
    assert refitted["nll"] == pytest.approx(best.fun, abs=0.02)
    assert found["refit"] == "cross-fitted in 5 folds"


def test_a_few_rows_are_not_refitted():
    few = Labels(NAMES, MANY.gold[:24], MANY.reference[:24], MANY.candidate[:24])
    found = sections.calibrated(few, REFERENCE[:24], CANDIDATE[:24], (None, None), seed=5)
    assert found["candidate_refitted"] is found["temperature_refitted"] is found["refit"] is None
    assert found["candidate"]["ece"] > 0


def test_risk_coverage_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = sections.risk_coverage(np.array([0, 1, 1, 1]), probabilities)  # the least sure row is wrong
    assert [point["coverage"] for point in found["curve"]] == [0.25, 0.5, 0.75, 1.0]
    assert [point["risk"] for point in found["curve"]] == [0, 0, 0, 0.25]
    assert found["aurc"] == pytest.approx(0.25 / 4)
    assert found["augrc"] == pytest.approx(0.25 / 2 / 4)
    many = sections.calibrated(MANY, REFERENCE, CANDIDATE, (None, None), 1)["candidate"]["risk_coverage"]
    assert len(many["curve"]) == 50
    assert many["curve"][-1] == {"coverage": 1.0, "risk": pytest.approx((CANDIDATE.argmax(1) != MANY.gold).mean())}
