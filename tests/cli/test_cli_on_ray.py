"""What `batch --engine ray` says before any Ray is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

ASKED = ["--engine", "ray", "--workers", "1"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["x.csv", "-o", "y.csv", "--excel-bom", *ASKED], "--excel-bom is for --engine local"),
        (["x.csv", "-o", "y.csv", "--audit", "log", *ASKED], "--audit is for --engine local"),
        (["x.csv", "-o", "y.csv", "--no-tune", *ASKED], "--tune is for --engine local"),
        (["-", "-o", "y.jsonl", *ASKED], "stdin is for --engine local"),
        (["x", "-o", "y.jsonl", "--input-format", "text", *ASKED], "--input-format text is for --engine local"),
        (["x.csv", "-o", "y.csv", "--engine", "ray"], "--workers"),
    ],
)
def test_what_a_cluster_does_not_do_is_told(run: Run, arguments: list[str], fault: str) -> None:
    result = run("batch", *arguments)
    assert result.exit_code == 2
    assert fault in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_ray_it_is_said_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "r2d_edge.batch.cluster", raising=False)
    result = run("batch", tmp_path / "x.jsonl", "-o", tmp_path / "out.jsonl", *ASKED)
    assert result.exit_code == 1
    assert 'pip install "r2d-edge[ray]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1
