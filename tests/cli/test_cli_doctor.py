"""`doctor`: sound here, different here, refused here; each with what is known of the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.bundles import NOTES, reseal, write_golden
from tests.cli.conftest import Run
from tests.tiny_models import TINY_TASK


def test_a_sound_model_is_healthy(run: Run, bundle: Path) -> None:
    result = run("doctor", "--model", bundle, "--json", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["healthy"] is True
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["golden"]["passed"] is True
    assert found["golden"]["rows"] == len(NOTES)
    assert found["bundle"]["every_file_as_sealed"] is True
    assert found["engine"]["threads"] == 1
    assert found["engine"]["threads_why"] == "as asked"
    assert "float32" in found["engines"]["ctranslate2"]["cpu_compute_types"]
    import ctranslate2

    assert found["versions"]["ctranslate2"] == found["engines"]["ctranslate2"]["version"] == ctranslate2.__version__


def test_text_shows_the_same(run: Run, bundle: Path) -> None:
    shown = run("doctor", "--model", bundle, "--format", "text").stdout
    for line in ("machine", "versions", "engines", "bundle", "golden", "healthy: yes"):
        assert line in shown.splitlines()


def test_scores_that_differ_here_are_a_failed_gate(run: Run, own_bundle: Path) -> None:
    labels = TINY_TASK.labels.labels
    write_golden(own_bundle, [dict.fromkeys(labels, -5.0)] * len(NOTES))
    reseal(own_bundle)
    result = run("doctor", "--model", own_bundle)
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert found["golden"]["passed"] is False
    assert found["healthy"] is False
    assert "do not use this model here" in result.stderr


@pytest.mark.parametrize("rows", ["", "[]\n", '{"text": 1}\n', '{"text": "a", "log_probabilities": {}}\n', "\xff{"])
def test_golden_inputs_that_are_none_are_never_healthy(run: Run, own_bundle: Path, rows: str) -> None:
    (own_bundle / "golden.jsonl").write_bytes(rows.encode("latin-1"))
    reseal(own_bundle)
    result = run("doctor", "--model", own_bundle)
    assert result.exit_code in (3, 5), result.stderr
    assert json.loads(result.stdout)["healthy"] is False
    assert run("verify", own_bundle, "--rescore").exit_code in (3, 5)


def test_free_text_labels_leave_nothing_to_compare(run: Run, own_bundle: Path) -> None:
    write_golden(own_bundle, [{}] * len(NOTES))
    data = json.loads((own_bundle / "manifest.json").read_text(encoding="utf-8"))
    reseal(own_bundle, {"task": {**data["task"], "labels": [], "label_kind": "open"}})
    for arguments, name in (
        (("doctor", "--model", own_bundle), "golden"),
        (("verify", own_bundle, "--rescore"), "rescore"),
    ):
        result = run(*arguments)
        assert result.exit_code == 5, result.stderr
        found = json.loads(result.stdout)[name]
        assert (found["rows"], found["worst"], found["passed"]) == (0, None, False)
        assert "free text" in found["nothing_to_compare"]
        assert "nothing to compare" in result.stderr
        assert "do not use" not in result.stderr
        assert "free text" in run(*arguments, "--format", "text").stdout


def test_a_refused_bundle_still_shows_the_machine(run: Run, own_bundle: Path) -> None:
    (own_bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    result = run("doctor", "--model", own_bundle)
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["healthy"] is False
    assert "tokenizer.json" in found["problem"]
    assert found["machine"]["cpu"]
    assert "golden" not in found


def test_the_embedded_model_is_healthy_here(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["bundle"]["name"].startswith("triage-nano ")
