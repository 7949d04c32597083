import importlib.util

import numpy as np
import pytest
import sacrebleu

from r2d_edge.report.labelled import LabelledRow
from r2d_edge.report.rationales import compare_rationales
from r2d_edge.report.sides import Answers

NOTES = ["Chest pain, HR 104, takes ramipril.", "A cold for 3 days.", "Fell off a ladder.", "Well."]
GOLD = ["Chest pain and a fast pulse.", "A cold can wait.", "", "Nothing to do."]
THEIRS = ["Chest pain at 104 beats.", "A cold can wait here.", "A fall from 2 metres.", None]
OURS = ["Chest pain at 120 beats.", "A cold can wait here.", "Give morphine and rest and give morphine and rest.", "x"]


def answers(texts, consistent):
    return Answers(np.zeros(4, dtype=np.int64), np.full((4, 2), 0.5), texts, consistent, 0, 0)


def rows():
    return [
        LabelledRow(str(n), str(n), note, "a", {"llm": gold} if gold else {})
        for n, (note, gold) in enumerate(zip(NOTES, GOLD, strict=True))
    ]


def compared(places=(0, 1, 2, 3), ours=OURS, warnings=None):
    reference = answers(THEIRS, [True, False, True, None])
    candidate = answers(ours, [True, None, None, None])
    return compare_rationales(rows(), reference, candidate, places, "llm", None, [] if warnings is None else warnings)


def test_likeness_is_that_of_sacrebleu():
    found = compared()
    said, meant = OURS[:3], [text or "" for text in THEIRS[:3]]
    assert found["candidate_vs_reference"]["bleu"] == sacrebleu.corpus_bleu(said, [meant]).score
    assert found["candidate_vs_reference"]["chrf"] == sacrebleu.corpus_chrf(said, [meant]).score
    # The third row has no gold rationale.
    assert found["candidate_vs_gold"]["rows"] == found["reference_vs_gold"]["rows"] == 2
    assert found["candidate_vs_gold"]["chrf"] == sacrebleu.corpus_chrf(said[:2], [GOLD[:2]]).score
    assert found["reference_vs_gold"]["chrf"] == sacrebleu.corpus_chrf(meant[:2], [GOLD[:2]]).score
    assert found["candidate_vs_reference"]["bertscore_f1"] is found["bertscore"] is None


def test_shares_by_hand():
    found = compared()
    assert found["rows"] == 3  # the fourth has none of the reference
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["repetition"] == pytest.approx({"reference": 0, "candidate": 1 / 3})
    # "2" is not in the third note, "120" not in the first
    assert found["unsupported_numbers"] == pytest.approx({"reference": 1 / 3, "candidate": 1 / 3})
    assert found["unsupported_terms"] == pytest.approx({"reference": 0, "candidate": 1 / 3})
    assert found["length_ratio"] == pytest.approx((5 + 5 + 9) / (5 + 5 + 5))
    assert found["consistency"] == {"reference": pytest.approx(2 / 3), "candidate": 1.0}


def test_no_row_with_both():
    assert compared(places=[3]) is None
    assert compared(ours=[None] * 4) is None


def test_a_blank_rationale_counts_but_is_no_reference():
    found = compared(ours=["", *OURS[1:]])
    assert found["empty"] == {"reference": 0, "candidate": 1}
    swapped = compare_rationales(
        rows(), answers(["", *OURS[1:]], [None] * 4), answers(OURS, [None] * 4), [0, 1], "llm", None, []
    )
    assert swapped["candidate_vs_reference"]["rows"] == 1
    assert swapped["consistency"] == {"reference": None, "candidate": None}


def test_without_its_libraries_likeness_is_left_out(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    absent = ("sacrebleu", "bert_score")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    warnings = []
    reference, candidate = answers(THEIRS, [None] * 4), answers(OURS, [None] * 4)
    found = compare_rationales(rows(), reference, candidate, [0, 1, 2], "llm", tmp_path, warnings)
    assert found["candidate_vs_reference"] is found["bertscore"] is None
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert [text.split(":")[0] for text in warnings] == ["BLEU and chrF are left out", "BERTScore is left out"]
