import numpy as np
import pytest
from sklearn import metrics as sk

from r2d_edge import metrics
from r2d_edge.bootstrap import Figure
from r2d_edge.task import CTAS_LEVELS, LabelSet
from train import scoring
from train.scoring import (
    FIGURES,
    Rows,
    add_fact_counts,
    bare_warning,
    coverage_at_risk,
    empty_warning,
    is_bare_label,
    names_label,
    score_records,
)

CTAS = LabelSet(CTAS_LEVELS, "ordered")
OPEN = LabelSet((), "open")
RNG = np.random.default_rng(3)
N, K = 120, 5
GOLD = RNG.integers(0, K, N)
PREDICTED = np.where(RNG.random(N) < 0.6, GOLD, RNG.integers(0, 3, N))
PROBABILITIES = RNG.dirichlet(np.ones(K), N)


def record(id: str, gold: str, label: str, **more: object) -> dict[str, object]:  # noqa: A002
    empty = {"rationale": None, "reference": None, "recovered": None, "recovered_from_reference": None}
    return {"id": id, "gold": gold, "label": label, "probabilities": {}, **empty, **more}


def resampled(figure: Figure, drawn: np.ndarray) -> float:
    return float(figure.finish(np.bincount(drawn, minlength=N).astype(float) @ figure.rows))


@pytest.mark.parametrize("drawn", [np.arange(N), RNG.integers(0, N, N), RNG.integers(0, 9, N)])
def test_label_figures_are_those_of_scikit_learn_on_any_resample(drawn: np.ndarray) -> None:
    gold, predicted, probabilities = GOLD[drawn], PREDICTED[drawn], PROBABILITIES[drawn]
    found = scoring.label_figures(GOLD, PREDICTED, K, ordered=True, probabilities=PROBABILITIES)
    expected = {
        "accuracy": sk.accuracy_score(gold, predicted),
        "macro_f1": sk.f1_score(gold, predicted, labels=range(K), average="macro", zero_division=0),
        "quadratic_kappa": sk.cohen_kappa_score(gold, predicted, labels=range(K), weights="quadratic"),
        "under_triage": np.mean(predicted > gold),
        "over_triage": np.mean(predicted < gold),
        "brier": sk.brier_score_loss(gold, probabilities, labels=range(K), scale_by_half=False),
    }
    assert {name: resampled(figure, drawn) for name, figure in found.items() if name != "ece"} == pytest.approx(
        expected
    )


def test_the_values_are_those_of_the_runtimes_metrics() -> None:
    found = scoring.label_figures(GOLD, PREDICTED, K, ordered=True)
    assert found["macro_f1"].value() == pytest.approx(metrics.macro_f1(GOLD, PREDICTED, K))
    assert found["quadratic_kappa"].value() == pytest.approx(metrics.quadratic_kappa(GOLD, PREDICTED, K))


def test_kappa_is_undefined_for_one_class() -> None:
    assert np.isnan(scoring.quadratic_kappa(np.zeros(3, int), np.zeros(3, int)).value())


def test_open_labels_are_compared_as_normal_text() -> None:
    gold = ["Iron deficiency anemia", "Furosemide", "Furosemide", "1-5 m", "Ethambutol"]
    said = ["iron deficiency  anemia ", "furosemide", "Spironolactone", "1-5 m", ""]
    rows = Rows([record(str(i), g, s) for i, (g, s) in enumerate(zip(gold, said, strict=True))], OPEN)
    normal = [[" ".join(text.lower().split()) for text in side] for side in (gold, said)]
    assert FIGURES["accuracy"](rows).value() == pytest.approx(3 / 5)
    # scikit-learn gives the empty answer a class of its own; with us it is no label at all.
    expected = sk.f1_score(*normal, average="macro", labels=sorted({*normal[0], *normal[1]} - {""}), zero_division=0)
    assert FIGURES["macro_f1"](rows).value() == pytest.approx(expected)
    assert [name for name, make in FIGURES.items() if make(rows) is not None] == ["macro_f1", "accuracy"]


def test_consistency_and_sufficiency_as_reason2decide_c_has_them() -> None:
    """P1, P2, gold and the label of the reference, scored as the authors' script does (accuracy of pairs)."""
    gold = ["urgent", "urgent", "emergent", "non-urgent"]
    first = ["urgent", "emergent", "emergent", "urgent"]
    second = ["Urgent", "urgent", "emergent", ""]
    theirs = ["urgent", "emergent", None, "non-urgent"]
    records = [
        record(str(i), g, a, rationale="r" if b else "", recovered=b, recovered_from_reference=c, reference=c)
        for i, (g, a, b, c) in enumerate(zip(gold, first, second, theirs, strict=True))
    ]
    rows = Rows(records, CTAS)
    value = {name: make(rows).value() for name, make in FIGURES.items() if make(rows) is not None}
    lower = [text.lower() for text in second]
    assert value["consistency"] == sk.accuracy_score(first, lower) == 2 / 4
    assert value["sufficiency"] == sk.accuracy_score(gold, lower) == 3 / 4
    assert value["gold_robustness"] == pytest.approx(2 / 3)
    expected = sk.f1_score(gold, lower, labels=CTAS_LEVELS, average="macro", zero_division=0)
    assert value["sufficiency_macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rationale", "label", "named"),
    [
        ("This is urgent.", "urgent", True),
        ("This is less urgent.", "urgent", False),
        ("This is less urgent.", "less urgent", True),
        ("Non urgent, then.", "non-urgent", True),
        ("Non-urgent, not urgent.", "urgent", True),
        ("Insurgent.", "urgent", False),
        ("Emergent!", "EMERGENT", True),
        ("", "urgent", False),
    ],
)
def test_a_label_is_named(rationale: str, label: str, named: bool) -> None:
    assert names_label(rationale, label, CTAS) is named


def test_contrast_pairs_need_both_right() -> None:
    labels = [("n1a", True), ("n1b", True), ("n2a", True), ("n2b", False), ("alone", True), ("n3a", True)]
    records = [record(name, "urgent", "urgent" if right else "emergent") for name, right in labels]
    rows = Rows(records, CTAS)
    assert FIGURES["pairs_both_right"](rows).value() == 0.5
    assert score_records(records, {}, CTAS)["pairs"] == 2
    assert FIGURES["pairs_both_right"](Rows(records[4:], CTAS)) is None


def test_records_by_hand() -> None:
    sure = dict.fromkeys(CTAS_LEVELS, 0.0)
    records = [
        record(
            "1",
            "urgent",
            "urgent",
            probabilities={**sure, "urgent": 1.0},
            rationale="Pain of 9 is urgent.",
            reference="Pain of 3.",
            bertscore_f1=0.4,
            recovered="urgent",
            recovered_from_reference="emergent",
            truncated=True,
        ),
        record(
            "2",
            "emergent",
            "urgent",
            probabilities={**sure, "urgent": 0.5, "emergent": 0.5},
            rationale="",
            bertscore_f1=None,
            recovered="",
        ),
    ]
    notes = {"1": "Pain 3 of 10", "2": "Chest pain"}
    add_fact_counts(records, notes, frozenset({"pain"}))
    found = score_records(records, notes, CTAS, vocabulary=frozenset({"pain"}), resamples=200)
    assert found["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert found["brier"]["value"] == pytest.approx(0.25)
    assert found["under_triage"]["value"] == 0.5
    assert found["over_triage"]["value"] == 0
    assert found["by_label"]["urgent"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert np.array(found["confusion"]).sum() == 2
    assert found["confusion"][1][2] == 1
    assert {key: found[key] for key in ("rows", "rationales", "references", "without_reference")} == {
        "rows": 2,
        "rationales": 2,
        "references": 1,
        "without_reference": 1,
    }
    assert (found["empty_rationales"], found["words_mean"], found["truncated"], found["abstained"]) == (1, 2.5, 1, 0)
    assert found["bertscore_f1"]["value"] == 0.4
    assert found["unsupported_number_share"]["value"] == 0.5
    assert found["unsupported_term_rate"]["value"] == 0
    assert found["reference_facts"]["unsupported_number_share"] == 0
    assert found["consistency"]["value"] == found["sufficiency"]["value"] == 0.5
    assert found["gold_robustness"]["value"] == 0
    assert found["names_label"]["value"] == 0.5
    assert found["bleu_signature"].startswith("nrefs:1|")


def test_coverage_at_risk_by_hand() -> None:
    # From the surest on: right, right, wrong, right, and two of one confidence, of which one is wrong.
    best = np.array([0.6, 0.95, 0.9, 0.8, 0.7, 0.6])
    gold = np.array([1, 0, 0, 1, 0, 0])
    probabilities = np.column_stack([best, 1 - best])
    for risk, coverage in ((0.0, 2 / 6), (0.2, 2 / 6), (0.25, 4 / 6), (0.3, 4 / 6), (1 / 3, 1.0)):
        assert coverage_at_risk(gold, probabilities, risk) == pytest.approx(coverage)
    assert coverage_at_risk(1 - gold, probabilities, 0.1) == 0  # the surest row is wrong


def test_risk_by_coverage_is_that_of_the_metrics() -> None:
    records = [
        record(
            str(row),
            CTAS_LEVELS[GOLD[row]],
            CTAS_LEVELS[p.argmax()],
            probabilities=dict(zip(CTAS_LEVELS, p, strict=True)),
        )
        for row, p in enumerate(PROBABILITIES)
    ]
    found = score_records(records, {}, CTAS, resamples=10)["risk_coverage"]
    wrong = (PROBABILITIES.argmax(axis=1) != GOLD).astype(float)
    assert found["aurc"] == pytest.approx(metrics.aurc(PROBABILITIES.max(axis=1), wrong))
    assert found["augrc"] == pytest.approx(metrics.augrc(PROBABILITIES.max(axis=1), wrong))
    assert [point["risk"] for point in found["coverage_at_risk"]] == [0.05, 0.1, 0.2]
    for point in found["coverage_at_risk"]:
        assert point["coverage"] == coverage_at_risk(GOLD, PROBABILITIES, point["risk"])


def test_more_than_a_twentieth_of_empty_rationales_is_warned_of() -> None:
    assert empty_warning(0, 0) is empty_warning(5, 100) is None
    warning = empty_warning(6, 100)
    assert warning is not None
    assert warning.startswith("6 of 100 rationales are empty (6 %)")


def test_rationales_that_are_a_label_s_name_are_counted_and_warned_of() -> None:
    said = ["Urgent.", "less  urgent", "Less-urgent!", "Urgent, as he is pale.", "", "pale", None]
    records = [record(str(row), "urgent", "urgent", rationale=text) for row, text in enumerate(said)]
    found = score_records(records, {str(row): "Pale." for row in range(len(said))}, CTAS, vocabulary=None)
    assert (found["rationales"], found["bare_labels"]) == (6, 3)
    assert is_bare_label("Iron deficiency.", "iron deficiency", OPEN)
    assert not is_bare_label("Iron.", "iron deficiency", OPEN)
    assert bare_warning(0, 0) is bare_warning(5, 100) is None
    assert bare_warning(6, 100) == "6 of 100 rationales are nothing but the name of a label (6 %)"


def test_facts_that_a_note_does_not_hold_are_counted_in_its_record() -> None:
    texts = ["Fever and cough for 3 days.", "Fever.", "Rash, temperature 39 or 40.", "", None]
    records = [record(str(row), "urgent", "urgent", rationale=text) for row, text in enumerate(texts)]
    notes = {str(row): "Fever for 3 days" for row in range(len(texts))}
    add_fact_counts(records, notes, frozenset({"fever", "cough", "rash"}))
    keys = ("unsupported_numbers", "unsupported_terms", "vocabulary_words")
    assert [[row[key] for key in keys] for row in records] == [
        [0, 1, 2], [0, 0, 1], [2, 1, 1], [0, 0, 0], [None] * 3
    ]  # fmt: skip
    rows = Rows(records, CTAS)
    value = {name: FIGURES[name](rows).value() for name in FIGURES if name.startswith("unsupported")}
    assert value == {
        "unsupported_number_share": 1 / 4,
        "unsupported_term_share": 2 / 4,
        "unsupported_fact_share": 2 / 4,
        "unsupported_term_rate": 2 / 4,
    }
    older = Rows([record("1", "urgent", "urgent", rationale="x"), *records[:1]], CTAS)
    assert [name for name in value if FIGURES[name](older) is not None] == []


def test_without_a_vocabulary_facts_are_numbers_alone() -> None:
    records = [record("1", "urgent", "urgent", rationale="x", reference="y")]
    add_fact_counts(records, {"1": "z"}, None)
    found = score_records(records, {"1": "z"}, CTAS)
    assert "unsupported_number_share" in found
    assert not any("term" in name or "fact_share" in name for name in (*found, *found["reference_facts"]))


def test_labels_alone() -> None:
    found = score_records([record("1", "urgent", "urgent")], {}, CTAS)
    assert {"macro_f1", "accuracy", "quadratic_kappa", "under_triage", "by_label"} <= set(found)
    assert not {"bleu", "rationales", "consistency", "ece", "repetition_share"} & set(found)


def test_a_plain_set_has_no_severity() -> None:
    plain = LabelSet(("yes", "no", "maybe"), "plain")
    found = score_records([record("1", "yes", "no")], {}, plain)
    assert not {"quadratic_kappa", "under_triage", "over_triage"} & set(found)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="no records"):
        Rows([], CTAS)
    with pytest.raises(ValueError, match="'dire' is not one of"):
        Rows([record("1", "dire", "urgent")], CTAS)
