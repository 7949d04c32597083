from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.report import wording
from r2d_edge.report.gate import Gate
from tests.r2d_edge.report.made_reports import made_report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made_report(tmp_path_factory.mktemp("wording"))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize(
    ("share", "digits", "said"),
    [
        (0.8166666, 1, "81.7 %"),
        (0.0, 2, "0.00 %"),
        (1.0, 1, "100.0 %"),
        (0.00001, 2, "<0.01 %"),  # a flip in a hundred thousand is not none
        (0.99999, 1, ">99.9 %"),  # and all but one are not all
        (None, 1, "n/a"),
    ],
)
def test_shares_are_never_rounded_to_none_or_all(share: float | None, digits: int, said: str) -> None:
    assert plain(wording.percent(share, digits)) == said


def test_differences_and_intervals_are_in_one_unit() -> None:
    assert plain(wording.points(-0.0265)) == "-2.65 points"
    assert plain(wording.points(0.0265)) == "+2.65 points"
    assert plain(wording.points(-0.00000001)) == "0.00 points"  # no minus nothing
    assert plain(wording.points_interval(-0.04, 0.0137)) == "(-4.00 to +1.37)"
    assert plain(wording.percent_interval(0.93, 0.965)) == "(93.0 to 96.5)"
    assert wording.percent_interval(None, 0.5) == wording.points_interval(0.1, None) == ""
    assert wording.change(None, 0.3) == wording.change(0.3, None) == "n/a"
    assert plain(wording.change(0.25, 0.5)) == "+25.00 points"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.000173735, "0.00017"), (0.0033, "0.0033"), (0.146, "0.15"), (2.5, "2.50"), (0, "0"), (3e-9, "<0.00001")],
)
def test_small_figures_keep_two_digits(value: float, said: str) -> None:
    assert wording.small(value) == said


def test_p_values_and_sizes() -> None:
    assert wording.probability(0.00099) == "p < 0.001"
    assert wording.probability(0.0416) == "p = 0.042"
    assert plain(wording.megabytes(93_878_614)) == "93.9 MB"
    assert wording.count(33981) == "33,981"


def test_the_summary_does_not_repeat_the_verdict(tmp_path: Path, report: dict[str, Any]) -> None:
    assert report["verdict"]["passed"] is False
    assert wording.summary(report) == "Not kept: " + report["verdict"]["summary"].removeprefix("Failed: ")
    passed = made_report(tmp_path, noise=0.0, rows=400, gate=Gate(0.2, 0.2, 0.2, 0.2))
    assert passed["verdict"]["passed"] is True
    assert wording.summary(passed) == "Every limit of the gate is kept, with 95 % confidence."
    passed["verdict"]["summary"] = "Something else altogether."
    assert wording.summary(passed) == "Something else altogether."


def test_each_verdict_has_its_sentences(tmp_path: Path, report: dict[str, Any]) -> None:
    few = made_report(tmp_path / "few", noise=0.0, rows=60)
    passed = made_report(tmp_path / "passed", noise=0.0, rows=400, gate=Gate(0.2, 0.2, 0.2, 0.2))
    assert [r["verdict"]["passed"] for r in (report, few, passed)] == [False, None, True]
    for one in (report, few, passed):
        for sentence in (wording.for_clinicians(one), wording.for_engineers(one)):
            assert sentence.endswith(".")
            assert "None" not in sentence
    assert wording.for_clinicians(report).startswith("Do not let the candidate replace")
    assert f"about {wording.rows_needed(few):,} notes would settle it" in wording.for_clinicians(few)
    assert "says nothing about that" in wording.for_clinicians(passed)
    assert "flips" in wording.for_engineers(report)
    assert "net under-triage up to" in wording.for_engineers(few)


def test_how_many_rows_are_needed_is_the_most_of_the_open_checks(report: dict[str, Any]) -> None:
    changed = copy.deepcopy(report)
    checks = changed["verdict"]["checks"]
    for check, (passed, needed) in zip(checks, [(True, 9999), (None, 300), (None, 700), (False, 8888)], strict=False):
        check["passed"], check["rows_needed"] = passed, needed
    del checks[4:]
    assert wording.rows_needed(changed) == 700
    checks[1]["rows_needed"] = None  # one that nobody knows leaves the whole unknown
    assert wording.rows_needed(changed) is None
    assert "would settle it" not in wording.for_clinicians(
        {**changed, "verdict": {**changed["verdict"], "passed": None}}
    )


def test_under_triage_is_told_in_plain_words(report: dict[str, Any]) -> None:
    ordered = report["flips"]["ordered"]
    assert ordered["under"]
    assert ordered["over"]
    said = plain(wording.under_triage_in_words(report))
    assert f"{ordered['under']} note" in said.partition("less severe")[0]
    assert f"{ordered['over']} note" in said.partition("less severe")[2]
    assert "may wait longer" in said
    quiet = {**report, "flips": {**report["flips"], "ordered": {**ordered, "under": 0, "over": 0}}}
    assert wording.under_triage_in_words(quiet).startswith("No note")


def test_definitions_are_those_of_what_is_shown(tmp_path: Path, report: dict[str, Any]) -> None:
    bare = made_report(tmp_path, labels=("no", "yes"), ordered=False, rationales=False)
    terms = {term for term, _ in wording.definitions(report)}
    fewer = {term for term, _ in wording.definitions(bare)}
    assert terms - fewer == {
        "Under-triage",
        "Sensitivity of the top two levels",
        "BLEU, chrF, BERTScore",
        "Not in the note",
        "Consistency",
    }
    assert any("drawn anew 200 times" in meaning for _, meaning in wording.definitions(bare))


def test_a_label_without_a_row_has_no_recall() -> None:
    scores = {"recall": 0.0, "recall_interval": [0.0, 0.5], "support": 3}
    assert wording.recall(scores) == (0.0, 0.0, 0.5)
    assert wording.recall({**scores, "support": 0}) == (None, None, None)


@pytest.mark.parametrize(
    ("before", "after", "ordered", "said"),
    [("a", "a", True, "same"), ("a", "b", True, "less"), ("b", "a", True, "more"), ("a", "b", False, "flip")],
)
def test_the_direction_of_a_flip_is_told(before: str, after: str, ordered: bool, said: str) -> None:
    row = {"reference_label": before, "candidate_label": after}
    words = wording.flip_in_words(row, ["a", "b"], ordered=ordered)
    assert words == {"less": "flip, ▼ less severe", "more": "flip, ▲ more severe"}.get(said, said)
