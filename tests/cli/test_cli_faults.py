"""`infer` on what nobody should give it: each has its outcome, and no message repeats a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2d_edge.inputs import MAX_NOTE_BYTES
from tests.cli.bundles import NOTES
from tests.cli.conftest import Run

MARK = "xyzzypatient"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty note"),
        (" \n\t ", "empty note"),
        ("\0\0\0\0", "not text"),
        ("\x01\x02\x03\x04\x05", "not text"),
        ("chest\0pain", "not text"),
    ],
)
def test_what_is_no_note_is_abstained_on(run: Run, bundle: Path, text: str, reason: str) -> None:
    result = run("infer", "--model", bundle, stdin=text)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["label"], record["abstained"], record["reason"]) == (None, True, reason)
    assert record["probabilities"] == {}
    shown = run("infer", "--model", bundle, "--format", "text", stdin=text)
    assert shown.stdout.startswith(f"ABSTAINED: {reason}\nNo label was given")


def test_a_lone_surrogate_is_abstained_on(run: Run, bundle: Path) -> None:
    rows = '{"text": "\\ud800"}\n{"text": "pain \\udfff in the chest"}\n'
    result = run("infer", "--input-format", "jsonl", "--model", bundle, stdin=rows)
    assert result.exit_code == 0
    assert [json.loads(line)["reason"] for line in result.stdout.splitlines()] == ["not valid Unicode"] * 2


def test_an_overlong_note_is_read_in_part_and_says_so(run: Run, bundle: Path) -> None:
    record = json.loads(run("infer", "--model", bundle, stdin="chest pain and fever " * 2000).stdout)
    assert record["truncated"]
    assert (record["abstained"], record["reason"]) == (True, "truncated")
    assert record["label"] in record["probabilities"]


def test_bad_rows_cost_no_other_row(run: Run, bundle: Path) -> None:
    rows = [
        b'{"id": "good", "text": "Chest pain."}',
        b'{"id": "x"}',
        b"%s is no JSON" % MARK.encode(),
        b'{"text": ["%s"]}' % MARK.encode(),
        b'["%s"]' % MARK.encode(),
        b"",
        b'{"text": "%s caf\xe9"}' % MARK.encode(),
        b'{"id": {"a": 1}, "text": "%s"}' % MARK.encode(),
        b'{"id": "last", "text": "Sprained ankle."}',
    ]
    result = run("infer", "--input-format", "jsonl", "--model", bundle, stdin=b"\n".join(rows))
    assert result.exit_code == 4
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["good", "last"]
    named = [line.split(": ")[1] for line in result.stderr.splitlines()[:-1]]
    assert named == [f"line {number}" for number in (2, 3, 4, 5, 7, 8)]
    assert MARK not in result.stderr


FILES = {
    "latin-1": (f"{MARK} fièvre".encode("latin-1"), "text", "not UTF-8"),
    "utf-16": (f"{MARK} fever".encode("utf-16"), "text", "UTF-16"),
    "image": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "text", "binary"),
    "too long": (MARK.encode() * (MAX_NOTE_BYTES // len(MARK) + 1), "text", "MiB"),
    "no rows": (b"\n\n", "jsonl", "no rows"),
    "header alone": (b"id,text\n", "csv", "no rows"),
    "no header": (f"{MARK} has pain,{MARK}\n".encode(), "csv", "no column 'text'"),
    "utf-16 table": ("id,text\n1,pain\n".encode("utf-16"), "csv", "UTF-16"),
    "binary table": (b"id,text\0\n1,pain\n", "csv", "binary"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_named_with_its_fault(run: Run, bundle: Path, tmp_path: Path, name: str) -> None:
    content, kind, fault = FILES[name]
    path = tmp_path / "notes.bin"
    path.write_bytes(content)
    result = run("infer", "--file", path, "--input-format", kind, "--model", bundle)
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert str(path) in line
    assert fault in line
    assert MARK not in result.stderr


USAGE = {
    "words": (["infer", MARK, "has", "pain"], "quotation marks"),
    "note like an option": (["infer", f"--{MARK} has pain"], "--file"),
    "note for a command": ([f"{MARK} has pain"], "no such command"),
    "option for a command": ([f"--{MARK} has pain"], "--file"),
    "note and file": (["infer", MARK, "--file", "-"], "not both"),
    "note and rows": (["infer", MARK, "--input-format", "csv"], "from --file or stdin"),
    "unknown option": (["infer", "--modle", "x", MARK], "--modle"),
    "no threads": (["infer", MARK, "--threads", "-1"], "--threads"),
    "note for info": (["info", f"{MARK} has pain"], "too many arguments"),
    "note for verify": (["verify", "bundle", f"{MARK} has pain"], "too many arguments"),
    "too wide a beam": (["infer", MARK, "--beam-size", "5000"], "--beam-size"),
    "unknown device": (["infer", MARK, "--device", "tpu"], "tpu"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, name: str) -> None:
    arguments, hint = USAGE[name]
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert hint in line
    assert "--help" in line
    assert MARK not in line


def test_a_path_given_as_note_is_not_scored(run: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text(NOTES[0], encoding="utf-8")
    result = run("infer", path, "--model", bundle)
    assert result.exit_code == 2
    assert "--file" in result.stderr


def test_a_note_that_begins_with_a_dash_follows_two_dashes(run: Run, bundle: Path) -> None:
    result = run("infer", "--model", bundle, "--no-rationale", "--", "- chest pain")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["label"]


@pytest.mark.parametrize("kind", ["missing file", "folder"])
def test_a_file_that_is_none_fails(run: Run, bundle: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "none.txt" if kind == "missing file" else tmp_path
    result = run("infer", "--file", path, "--model", bundle)
    assert result.exit_code == 1
    assert str(path) in result.stderr


def test_an_unknown_model_is_refused(run: Run) -> None:
    result = run("infer", NOTES[0], "--model", "no-such-model")
    assert result.exit_code == 3
    assert "no-such-model" in result.stderr
    assert result.stdout == ""


def test_a_damaged_bundle_is_refused(run: Run, own_bundle: Path) -> None:
    with (own_bundle / "model" / "model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    result = run("infer", NOTES[0], "--model", own_bundle)
    assert result.exit_code == 3
    assert "model.bin" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_unexpected_failure_names_its_kind_alone(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2d_edge.decide import Decider

    def fail(self: Decider, text: str, **_: object) -> None:
        raise KeyError(text)

    monkeypatch.setattr(Decider, "decide", fail)
    result = run("infer", MARK, "--model", bundle)
    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    assert "--debug" in result.stderr
    assert MARK not in result.stderr
    assert "Traceback" in run("--debug", "infer", MARK, "--model", bundle).stderr
