from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r2d_edge.report.gate import Gate
from r2d_edge.report.terminal import render
from tests.r2d_edge.report.made_reports import made_report

LONG = [f"a rather long label name of the kind that service number {number} may have" for number in range(12)]


def rendered(report: dict[str, Any], width: int = 80) -> list[str]:
    stream = io.StringIO()
    render(report, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made_report(tmp_path_factory.mktemp("terminal"))


def test_it_reads_in_the_order_of_the_page(report: dict[str, Any]) -> None:
    text = "\n".join(rendered(report))
    heads = ["Reference:", "Check ", "Quality ", "Recall ", "labels changed", "Against gold", "Flips:", "Drift "]
    heads += ["Calibration ", "Rationales ", "Moved most", "not a medical device"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "FAILED. Not kept: "),
        ({"noise": 0.0, "rows": 60}, "NOT ENOUGH ROWS TO CERTIFY. Not shown to be kept: "),
        ({"noise": 0.0, "rows": 400, "gate": Gate(0.2, 0.2, 0.2, 0.2)}, "PASSED. Every limit of the gate is kept"),
    ],
)
def test_the_verdict_is_the_last_line_in_words(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    assert rendered(made_report(tmp_path, **options))[-1].startswith(said)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"labels": LONG, "rows": 300, "noise": 0.9},
        {"labels": ("no", "yes"), "rows": 1, "noise": 0.0, "ordered": False, "rationales": False},
    ],
)
def test_it_fits_and_no_word_is_broken(tmp_path: Path, options: dict[str, Any], width: int) -> None:
    lines = rendered(made_report(tmp_path, **options), width)
    assert [line for line in lines[:-1] if len(line) > width] == []
    assert any(line.startswith("Net under-triage ") for line in lines) == options.get("ordered", True)
    assert len(lines) < 100
    if "labels" not in options:
        assert any(line.startswith("resuscitation ") for line in lines)
        assert any(line.startswith("Under-triage ") for line in lines)


def test_figures_are_those_of_the_report(report: dict[str, Any]) -> None:
    lines = rendered(report)
    accuracy = report["quality"]["candidate"]["accuracy"]
    [line] = [line for line in lines if line.startswith("Accuracy")]
    assert f"{100 * accuracy['value']:.1f} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})" in line
    rows = report["flips"]["matrix"]
    [line] = [line for line in lines if line.startswith("1 resuscitation")]
    assert [int(cell) for cell in line.split()[2:]] == rows[0]
    [line] = [line for line in lines if line.startswith("Flips  ")]
    assert f"{100 * report['flips']['rate']:.2f} %" in line
    assert "Failed" in line


def test_risk_by_coverage_stands_beside_the_calibration_of_every_side(report: dict[str, Any]) -> None:
    lines = rendered(report)
    [head] = [place for place, line in enumerate(lines) if line.startswith("Calibration ")]
    assert lines[head].split() == ["Calibration", "ECE", "Brier", "NLL", "AURC", "AUGRC", "Temperature"]
    for line, side in zip(lines[head + 2 :], ("reference", "candidate", "candidate_refitted"), strict=False):
        found = report["calibration"][side]["risk_coverage"]
        assert line.split()[-3:-1] == [f"{found['aurc']:.3f}", f"{found['augrc']:.3f}"]
    earlier = {**report["calibration"], "reference": {**report["calibration"]["reference"]}}
    del earlier["reference"]["risk_coverage"]
    line = rendered({**report, "calibration": earlier})[head + 2]
    assert line.split()[-3:-1] == ["n/a", "n/a"]


def test_labels_and_ids_are_neither_markup_nor_control_sequences(tmp_path: Path) -> None:
    hostile = "[bold red]x[/] :smile:"
    report = made_report(tmp_path, labels=(hostile, "esc\x1b[2J\x07ape", "c"))
    report["worst"][0]["id"] = "[link=http://evil.example]row[/link]"
    report["compared"]["warnings"] = ["differ in [/nothing]\x1b]0;title\x07"]
    text = "\n".join(rendered(report, 100))
    assert hostile in text
    assert "escape" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[link=http://evil." in text
    assert "Note: differ in [/nothing]" in text


def test_null_sections_are_left_out(report: dict[str, Any]) -> None:
    bare = {**report, **dict.fromkeys(("quality", "drift", "calibration", "rationales")), "worst": []}
    text = "\n".join(rendered(bare))
    for head in ("Quality", "Drift", "Calibration", "Rationales", "Moved most", "None", "nan"):
        assert head not in text


def test_it_prints_where_signs_are_few(report: dict[str, Any]) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render(report, Console(file=stream, width=80))
    stream.flush()
    assert b"FAILED." in raw.getvalue()
