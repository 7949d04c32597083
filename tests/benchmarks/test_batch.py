from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import batch_figures, batch_kills
from benchmarks.batch import main
from benchmarks.batch_kills import AuditDamage, Damage, audit_damage_of, damage_of
from benchmarks.batch_notes import cycled, distinct, repeated
from benchmarks.process import SideError
from r2d_edge.audit import AuditLog
from r2d_edge.decide import Decider, load
from r2d_edge.decision import Decision
from r2d_edge.engines import EngineOptions
from tests.cli.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def decider(bundle: Path) -> Decider:
    return load(bundle, EngineOptions(device="cpu", threads=1))


def test_every_row_has_an_id_and_the_asked_number_of_texts() -> None:
    for rows in (list(repeated(100, 7)), list(cycled(100, 7))):
        assert len({id_ for id_, _ in rows}) == 100
        assert len({text for _, text in rows}) == 7
    assert len({text for _, text in distinct(8000)}) == 8000


def test_kills_are_made_and_the_verdict_is_told(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "kills.json"
    arguments = ["kills", "--kills", "3", "--notes", "60", "--texts", "30", "--no-rationale", "--batch-size", "4"]
    run = CliRunner().invoke(main, [*arguments, "--model", str(bundle), "-o", str(target)])
    assert run.exit_code == 0, run.output
    result = json.loads(target.read_text(encoding="utf-8"))
    assert result["kills"]["made"] == 3
    assert sum(result["kills"].values()) == 6
    assert result["identical"]
    assert result["rows"] == {"lost": 0, "doubled": 0, "torn": 0, "changed": 0}
    assert result["audit_log"] == {"faults": 0, "lost": 0, "doubled": 0}
    assert result["outputs_compared"] > 0
    assert "byte-identical" in run.output
    assert str(tmp_path) not in target.read_text(encoding="utf-8")


def test_an_output_that_differs_fails(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = batch_kills._in_peace

    def other(*arguments: object) -> tuple[bytes, batch_kills._Work, int]:
        expected, work, steps = plain(*arguments)  # type: ignore[arg-type]
        return expected.replace(b'"n0000001"', b'"n9000001"'), work, steps

    monkeypatch.setattr(batch_kills, "_in_peace", other)
    arguments = ["kills", "--kills", "1", "--notes", "20", "--texts", "9", "--no-rationale", "--model", str(bundle)]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 1
    assert "NOT the same" in run.output


def test_a_run_that_fails_by_itself_is_no_kill(tmp_path: Path) -> None:
    with pytest.raises(SideError, match="there is no file"):
        batch_kills.prove(tmp_path / "absent", tmp_path, 1, 0, [], lambda what: None)


def test_damage_is_counted_row_by_row() -> None:
    a, b, c = (f'{{"id": "{name}", "label": "x"}}\n'.encode() for name in "abc")
    assert damage_of(a + b + c, a + b + c) == Damage()
    assert damage_of(a + b + c, a + c) == Damage(lost=1)
    assert damage_of(a + b + c, a + b + b + c) == Damage(doubled=1)
    assert damage_of(a + b + c, a + b + c[:9]) == Damage(lost=1, torn=1)
    assert damage_of(a + b + c, a + b + c[:-1]) == Damage(torn=1)
    assert damage_of(a + b + c, a + b.replace(b"x", b"y") + c) == Damage(changed=1)


def test_damage_of_an_audit_log_is_counted(tmp_path: Path) -> None:
    decided = [(text, Decision(text, "urgent", {"urgent": 1.0}, "m")) for text in "abc"]
    log = AuditLog(tmp_path / "log", "ab" * 32, key=bytes(32))
    log.record(decided, job="j")
    assert audit_damage_of(log.path, 3) == AuditDamage()
    assert audit_damage_of(log.path, 5) == AuditDamage(lost=2)
    log.record(decided[:1], job="j", first_row=2)
    assert audit_damage_of(log.path, 3) == AuditDamage(doubled=1)
    log.path.write_bytes(log.path.read_bytes().replace(b"urgent", b"nothing", 1))
    assert audit_damage_of(log.path, 3) == AuditDamage(faults=1, doubled=1)


def test_throughput_is_measured_on_the_same_notes(decider: Decider, tmp_path: Path) -> None:
    found = batch_figures.throughput(decider, tmp_path, 24, rationale=False, tell=lambda what: None)
    assert 0 < found["share_of_peak"] < 2
    assert found["notes_per_second"]["engine"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.jsonl"]


def test_the_peak_is_that_of_the_batch_run(bundle: Path, tmp_path: Path) -> None:
    found = batch_figures.peak_bytes(tmp_path, 40, ["--model", str(bundle)])
    assert 10e6 < found["peak_bytes"] < 1e9
    with pytest.raises(SideError):
        batch_figures.peak_bytes(tmp_path, 40, ["--model", str(tmp_path / "absent")])


def test_a_resume_goes_on_behind_the_finished_rows(decider: Decider, tmp_path: Path) -> None:
    found = batch_figures.resume(decider, tmp_path, 3500)
    assert found["journal_bytes"] > 3500 * 100
    assert set(found["seconds_to_first_note"]) == {"new", "resumed"}
    assert list(tmp_path.iterdir()) == []


def test_figures_are_held_against_their_targets() -> None:
    result = {
        "throughput": [{"notes": 5000, "rationale": False, "share_of_peak": 0.95}],
        "memory": [{"rows": 10, "peak_bytes": 100}, {"rows": 1000, "peak_bytes": 111}],
        "resume": {"rows": 10, "adds_seconds_per_million": 1.9},
    }
    found = batch_figures.figures(result)
    assert [figure["reached"] for figure in found] == [True, False, True]
    assert found[1]["value"] == pytest.approx(0.11)
