from __future__ import annotations

import json
import os
from pathlib import Path

import ctranslate2
import pytest

from r2d_edge import __version__
from r2d_edge.batch import tuning
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


def test_info_states_versions_model_and_engine(run: Run, bundle: Path) -> None:
    result = run("info", "--model", bundle)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["versions"]["r2d-edge"] == __version__
    assert report["versions"]["ctranslate2"] == ctranslate2.__version__
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert report["bundle"]["labels"] == manifest["task"]["labels"]
    assert report["bundle"]["limits"] == manifest["task"]["limits"]
    assert report["bundle"]["calibration"] == manifest["calibration"]
    assert report["bundle"]["licence"] == "Apache-2.0"
    assert report["bundle"]["bytes"] == sum(entry["size"] for entry in manifest["files"].values())
    assert report["engine"]["threads"] == 1
    assert "rule" in report["engine"]["threads_why"]


def test_info_in_words_holds_the_same(run: Run, bundle: Path) -> None:
    report = json.loads(run("info", "--model", bundle).stdout)
    text = run("info", "--model", bundle, "--format", "text").stdout
    for value in (report["bundle"]["digest"], report["engine"]["threads_why"], report["versions"]["platform"]):
        assert value in text


def test_threads_asked_for_are_used(run: Run, bundle: Path) -> None:
    engine = json.loads(run("info", "--model", bundle, "--threads", "2").stdout)["engine"]
    assert (engine["threads"], engine["threads_why"]) == (2, "as asked")


def test_tuning_is_measured_and_remembered(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads on two busy cores can take seconds a note: one note is enough to see the wiring.
    monkeypatch.setattr("r2d_edge.cli.info.TUNE_NOTES", 1)
    for name in ("PROBE_NOTES", "NOTES_AT_ONCE"):
        monkeypatch.setattr(tuning, name, 1)
    monkeypatch.setattr(tuning, "MAX_SECONDS", 600.0)  # whatever else the machine does
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "measured when" in json.loads(run("info", "--model", bundle).stdout)["batch"]["labels"]
    tuned = run("info", "--model", bundle, "--tune")
    assert tuned.exit_code == 0, tuned.stderr
    times = json.loads(tuned.stdout)["tuning"]
    rates = json.loads(tuned.stdout)["batch_tuning"]
    assert set(rates) == {"labels", "rationales"}
    assert set(rates["labels"]) == {"1 worker of 1 thread", "1 worker of 2 threads", "2 workers of 1 thread each"}
    assert json.loads(tuned.stdout)["batch"]["labels"].split(",")[0] in rates["labels"]
    assert {"1", str(os.cpu_count())} <= set(times)
    assert all(ms > 0 for ms in times.values())
    later = json.loads(run("info", "--model", bundle).stdout)["engine"]
    assert str(later["threads"]) == min(times, key=lambda count: times[count])
    assert "measured" in later["threads_why"]
    # Last, for it measures anew: what it remembers may differ from the figures above.
    assert "notes a second" in run("info", "--model", bundle, "--tune", "--format", "text").stdout
