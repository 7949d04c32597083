import json
import math
from pathlib import Path

import numpy as np
import pytest

from r2d_edge import load
from r2d_edge.bundle import MANIFEST, open_bundle
from r2d_edge.calibration import probabilities
from r2d_edge.label_scores import score_labels
from tests.cli.bundles import reseal
from tests.cli.conftest import Run
from tests.r2d_edge.test_minisign import PUBLIC, SECRET
from tests.tiny_models import TEXTS


@pytest.fixture(scope="session")
def data(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose labels are drawn from the bundle's own probabilities, sharpened."""
    decider = load(bundle)
    generator = np.random.default_rng(1)
    texts = [f"{TEXTS[1 + row % 8]} {row}" for row in range(150)]
    scores = score_labels(decider.engine, decider.encoder, [decider.encoder.predict(text).ids for text in texts])
    labels = decider.task.labels.labels
    chosen = [labels[generator.choice(5, p=row)] for row in probabilities(scores, 0.05)]
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, chosen, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_new_bundle_decides_by_what_was_fitted(run: Run, bundle: Path, data: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    options = ("--risk", "0.5", "--confidence", "0.8", "--cost", "5:1", "--round-up")
    ran = run("calibrate", bundle, "--data", data, "-o", new, *options)
    assert ran.exit_code == 0, ran.stderr
    record = json.loads(ran.stdout)
    fitted = open_bundle(new).manifest.calibration
    assert record["calibration"] == vars(fitted)
    assert record["bundle"] == open_bundle(new).label
    assert fitted.policy == {"under_cost": 5.0, "over_cost": 1.0, "round_up": True}
    assert record["risk"] == {"of": "under-triage", "at_most": 0.5, "confidence": 0.8}
    ran = run("infer", "--model", new, "--check", TEXTS[1])
    decision = json.loads(ran.stdout)
    assert decision["label"] == decision["label_set"][0]
    assert decision["consistent"] in (True, False)
    assert math.fsum(decision["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    before = json.loads(run("infer", "--model", bundle, TEXTS[1]).stdout)
    assert (before["label_set"], before["consistent"]) == (None, None)


def test_in_place(run: Run, own_bundle: Path, data: Path) -> None:
    before = open_bundle(own_bundle).digest
    ran = run("calibrate", own_bundle, "--data", data, "--in-place", "--no-threshold", "--format", "text")
    assert ran.exit_code == 0, ran.stderr
    assert "label sets of coverage 0.9" in ran.stdout
    assert open_bundle(own_bundle).digest != before
    ran = run("verify", own_bundle, "--rescore")
    assert ran.exit_code == 0, ran.stderr


def test_a_signature_that_no_longer_matches_is_told(run: Run, own_bundle: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="signatures are the extra `sign`")
    options = ("--data", data, "--no-threshold")
    ran = run("calibrate", own_bundle, *options, "--in-place")
    assert (ran.exit_code, ran.stderr) == (0, "")
    (tmp_path / "it.key").write_text(SECRET, encoding="utf-8")
    assert run("sign", own_bundle, "--secret-key", tmp_path / "it.key").exit_code == 0
    ran = run("calibrate", own_bundle, *options, "--in-place")  # the same calibration, so the same manifest
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert run("calibrate", own_bundle, *options, "-o", tmp_path / "new").stderr == ""
    ran = run("calibrate", own_bundle, *options, "--in-place", "--coverage", "0.8")
    assert ran.exit_code == 0
    assert "own.minisig no longer matches" in ran.stderr
    assert "r2d-edge sign" in ran.stderr
    assert run("verify", own_bundle, "--public-key", PUBLIC.splitlines()[1]).exit_code == 3


@pytest.mark.parametrize(
    ("options", "why"),
    [(("--risk", "0.001"), "too few: 100, and 5073"), (("--risk", "0.06"), "no threshold qualifies")],
)
def test_nothing_is_written_where_the_risk_cannot_be_shown(
    run: Run, bundle: Path, data: Path, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    if why.startswith("no"):
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        data = tmp_path / "wrong.jsonl"
        worst = "".join(json.dumps({**row, "label": "resuscitation"}) + "\n" for row in rows)
        data.write_text(worst, encoding="utf-8")
        options = (*options, "--confidence", "0.6")
    new = tmp_path / "new"
    ran = run("calibrate", bundle, "--data", data, "-o", new, *options)
    assert ran.exit_code == 5
    assert why in ran.stderr
    assert not new.exists()
    assert json.loads(ran.stdout)["bundle"] is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-o", "new"), "--data"),
        (("--data", "DATA"), "--in-place"),
        (("--data", "DATA", "-o", "new", "--in-place"), "--in-place"),
        (("--data", "DATA", "-o", "new", "--risk", "1.5"), "between 0 and 1"),
        (("--data", "DATA", "-o", "new", "--cost", "3"), "5:1"),
        (("--data", "DATA", "-o", "new", "--cost", "0:1"), "above 0"),
    ],
)
def test_wrong_usage(run: Run, bundle: Path, data: Path, arguments: tuple[str, ...], why: str) -> None:
    ran = run("calibrate", bundle, *(str(data) if part == "DATA" else part for part in arguments))
    assert ran.exit_code == 2
    assert why in ran.stderr


def test_what_is_there_is_not_replaced(run: Run, bundle: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    ran = run("calibrate", bundle, "--data", data, "-o", tmp_path / "new")
    assert (ran.exit_code, "exists" in ran.stderr) == (1, True)
    ran = run("calibrate", "triage-nano", "--data", data, "--in-place")
    assert (ran.exit_code, "give -o NEW" in ran.stderr) == (1, True)


def test_a_model_in_parts_is_not_opened_to_be_refused(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r2d_edge.catalogue.MODELS", tmp_path)
    parts = tmp_path / "triage-small"
    parts.mkdir()
    (parts / "assembly.json").write_text("{}", encoding="utf-8")  # exit code 3 for who opens it
    for name in ("small", "triage-small", parts):
        ran = run("calibrate", name, "--data", data, "--in-place")
        assert (ran.exit_code, "give -o NEW" in ran.stderr) == (1, True)


def test_a_setting_that_is_dropped_is_told(run: Run, own_bundle: Path, data: Path, tmp_path: Path) -> None:
    calibration = json.loads((own_bundle / MANIFEST).read_text(encoding="utf-8"))["calibration"]
    reseal(own_bundle, {"calibration": {**calibration, "settings": {"ctas": 0.9, "ktas": 1.1}}})
    options = ("--risk", "0.5", "--confidence", "0.8", "--keep-temperature", "--setting", "ctas", data)
    ran = run("calibrate", own_bundle, *options, "-o", tmp_path / "new")
    assert ran.exit_code == 0, ran.stderr
    assert "does not know setting 'ktas'" in ran.stderr
    assert "'ctas'" not in ran.stderr
    assert open_bundle(tmp_path / "new").manifest.calibration.settings == {"ctas": 0.9}
    ran = run("infer", "--model", tmp_path / "new", "--setting", "ktas", TEXTS[1])
    assert (ran.exit_code, "'ktas'" in ran.stderr) == (1, True)


def test_check_needs_a_rationale(run: Run, bundle: Path) -> None:
    ran = run("infer", "--model", bundle, "--check", "--no-rationale", TEXTS[1])
    assert ran.exit_code == 2
    assert "--no-rationale" in ran.stderr
