"""The figures of a study: those of evaluation, their spread over seeds, paired differences."""

import math

import numpy as np
import pytest
import sacrebleu

from r2d_edge import metrics
from tests.tiny_models import TEXTS
from train.study.figures import METRICS, paired_difference, spread, value
from train.study.results import rows_of

LABELS = ["low", "middle", "high"]


def make_records(seed: int, right: float = 0.6, n: int = 120) -> list[dict]:
    rng = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(0, 3, n)  # the notes' own, whatever the seed of the training
    records = []
    for row in range(n):
        label = int(gold[row]) if rng.random() < right else int(rng.integers(0, 3))
        probabilities = rng.dirichlet(np.ones(3))
        order = np.argsort(-probabilities)
        swapped = probabilities[order][[0 if index == label else 1 + (index > label) for index in range(3)]]
        swapped[[index for index in range(3) if index != label]] = np.sort(probabilities)[:2]
        words = TEXTS[1 + row % 8].split()
        kept = [word for word in words if rng.random() < right]
        records.append(
            {
                "id": f"n{row}",
                "gold": LABELS[gold[row]],
                "label": LABELS[label],
                "probabilities": dict(zip(LABELS, swapped.tolist(), strict=True)),
                "rationale": " ".join(kept) if row % 10 else None,
                "reference": TEXTS[1 + row % 8] if row % 7 else None,
                "bertscore_f1": float(rng.random()) if row % 10 and row % 7 else None,
            }
        )
    return records


def test_figures_are_those_of_their_definitions() -> None:
    records = make_records(1)
    judged = {"n3": 4.0, "n5": 2.25}
    rows = rows_of(records, LABELS, judged)
    gold = np.array([LABELS.index(record["gold"]) for record in records])
    label = np.array([LABELS.index(record["label"]) for record in records])
    probabilities = np.array([list(record["probabilities"].values()) for record in records])
    assert np.array_equal(probabilities.argmax(axis=1), label)
    referenced = [r for r in records if r["rationale"] is not None and r["reference"] is not None]
    assert 0 < len(referenced) < len(records)
    expected = {
        "macro_f1": metrics.macro_f1(gold, label, 3),
        "accuracy": metrics.accuracy(gold, label),
        "ece": metrics.expected_calibration_error(gold, probabilities),
        "bertscore": np.mean([r["bertscore_f1"] for r in referenced]),
        "bleu": sacrebleu.corpus_bleu(
            [r["rationale"] for r in referenced], [[r["reference"] for r in referenced]]
        ).score,
        "judge": (4 + 2.25) / 2,
    }
    assert {name: value(metric, rows) for name, metric in METRICS.items()} == pytest.approx(expected)


def test_a_method_that_writes_nothing_has_no_rationale_figures() -> None:
    records = [{**record, "rationale": None, "bertscore_f1": None} for record in make_records(1)]
    rows = rows_of(records, LABELS)
    assert math.isnan(value(METRICS["bleu"], rows))
    assert math.isnan(value(METRICS["bertscore"], rows))
    assert value(METRICS["accuracy"], rows) > 0
    assert paired_difference(METRICS["bleu"], {1: rows}, {1: rows_of(make_records(1), LABELS)}) is None


def test_open_labels_are_compared_as_text_and_kept_as_numbers() -> None:
    records = [
        {"id": str(row), "gold": gold, "label": label, "probabilities": {}, "rationale": None, "reference": None}
        for row, (gold, label) in enumerate([("Aspirin", "aspirin"), ("rest", "ice"), ("ice", "ice")])
    ]
    rows = rows_of(records, [])
    assert rows.labels == ()
    assert value(METRICS["accuracy"], rows) == pytest.approx(2 / 3)
    # aspirin 1, rest 0, ice 2/3
    assert value(METRICS["macro_f1"], rows) == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert math.isnan(value(METRICS["ece"], rows))


def test_spread_over_seeds_is_a_t_interval() -> None:
    found = spread([0.70, 0.72, 0.77])
    assert found is not None
    assert found.mean == pytest.approx(0.73)
    # Standard deviation 0.036056, t(0.975, 2) = 4.303.
    assert found.half == pytest.approx(4.303 * 0.0360555 / math.sqrt(3), rel=1e-4)
    assert spread([0.5]).half is None
    assert spread([math.nan, 0.5]).seeds == 1
    assert spread([math.nan]) is None


def test_paired_difference_of_a_method_with_itself_is_zero() -> None:
    judged = {f"n{row}": 1 + row % 5 for row in range(50)}
    runs = {seed: rows_of(make_records(seed), LABELS, judged) for seed in (1, 2)}
    for metric in METRICS.values():
        assert tuple(paired_difference(metric, runs, runs)) == (0, 0, 0)


def test_paired_difference_is_the_difference_of_means_over_common_seeds_and_rows() -> None:
    good = {seed: rows_of(make_records(seed, 0.9), LABELS) for seed in (1, 2, 3)}
    # The other saw the rows in another order, some of them not at all, and has other seeds too.
    shuffled = {seed: rows_of(make_records(seed + 50, 0.5)[:5:-1], LABELS) for seed in (2, 3, 4)}
    found = paired_difference(METRICS["accuracy"], good, shuffled)
    ids = set(shuffled[2].ids)
    kept = [row for row, name in enumerate(good[2].ids) if name in ids]
    expected = np.mean([(good[s].gold == good[s].label)[kept].mean() for s in (2, 3)])
    expected -= np.mean([(shuffled[s].gold == shuffled[s].label).mean() for s in (2, 3)])
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high
    assert paired_difference(METRICS["accuracy"], {1: good[1]}, {4: shuffled[4]}) is None


def test_the_pairing_counts() -> None:
    """One row better on a hard set: unpaired the difference drowns, paired its interval is narrow."""
    records = make_records(3, 0.5)
    better = [dict(record) for record in records]
    for record in better[:30]:
        record["label"] = record["gold"]
    first, second = rows_of(better, LABELS), rows_of(records, LABELS)
    found = paired_difference(METRICS["accuracy"], {1: first}, {1: second})
    n = len(records)
    alone = 1.96 * math.sqrt(2 * 0.25 / n)
    assert found.low > 0
    assert found.high - found.low < alone
