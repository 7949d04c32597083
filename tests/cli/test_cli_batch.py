"""`batch` as a user runs it: exit codes, what stands on stderr, and what a kill leaves."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r2d_edge.batch import tuning
from r2d_edge.batch.files import Files
from tests.cli.bundles import NOTES
from tests.cli.conftest import Run
from tests.cli.test_process import posix, start
from tests.tiny_models import TEXTS

KILLED_ROWS = 400


def write_rows(path: Path, count: int) -> Path:
    rows = [{"id": f"n{n}", "text": f"{n} {TEXTS[1 + n % 8][: 20 + n % 50]}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "R2D_EDGE_DATA"):
        monkeypatch.setenv(name, str(tmp_path / "own"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "notes.jsonl", 6)


def test_a_file_is_decided_as_infer_decides_it(run: Run, bundle: Path, notes: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run("batch", notes, "-o", output, "--model", bundle)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    lines = run("infer", "--file", notes, "--input-format", "jsonl", "--model", bundle).stdout.splitlines()
    for record, line in zip(records, lines, strict=True):
        expected = json.loads(line)
        assert [*record, "ms"] == list(expected)
        assert (record["id"], record["label"]) == (expected["id"], expected["label"])
        assert record["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)
        assert record["rationale"]
    assert "texts a second" in result.stderr
    assert {record["consistent"] for record in records} == {None}
    again = run("batch", notes, "-o", output, "--model", bundle)
    assert again.exit_code == 0
    assert "nothing was left to do" in again.stderr


def test_the_check_is_made_when_asked_for(run: Run, bundle: Path, notes: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run("batch", notes, "-o", output, "--model", bundle, "--check")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert {record["consistent"] for record in records} <= {True, False}
    assert "option check" in run("batch", notes, "-o", output, "--model", bundle).stderr


def test_tables_and_folders_go_together(run: Run, bundle: Path, notes: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(NOTES[0], encoding="utf-8")
    table = tmp_path / "more.csv"
    table.write_text(f'visit;words;ward\n=1;"{NOTES[1]}";a\n2;"{NOTES[2]}";b\n', encoding="utf-8-sig")
    result = run(
        "batch", tmp_path / "texts", notes, "-o", tmp_path / "out.csv", "--model", bundle, "--no-rationale",
        "--excel-bom",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    raw = (tmp_path / "out.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(raw.decode("utf-8-sig").splitlines()))
    assert [row["id"] for row in rows] == ["a.txt", *(f"n{n}" for n in range(6))]
    result = run(
        "batch", table, "-o", tmp_path / "more.out.csv", "--text-column", "words", "--id-column", "visit",
        "--where", "ward=a", "--model", bundle, "--no-rationale",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    [row] = csv.DictReader((tmp_path / "more.out.csv").read_text(encoding="utf-8").splitlines())
    assert row["id"] == "'=1"


def test_bad_rows_are_set_aside(run: Run, bundle: Path, notes: Path, tmp_path: Path) -> None:
    private = "Confidential words of a patient"
    with notes.open("a", encoding="utf-8") as more:
        more.write(f'{{"text": "{private}}}\n')
    output = tmp_path / "out.jsonl"
    strict = run("batch", notes, "-o", output, "--model", bundle, "--no-rationale", "--strict")
    assert strict.exit_code == 1
    assert "line 7: not JSON" in strict.stderr
    assert not output.exists()
    result = run("batch", notes, "-o", output, "--model", bundle, "--no-rationale")
    assert result.exit_code == 4
    assert "1 rows could not be read" in result.stderr
    assert len(output.read_text(encoding="utf-8").splitlines()) == 6
    [bad] = map(json.loads, (tmp_path / "out.jsonl.rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert (bad["line"], bad["reason"].split(" (")[0]) == (7, "not JSON")
    assert private not in strict.stderr + result.stderr + json.dumps(bad)
    assert run("batch", notes, "-o", output, "--model", bundle, "--no-rationale").exit_code == 4


def test_a_large_input_is_tuned_for_once_and_goes_on_as_begun(
    run: Run, bundle: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 2)
    arguments = ["batch", notes, "--model", bundle, "--no-rationale"]
    small = run(*arguments, "-o", tmp_path / "small.jsonl")
    assert (small.exit_code, "measur" in small.stderr) == (0, False)
    for name, value in (("MIN_BYTES", 1), ("PROBE_NOTES", 1), ("NOTES_AT_ONCE", 2)):
        monkeypatch.setattr(tuning, name, value)
    unasked = run(*arguments, "-o", tmp_path / "unasked.jsonl", "--no-tune")
    told = run(*arguments, "-o", tmp_path / "told.jsonl", "--workers", "2")
    assert "measur" not in unasked.stderr + told.stderr
    plain = tuning.tuned_plan
    monkeypatch.setattr(tuning, "_rates", lambda *_, **__: {(1, 1): 1.0, (2, 1): 2.0})
    first = run(*arguments, "-o", tmp_path / "first.jsonl")
    assert first.exit_code == 0, first.stderr
    assert "measuring how many" in first.stderr
    assert "2 workers of 1 thread each: fastest of 2 ways measured now" in first.stderr
    header = json.loads((tmp_path / "first.jsonl.journal").read_bytes().splitlines()[0][9:])
    assert (header["options"]["workers"], header["engine"]["threads"]) == (2, 1)
    assert header["options"]["batch size"] == 2 * 256
    monkeypatch.setattr(tuning, "tuned_plan", None)
    monkeypatch.setattr(Files, "rename", lambda *_: exec("raise OSError(5, 'no')"))
    second = run(*arguments, "-o", tmp_path / "second.jsonl")
    assert "2 workers of 1 thread each: as measured here before" in second.stderr
    assert second.exit_code == 1
    monkeypatch.undo()
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "R2D_EDGE_DATA"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert plain is tuning.tuned_plan
    assert run(*arguments, "-o", tmp_path / "second.jsonl", "--workers", "1").exit_code == 1
    again = run(*arguments, "-o", tmp_path / "second.jsonl")  # nothing is remembered, and it is no other job
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "second.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()


def test_what_is_decided_can_be_logged(run: Run, bundle: Path, notes: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log.jsonl", tmp_path / "out.jsonl"
    result = run("batch", notes, "-o", output, "--model", bundle, "--no-rationale", "--audit", log)
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [(line["row"], line["id"], line["label"]) for line in lines] == [
        (row, record["id"], record["label"]) for row, record in enumerate(records)
    ]
    assert run("audit", "verify", log).exit_code == 0
    absent = run("batch", notes, "-o", tmp_path / "x.jsonl", "--model", bundle, "--audit", tmp_path / "absent" / "log")
    assert absent.exit_code == 1
    assert "audit log" in absent.stderr
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["x.jsonl"], "--output"),
        (["x.jsonl", "-o", "x.out"], "--format"),
        (["-", "-", "-o", "x.jsonl"], "only once"),
        (["x.csv", "-o", "y.csv", "--delimiter", "::"], "one sign"),
        (["x.csv", "-o", "y.csv", "--where", "a"], "COLUMN=VALUE"),
        (["x.csv", "-o", "y.jsonl", "--excel-bom"], "for CSV"),
        (["x.csv", "-o", "y.jsonl", "--check", "--no-rationale"], "--check"),
    ],
)
def test_wrong_usage_is_told(run: Run, arguments: list[str], fault: str) -> None:
    result = run("batch", *arguments)
    assert result.exit_code == 2
    assert fault in result.stderr
    assert len(result.stderr.splitlines()) == 1


def begin(notes: Path, output: Path, bundle: Path) -> subprocess.Popen[bytes]:
    return start("batch", notes, "-o", output, "--model", bundle, "--compute-type", "int8", "--batch-size", "8")


def finish(process: subprocess.Popen[bytes]) -> int:
    process.communicate(timeout=300)
    return process.returncode


def wait_for_more(process: subprocess.Popen[bytes], journal: Path) -> None:
    """Until the journal has grown, or the process has ended."""
    before = journal.stat().st_size if journal.exists() else 0
    while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before + 4000):
        time.sleep(0.01)


def uninterrupted(tmp_path: Path, bundle: Path) -> tuple[Path, bytes]:
    notes, expected = write_rows(tmp_path / "notes.jsonl", KILLED_ROWS), tmp_path / "expected.jsonl"
    assert finish(begin(notes, expected, bundle)) == 0
    return notes, expected.read_bytes()


def test_killed_at_work_the_same_bytes_come_out(bundle: Path, tmp_path: Path) -> None:
    notes, expected = uninterrupted(tmp_path, bundle)
    output = tmp_path / "out.jsonl"
    kills = 0
    for _ in range(3):
        process = begin(notes, output, bundle)
        wait_for_more(process, tmp_path / "out.jsonl.journal")
        process.kill()
        finish(process)
        kills += not output.exists()
    assert kills
    assert finish(begin(notes, output, bundle)) == 0
    assert output.read_bytes() == expected


@pytest.mark.slow
def test_killed_twenty_times_at_random_the_same_bytes_come_out(bundle: Path, tmp_path: Path) -> None:
    notes, expected = uninterrupted(tmp_path, bundle)
    output, seed = tmp_path / "out.jsonl", random.Random(5)
    for _ in range(20):
        process = begin(notes, output, bundle)
        try:
            process.wait(timeout=seed.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            process.kill()
        finish(process)
        if output.exists():
            assert output.read_bytes() == expected
    assert finish(begin(notes, output, bundle)) == 0
    assert output.read_bytes() == expected
    assert len(list(tmp_path.glob("out*"))) == 2  # with its receipt


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_can_go_on(bundle: Path, tmp_path: Path, number: int, code: int) -> None:
    notes, output = write_rows(tmp_path / "notes.jsonl", KILLED_ROWS), tmp_path / "out.jsonl"
    process = begin(notes, output, bundle)
    wait_for_more(process, tmp_path / "out.jsonl.journal")
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert not output.exists()
    raw = (tmp_path / "out.jsonl.journal").read_bytes()
    assert raw.endswith(b"\n")  # nothing torn
    assert finish(begin(notes, output, bundle)) == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == KILLED_ROWS


def test_the_face_loads_nothing_heavy() -> None:
    code = (
        "from r2d_edge.cli import cli; cli.main(['batch', '--help'], standalone_mode=False); import sys; "
        "print([name for name in ('numpy', 'rich', 'pyarrow', 'ctranslate2', 'tokenizers') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8", check=True)
    assert found.stdout.splitlines()[-1] == "[]"
