from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.batch.files import Files
from r2d_edge.batch.journal import SCHEMA, SYNC_RECORDS, SYNC_SECONDS, Journal, encode, read, read_header
from r2d_edge.errors import InputError

RECORDS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), max_size=8)


def written(records: list[dict[str, Any]]) -> list[bytes]:
    lines, crc = [], 0
    for record in records:
        line, crc = encode(record, crc)
        lines.append(line)
    return lines


def found(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text, _, _ in read(io.BytesIO(raw))]


@given(RECORDS)
def test_records_come_back_as_they_were(records: list[dict[str, Any]]) -> None:
    raw = b"".join(written(records))
    assert found(raw) == records
    assert [end for _, end, _ in read(io.BytesIO(raw))][-1:] == ([len(raw)] if records else [])


@given(RECORDS, st.data())
def test_a_torn_tail_costs_the_torn_record_alone(records: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = written(records)
    raw = b"".join(lines)
    size = data.draw(st.integers(0, len(raw)))
    whole = next(count for count in range(len(lines), -1, -1) if len(b"".join(lines[:count])) <= size)
    junk = data.draw(st.sampled_from([b"", b"\0" * 40, b"\n"]))
    # What follows the tear may end the torn line well only if it is what was torn off.
    torn = raw[:size] + junk
    expected = whole + (raw.startswith(torn) and torn in [b"".join(lines[:count]) for count in range(whole + 1, 9)])
    assert found(torn) == records[:expected]


@given(RECORDS.filter(len), st.data())
def test_a_changed_byte_ends_the_journal_there(records: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = written(records)
    raw = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    intact = next(count for count in range(len(lines)) if len(b"".join(lines[: count + 1])) > place)
    assert found(bytes(raw)) == records[:intact]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_a_crash(raw: bytes) -> None:
    assert found(raw) == []


def test_a_record_missing_doubled_or_moved_is_seen() -> None:
    records = [{"n": number} for number in range(4)]
    a, b, c, d = written(records)
    assert found(a + c + d) == records[:1]
    assert found(a + b + b + c) == records[:2]
    assert found(a + c + b + d) == records[:1]


class Counting(Files):
    def __init__(self) -> None:
        self.syncs = 0

    def sync(self, handle: int) -> None:
        self.syncs += 1
        super().sync(handle)


def test_the_disk_confirms_every_few_records_and_seconds(tmp_path: Path) -> None:
    files, now = Counting(), [0.0]
    journal = Journal(tmp_path / "j", files, files.create(tmp_path / "j"), 0, clock=lambda: now[0])
    for _ in range(SYNC_RECORDS - 1):
        journal.append({})
    assert files.syncs == 0
    journal.append({})
    assert files.syncs == 1
    now[0] = SYNC_SECONDS
    journal.append({})
    assert files.syncs == 2
    journal.sync()
    assert files.syncs == 2  # nothing new
    journal.close()
    journal.close()


def test_a_resumed_journal_is_as_if_never_stopped(tmp_path: Path) -> None:
    path, records = tmp_path / "j", [{"journal": 1}, {"a": 1}, {"b": 2}]
    lines = written(records)
    path.write_bytes(lines[0] + lines[1] + lines[2][:7])
    with path.open("rb") as stream:
        *_, (_, end, crc) = read(stream)
    journal = Journal.resume(path, Files(), end, crc)
    journal.append(records[2])
    journal.close()
    assert path.read_bytes() == b"".join(lines)


def test_a_header_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert read_header(path) is None
    for torn in (b"", b"0123", encode({"journal": SCHEMA}, 0)[0][:-1], b"\0" * 100):
        path.write_bytes(torn)
        assert read_header(path) is None
    path.write_bytes(encode({"journal": SCHEMA, "x": 2}, 0)[0] + b"torn")
    assert read_header(path) == {"journal": SCHEMA, "x": 2}
    for other in (b"id,text\n", b"1\n2\n", encode({"journal": SCHEMA - 1}, 0)[0], encode({"x": 1}, 0)[0]):
        path.write_bytes(other)
        with pytest.raises(InputError, match="not a journal"):
            read_header(path)
