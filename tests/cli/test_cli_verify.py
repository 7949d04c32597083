from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from r2d_edge.bundle import open_bundle, pack
from r2d_edge.integrity.golden import DEFAULT_BOUND, PROBABILITY_BOUND, SLACK
from tests.cli.bundles import reseal, write_golden
from tests.cli.conftest import Run


def test_a_sound_bundle_passes_with_its_digest_and_files(run: Run, bundle: Path) -> None:
    result = run("verify", bundle)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["digest"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    on_disk = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    assert set(report["files"]) == set(on_disk) - {"manifest.json"}
    for name, entry in report["files"].items():
        assert entry["sha256"] == hashlib.sha256(on_disk[name].read_bytes()).hexdigest()
    text = run("verify", bundle, "--format", "text").stdout
    assert report["digest"] in text
    assert all(name in text for name in report["files"])


def _flip(folder: Path) -> None:
    with (folder / "model" / "model.bin").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def _manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _link(folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("links need a privilege on Windows")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (_flip, "model/model.bin"),
    "missing": (lambda folder: (folder / "golden.jsonl").unlink(), "golden.jsonl"),
    "extra": (lambda folder: (folder / "extra.txt").write_text("x", encoding="utf-8"), "extra.txt"),
    "linked outside": (_link, "README.md"),
    "unknown schema": (lambda folder: _manifest(folder, schema=99), "schema 99"),
    "name leads outside": (lambda folder: _manifest(folder, files={"../up": {"size": 1, "sha256": "0"}}), "../up"),
    "manifest is no JSON": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"), "not JSON"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    "empty": (_empty, "no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_refused_with_its_reason(
    run: Run, own_bundle: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine_opened(*_: object) -> None:
        raise AssertionError("an engine was opened on a bundle that is to be refused")

    monkeypatch.setattr("r2d_edge.decide.open_engine", engine_opened)
    harm, reason = DAMAGES[damage]
    harm(own_bundle)
    for arguments in (
        ("verify", own_bundle),
        ("verify", own_bundle, "--rescore"),
        ("infer", "x", "--model", own_bundle),
    ):
        result = run(*arguments)
        assert result.exit_code == 3, result.stderr
        assert result.stdout == ""
        [line] = result.stderr.splitlines()
        assert reason in line


def test_a_cut_archive_is_refused(run: Run, bundle: Path, tmp_path: Path) -> None:
    packed = tmp_path / "tiny.zip"
    pack(open_bundle(bundle), packed)
    assert run("verify", packed).exit_code == 0
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("../escape.txt", "x")
    result = run("verify", packed)
    assert result.exit_code == 3
    assert "escape.txt" in result.stderr
    packed.write_bytes(packed.read_bytes()[:-100])
    assert run("verify", packed).exit_code == 3


def _shift_golden(folder: Path, by: float) -> None:
    rows = open_bundle(folder).golden()
    write_golden(folder, [{label: value + by for label, value in row["log_probabilities"].items()} for row in rows])


def test_rescoring_passes_where_the_bundle_was_made(run: Run, bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    result = run("verify", bundle, "--rescore")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)["rescore"]
    assert report["rows"] == 4
    assert report["worst"] < 1e-4
    assert report["bound"] == SLACK * manifest.extra["parity"]["bound"]
    assert report["worst_probability"] < 1e-4


def test_rescoring_fails_where_the_numbers_differ(run: Run, own_bundle: Path) -> None:
    _shift_golden(own_bundle, 0.5)
    reseal(own_bundle)
    assert run("verify", own_bundle).exit_code == 0
    result = run("verify", own_bundle, "--rescore")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["rescore"]["worst"] == pytest.approx(0.5, abs=1e-3)
    assert len(result.stderr.splitlines()) == 1


def test_rescoring_goes_by_the_bound_of_the_manifest(run: Run, own_bundle: Path) -> None:
    _shift_golden(own_bundle, 0.5)
    reseal(own_bundle, {"parity": {"bound": 0.3}})
    assert run("verify", own_bundle, "--rescore").exit_code == 0
    reseal(own_bundle, {"parity": {"bound": 0.2}})
    assert run("verify", own_bundle, "--rescore").exit_code == 5
    for parity in (None, {"bound": None}, {"bound": True}, {"bound": 0}, {"bound": 10**400}):
        reseal(own_bundle, {"parity": parity})
        assert json.loads(run("verify", own_bundle, "--rescore").stdout)["rescore"]["bound"] == DEFAULT_BOUND


def test_a_model_that_lacks_a_weight_is_an_error_message(run: Run, own_bundle: Path) -> None:
    weights = own_bundle / "model" / "model.bin"
    raw = weights.read_bytes()
    assert b"decoder/layer_0/ffn/layer_norm/gamma" in raw
    weights.write_bytes(raw.replace(b"decoder/layer_0/ffn/layer_norm/gamma", b"decoder/layer_0/ffn/layer_norm/gbmma"))
    reseal(own_bundle)
    result = run("verify", own_bundle, "--rescore")
    assert result.exit_code == 1
    assert "cannot load the model" in result.stderr


def test_a_probability_may_not_move_far_even_within_the_bound_on_scores(run: Run, own_bundle: Path) -> None:
    rows = open_bundle(own_bundle).golden()
    first = next(iter(rows[0]["log_probabilities"]))
    write_golden(own_bundle, [{**row["log_probabilities"], first: row["log_probabilities"][first] + 1} for row in rows])
    reseal(own_bundle, {"parity": {"bound": 5.0}})
    result = run("verify", own_bundle, "--rescore")
    assert result.exit_code == 5
    found = json.loads(result.stdout)["rescore"]
    assert found["worst"] < found["bound"]
    assert found["worst_probability"] > PROBABILITY_BOUND == found["probability_bound"]


def test_golden_numbers_beyond_any_float_are_refused(run: Run, own_bundle: Path) -> None:
    rows = open_bundle(own_bundle).golden()
    write_golden(own_bundle, [dict.fromkeys(row["log_probabilities"], 10**400) for row in rows])
    reseal(own_bundle)
    result = run("verify", own_bundle, "--rescore")
    assert result.exit_code == 3, result.stderr
    assert "cannot be scored" in result.stderr


@pytest.mark.parametrize("shift", [float("nan"), float("inf")])
def test_rescoring_never_passes_on_what_is_no_number(run: Run, own_bundle: Path, shift: float) -> None:
    _shift_golden(own_bundle, shift)
    reseal(own_bundle)
    result = run("verify", own_bundle, "--rescore")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["rescore"]["passed"] is False
