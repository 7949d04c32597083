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
