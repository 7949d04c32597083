"""`report` as a user runs it: exit codes, what is written where, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from r2d_edge.task import CTAS_LEVELS
from tests.cli.bundles import NOTES
from tests.cli.conftest import Run

ROWS = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": f"n{number}", "text": f"{NOTES[number % 4]} {number} times.", "label": CTAS_LEVELS[number % 5]}
        for number in range(ROWS)
    ]
    return write(tmp_path / "data.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def decisions(path: Path, labels: list[str], count: int = ROWS) -> Path:
    """Decisions for `count` rows that name one label after the other."""
    rest = 0.3 / (len(CTAS_LEVELS) - 1)
    rows = [
        {"id": f"n{n}", "label": label, "probabilities": {**dict.fromkeys(CTAS_LEVELS, rest), label: 0.7}}
        for n, label in ((n, labels[n % len(labels)]) for n in range(count))
    ]
    return write(path, rows)


@pytest.fixture
def report(run: Run, data: Path, tmp_path: Path) -> Callable[..., Result]:
    def invoke(reference: Path, candidate: Path, *more: str | Path) -> Result:
        sides = ("--reference", reference, "--candidate", candidate, "--data", data)
        return run("report", *sides, "-o", tmp_path / "out", "--resamples", "200", *more)

    return invoke


def test_a_report_is_written_and_its_verdict_is_one_line(
    report: Callable[..., Result], bundle: Path, tmp_path: Path
) -> None:
    result = report(bundle, bundle, "--threads", "1")
    assert result.exit_code == 0, result.stderr
    [line] = result.stdout.splitlines()
    verdict = json.loads(line)
    assert verdict["passed"] is None
    assert verdict["report"] == str(tmp_path / "out" / "report.html")
    assert "Not enough rows to certify" in verdict["summary"]
    assert "the report is at" in result.stderr
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["verdict"]["summary"] == verdict["summary"]
    assert written["compared"]["command"].startswith("r2d-edge report --reference ")
    assert "--resamples 200 --threads 1" in written["compared"]["command"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_no_note_is_shown_unless_asked_for(report: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    plain = report(bundle, bundle)
    files = [(tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("report.json", "report.html")]
    for text in (plain.output, plain.stderr, *files):
        assert not any(note[:40] in text for note in NOTES)
    report(bundle, bundle, "--force", "--show-texts")
    assert NOTES[1] in (tmp_path / "out" / "report.json").read_text(encoding="utf-8")


def test_a_broken_limit_is_exit_code_5(report: Callable[..., Result], tmp_path: Path) -> None:
    one = decisions(tmp_path / "one.jsonl", ["urgent", "emergent"])
    other = decisions(tmp_path / "other.jsonl", ["urgent", "less urgent"])
    result = report(one, other, "--labels", ", ".join(CTAS_LEVELS))
    assert result.exit_code == 5, result.stderr
    assert json.loads(result.stdout)["passed"] is False
    assert json.loads(result.stdout)["summary"].startswith("Failed: flips, net under-triage")
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["flips"]["ordered"]["under"] == ROWS // 2
    assert written["flips"]["ordered"]["two_levels_or_more"] == ROWS // 2


def test_too_few_rows_are_exit_code_5_where_proof_is_asked_for(report: Callable[..., Result], tmp_path: Path) -> None:
    same = decisions(tmp_path / "same.jsonl", ["urgent", "emergent"])
    assert report(same, same).exit_code == 0
    assert report(same, same, "--force", "--require-certified").exit_code == 5


def test_a_gate_that_is_kept(run: Run, tmp_path: Path) -> None:
    rows = [{"id": f"n{n}", "text": f"note {n}", "label": CTAS_LEVELS[n % 5]} for n in range(400)]
    data = write(tmp_path / "data.jsonl", rows)
    same = decisions(tmp_path / "same.jsonl", list(CTAS_LEVELS), 400)
    gate = tmp_path / "gate.json"
    gate.write_text('{"net_under_triage": 0.01, "macro_f1_loss": 0.02}', encoding="utf-8")
    arguments = ("report", "--reference", same, "--candidate", same, "--data", data, "--gate", gate)
    done = run(*arguments, "--labels", ",".join(CTAS_LEVELS), "--require-certified", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True


def test_label_sets_that_differ_are_wrong_usage(report: Callable[..., Result], tmp_path: Path) -> None:
    one = decisions(tmp_path / "one.jsonl", ["urgent"])
    other = write(tmp_path / "other.jsonl", [{"id": "n0", "label": "a", "probabilities": {"a": 0.5, "b": 0.5}}])
    result = report(one, other)
    assert result.exit_code == 2
    assert "has the labels a, b, not resuscitation, " in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_stands_there_is_kept(report: Callable[..., Result], tmp_path: Path) -> None:
    same = decisions(tmp_path / "same.jsonl", ["urgent", "emergent"])
    report(same, same)
    again = report(same, same)
    assert (again.exit_code, "--force" in again.stderr) == (1, True)
    assert report(same, same, "--force").exit_code == 0
    (tmp_path / "out" / "mine.txt").write_text("x", encoding="utf-8")
    refused = report(same, same, "--force")
    assert (refused.exit_code, "something else than a report" in refused.stderr) == (1, True)
    assert (tmp_path / "out" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--gate", "absent.json"], 1, "gate absent.json cannot be read"),
        (["--bertscore", "absent"], 1, "absent is not an encoder's folder"),
        (["--source", "doctor"], 1, "no row has a rationale of source 'doctor'"),
        (["--limit", "0"], 2, "--limit"),
        (["--resamples", "5"], 2, "--resamples"),
        (["--device", "tpu"], 2, "--device"),
    ],
)
def test_what_is_wrong_is_said(
    report: Callable[..., Result], tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    same = decisions(tmp_path / "same.jsonl", ["urgent"])
    result = report(same, same, *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_refused_bundle_is_exit_code_3(report: Callable[..., Result], own_bundle: Path, bundle: Path) -> None:
    (own_bundle / "extra").write_text("x", encoding="utf-8")
    result = report(bundle, own_bundle)
    assert result.exit_code == 3
    assert "not in the manifest: extra" in result.stderr


def test_faulty_rows_are_named_without_their_text(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"text": "a private note"}])
    same = decisions(tmp_path / "same.jsonl", ["urgent"])
    result = run("report", "--reference", same, "--candidate", same, "--data", data, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "row 1: no label" in result.stderr
    assert "private" not in result.stderr


def test_the_group_knows_the_command(run: Run) -> None:
    assert "report" in run("--help").stdout
    told = run("report", "--help").stdout
    for part in ("flips 0.01", "net_under_triage 0.005", "macro_f1_loss 0.01", "ece_increase 0.02", "--show-texts"):
        assert part in told
