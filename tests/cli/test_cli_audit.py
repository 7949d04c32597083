from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2d_edge.audit import AuditLog
from r2d_edge.decision import Decision
from tests.cli.conftest import Run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, "ab" * 32, key=bytes(32))
    log.record([("a note", Decision(str(n), "urgent", {"urgent": 1.0}, "m")) for n in range(40)])
    return path


def test_a_sound_log(run: Run, log: Path) -> None:
    result = run("audit", "verify", log)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["lines"], report["sound"], report["faults"]) == (40, True, [])
    shown = run("audit", "verify", log, "--format", "text").stdout
    assert report["head"] in shown
    assert run("audit", "verify", log, "--head", report["head"]).exit_code == 0


def test_a_changed_log_is_a_failed_gate(run: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"id":"7"', b'"id":"8"'))
    result = run("audit", "verify", log)
    assert result.exit_code == 5
    assert json.loads(result.stdout)["sound"] is False
    assert result.stderr.startswith("r2d-edge: line 8: edited")


def test_many_faults_are_counted_not_poured_out(run: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"urgent", b"x"))
    result = run("audit", "verify", log)
    assert len(result.stderr.splitlines()) == 21
    assert "20 more faults" in result.stderr
    assert len(json.loads(result.stdout)["faults"]) == 40


def test_no_log(run: Run, tmp_path: Path) -> None:
    result = run("audit", "verify", tmp_path / "absent")
    assert result.exit_code == 1
    assert "absent" in result.stderr


def test_infer_appends_what_it_decided(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    log = tmp_path / "log.jsonl"
    one = run("infer", "chest pain since noon", "--model", bundle, "--no-rationale", "--audit", log)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "cough"}\n{"id": "b", "text": "fever and rash"}\n', encoding="utf-8")
    many = run("infer", "--file", rows, "--input-format", "jsonl", "--model", bundle, "--no-rationale", "--audit", log)
    assert (one.exit_code, many.exit_code) == (0, 0)
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    shown = [json.loads(line) for line in (one.stdout + many.stdout).splitlines()]
    assert [(line["id"], line["label"]) for line in lines] == [(row["id"], row["label"]) for row in shown]
    assert "cough" not in log.read_text(encoding="utf-8")
    assert run("audit", "verify", log).exit_code == 0


def test_what_cannot_be_logged_is_not_shown(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("infer", "chest pain", "--model", bundle, "--no-rationale", "--audit", tmp_path / "absent" / "log")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "audit log" in result.stderr
