import time

import numpy as np
import pytest

from r2d_edge.task import CTAS_LEVELS, LabelSet
from tests.tiny_models import TEXTS
from train.comparison import excludes_zero, paired_difference
from train.scoring import FIGURES

CTAS = LabelSet(CTAS_LEVELS, "ordered")
WORDS = sorted({word for text in TEXTS[1:4] for word in text.split()})


def records(seed: int, skill: float, count: int = 300) -> list[dict[str, object]]:
    """Rows of one and the same set (seed 0), answered with a skill."""
    task, own = np.random.default_rng(0), np.random.default_rng(seed)
    out = []
    for number in range(count):
        gold = CTAS_LEVELS[task.integers(5)]
        reference = " ".join(task.choice(WORDS, 12))
        right = own.random() < skill
        label = gold if right else CTAS_LEVELS[own.integers(5)]
        sure = {name: 0.6 if name == label else 0.1 for name in CTAS_LEVELS}
        words = [word if own.random() < skill else str(own.choice(WORDS)) for word in reference.split()]
        out.append(
            {
                "id": f"n{number // 2}{'ab'[number % 2]}",
                "gold": gold,
                "label": label,
                "probabilities": sure,
                "rationale": " ".join(words),
                "reference": reference,
                "recovered": label if own.random() < skill else "urgent",
                "recovered_from_reference": gold,
                "bertscore_f1": skill * float(own.uniform(0.9, 1.1)),
                "unsupported_numbers": int(own.random() > skill),
                "unsupported_terms": int(own.binomial(3, 1 - skill)),
                "vocabulary_words": 3,
            }
        )
    return out


def test_a_model_does_not_differ_from_itself_in_anything() -> None:
    rows = records(1, 0.7)
    for metric in FIGURES:
        assert paired_difference(rows, list(reversed(rows)), metric, labels=CTAS, resamples=50) == (0, 0, 0), metric


@pytest.mark.parametrize("metric", ["unsupported_number_share", "unsupported_fact_share", "unsupported_term_rate"])
def test_a_model_that_invents_more_is_found(metric: str) -> None:
    assert paired_difference(records(1, 0.6), records(2, 0.9), metric).low > 0


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "bertscore_f1", "bleu", "chrf", "consistency"])
def test_a_better_model_is_found(metric: str) -> None:
    good, bad = records(1, 0.9), records(2, 0.6)
    found = paired_difference(good, bad, metric)
    assert found.low > 0
    assert found.low < found.value < found.high
    assert excludes_zero(found._asdict())
    turned = paired_difference(bad, good, metric)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_models_of_one_skill_are_not_told_apart() -> None:
    found = paired_difference(records(1, 0.7), records(2, 0.7), "macro_f1")
    assert found.low < 0 < found.high
    assert not excludes_zero(found._asdict())
    assert not excludes_zero({"low": None, "high": None})


def test_the_difference_of_two_accuracies_by_hand() -> None:
    """30 rows only the first has right, 10 only the second, of 100: the bootstrap's spread is the binomial's."""
    first, second = [True] * 60 + [True] * 30 + [False] * 10, [True] * 60 + [False] * 30 + [True] * 10

    def rows(right: list[bool]) -> list[dict[str, object]]:
        return [
            {"id": str(n), "gold": "urgent", "label": "urgent" if r else "emergent", "probabilities": {}}
            | dict.fromkeys(("rationale", "reference", "recovered"))
            for n, r in enumerate(right)
        ]

    found = paired_difference(rows(first), rows(second), "accuracy", labels=CTAS)
    spread = 1.96 * np.sqrt((0.4 - 0.2**2) / 100)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.011)


def test_ten_thousand_resamples_take_seconds() -> None:
    first, second = records(1, 0.9, 500), records(2, 0.8, 500)
    begin = time.process_time()
    for metric in ("macro_f1", "accuracy", "bertscore_f1", "bleu"):
        paired_difference(first, second, metric, resamples=10_000)
    assert time.process_time() - begin < 20


def test_rows_must_be_the_same() -> None:
    rows = records(1, 0.7, 6)
    with pytest.raises(ValueError, match=r"same rows; in one only: n2b"):
        paired_difference(rows, rows[:-1], "accuracy")
    for key in ("gold", "reference"):
        other = [*rows[:-1], {**rows[-1], key: "urgent" if rows[-1]["gold"] != "urgent" else "emergent"}]
        with pytest.raises(ValueError, match=f"rows' {key} differs.*n2b"):
            paired_difference(rows, other, "accuracy")
    with pytest.raises(ValueError, match="no 'bleu' in the records of the second model"):
        paired_difference(rows, [{**row, "rationale": None} for row in rows], "bleu")
    with pytest.raises(ValueError, match="'rouge' is unknown"):
        paired_difference(rows, rows, "rouge")
