"""The audit log: every change to it is found, or it is said why it cannot be."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r2d_edge.audit import START, AuditError, AuditLog, note_hash, read_key, verify_log
from r2d_edge.decision import Decision

KEY = bytes(range(32))
NOTE = "xyzzypatient with chest pain"
LINES = 6
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX file modes")


def decision(name: str) -> Decision:
    return Decision(name, "urgent", {"urgent": 0.75, "emergent": 0.25}, "tiny 0.0.1 sha256:0")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    writer = AuditLog(path, "ab" * 32, key=KEY)
    for number in range(LINES // 2):
        writer.record([(NOTE, decision(f"{number}a")), (NOTE + "!", decision(f"{number}b"))])
    return path


def test_a_line_says_what_was_decided_and_keeps_no_note(log: Path) -> None:
    assert b"xyzzy" not in log.read_bytes()
    first = json.loads(log.read_bytes().splitlines()[0])
    assert first["id"] == "0a"
    assert first["note"] == hmac.new(KEY, NOTE.encode(), hashlib.sha256).hexdigest() == note_hash(KEY, NOTE)
    assert (first["label"], first["probability"], first["bundle"]) == ("urgent", 0.75, "ab" * 32)
    assert first["time"].endswith("+00:00")
    assert first["previous"] == START


def test_an_untouched_log_is_sound(log: Path) -> None:
    check = verify_log(log)
    assert check.faults == []
    assert check.head.lines == LINES
    assert check.anchored_by == ["head file"]
    assert verify_log(log, head=check.head.hash).faults == []


def test_a_note_that_is_no_text_and_a_label_that_is_none(log: Path) -> None:
    AuditLog(log, "ab" * 32, key=KEY).record([("\ud800", Decision("x" * 10**6, None, {}, "m", abstained=True))])
    last = json.loads(log.read_bytes().splitlines()[-1])
    assert (last["label"], last["probability"], last["abstained"]) == (None, None, True)
    assert last["id"].startswith("sha256:")
    assert verify_log(log).faults == []


def _edited(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b"0.75", b"0.95"), *lines[3:]]


def _rehashed(lines: list[bytes]) -> list[bytes]:
    record = json.loads(lines[2])
    record["label"] = "non-urgent"
    del record["hash"]
    text = json.dumps(record, separators=(",", ":"))
    record["hash"] = hashlib.sha256(text.encode()).hexdigest()
    return [*lines[:2], json.dumps(record, separators=(",", ":")).encode() + b"\n", *lines[3:]]


CHANGES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "edited": (_edited, 3),
    "edited and hashed anew": (_rehashed, 4),
    "a blank put in": (lambda lines: [*lines[:2], lines[2].replace(b'"n":', b'"n": '), *lines[3:]], 3),
    "a key doubled": (lambda lines: [*lines[:2], lines[2].replace(b'{"', b'{"label":"x","', 1), *lines[3:]], 3),
    "first dropped": (lambda lines: lines[1:], 1),
    "one dropped": (lambda lines: lines[:2] + lines[3:], 3),
    "two swapped": (lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]], 3),
    "one twice": (lambda lines: lines[:3] + lines[2:], 4),
    "no record": (lambda lines: [*lines[:2], b"hello\n", *lines[3:]], 3),
    "an empty line": (lambda lines: [*lines[:2], b"\n", *lines[2:]], 3),
    "torn": (lambda lines: [*lines[:-1], lines[-1][:-5]], LINES),
    "without its last line end": (lambda lines: [*lines[:-1], lines[-1][:-1]], LINES),
    "cut off": (lambda lines: lines[:-2], LINES - 1),
    "emptied": (lambda lines: [], 1),
    "last one hashed anew": (lambda lines: [*lines[:-1], *_rehashed([*lines[:2], lines[-1]])[2:]], LINES),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_found_at_its_line(log: Path, change: str) -> None:
    alter, line = CHANGES[change]
    log.write_bytes(b"".join(alter(log.read_bytes().splitlines(keepends=True))))
    faults = verify_log(log).faults
    assert faults
    assert min(fault.line for fault in faults) == line


def test_any_flipped_byte_is_found(log: Path) -> None:
    whole = log.read_bytes()
    for place in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[place] ^= 1
        log.write_bytes(raw)
        assert verify_log(log).faults, place


def test_a_cut_end_needs_an_anchor(log: Path) -> None:
    head = verify_log(log).head
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    (log.parent / "audit.jsonl.head").unlink()
    unanchored = verify_log(log)
    assert unanchored.faults == []  # it cannot be seen, and the report says that nothing held the end
    assert unanchored.anchored_by == []
    assert verify_log(log, head=head.hash).faults
    log.write_bytes(b"".join(lines))
    AuditLog(log, "ab" * 32, key=KEY).record([(NOTE, decision("later"))])
    assert verify_log(log, head=head.hash).faults == []


def test_a_log_that_was_cut_is_not_written_to(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    for rest in (lines[:-1], [], [*lines[:-1], b"hello\n"]):
        log.write_bytes(b"".join(rest))
        with pytest.raises(AuditError, match="audit verify"):
            AuditLog(log, "ab" * 32, key=KEY).record([(NOTE, decision("x"))])
        assert log.read_bytes() == b"".join(rest)


def test_a_torn_line_is_set_aside_and_the_log_says_so(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"schema":1,"n":7,"ti')
    assert verify_log(log).faults
    AuditLog(log, "ab" * 32, key=KEY).record([(NOTE, decision("after"))])
    lines = log.read_bytes().splitlines()
    assert log.read_bytes().startswith(whole)
    assert json.loads(lines[-2])["event"] == "torn line set aside"
    assert json.loads(lines[-1])["id"] == "after"
    assert (log.parent / "audit.jsonl.torn").read_bytes() == b'{"schema":1,"n":7,"ti\n'
    assert verify_log(log).faults == []


def test_a_crash_between_line_and_head_file_is_no_fault(log: Path) -> None:
    head_file = log.parent / "audit.jsonl.head"
    before = head_file.read_bytes()
    writer = AuditLog(log, "ab" * 32, key=KEY)
    writer.record([(NOTE, decision("x"))])
    head_file.write_bytes(before)
    assert verify_log(log).faults == []
    writer.record([(NOTE, decision("y"))])
    assert verify_log(log).head.lines == LINES + 2


def test_several_processes_append_to_one_chain(tmp_path: Path) -> None:
    code = (
        "import sys; from r2d_edge.audit import AuditLog; from r2d_edge.decision import Decision\n"
        "log = AuditLog(sys.argv[1], 'ab' * 32, key=bytes(32))\n"
        "for n in range(25): log.record([('note', Decision(str(n), 'a', {'a': 1.0}, 'm'))])\n"
    )
    path = tmp_path / "audit.jsonl"
    root = Path(__file__).parents[2]
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root) for _ in range(3)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    check = verify_log(path)
    assert check.faults == []
    assert check.head.lines == 75


@posix
def test_what_is_written_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    before = os.umask(0)
    try:
        AuditLog(tmp_path / "log", "ab" * 32).record([(NOTE, decision("x"))])
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"log", "log.head", "log.lock", "audit.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_key_is_made_once_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "audit.key"
    key = read_key(path)
    assert len(key) == 32
    assert read_key(path) == key
    assert read_key(tmp_path / "other.key") != key
    assert [each.name for each in path.parent.iterdir()] == ["audit.key"]
    path.write_text("abc", encoding="ascii")
    with pytest.raises(AuditError, match=r"audit\.key"):
        read_key(path)


def test_a_log_that_cannot_be_written_is_an_error_without_a_note(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "log"):
        with pytest.raises(AuditError) as caught:
            AuditLog(path, "ab" * 32, key=KEY).record([(NOTE, decision("x"))])
        assert "xyzzy" not in str(caught.value)
    with pytest.raises(AuditError):
        verify_log(tmp_path / "absent.jsonl")
