from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge import inputs
from r2d_edge.delimited import read_csv
from r2d_edge.errors import InputError
from r2d_edge.inputs import BadRow, Columns, Note, open_notes, read_jsonl, read_text

COLUMNS = Columns()
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def from_jsonl(raw: bytes, columns: Columns = COLUMNS) -> list[Note | BadRow]:
    return list(read_jsonl(io.BytesIO(raw), "rows", columns))


def from_csv(raw: bytes, columns: Columns = COLUMNS) -> list[Note | BadRow]:
    return list(read_csv(io.BytesIO(raw), "rows", columns))


@given(WORDS)
def test_text_comes_back_as_it_was(text: str) -> None:
    plain = text.removeprefix("\ufeff")
    assert read_text(io.BytesIO(plain.encode("utf-8")), "x") == plain.removeprefix("\ufeff")
    assert read_text(io.BytesIO(plain.encode("utf-8-sig")), "x") == plain


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ("fever".encode("utf-16"), "UTF-16"),
        ("fever".encode("utf-16-be", "strict").join([b"\xfe\xff", b""]), "UTF-16"),
        (b"fi\xe8vre", "byte 0xe8 at offset 2"),
        (b"\xef\xbb\xbffi\xe8vre", "byte 0xe8 at offset 2"),
        (b"\x7fELF\0\xff", "binary"),
        (b"\xed\xa0\x80", "not UTF-8"),  # a surrogate spelled in bytes
    ],
)
def test_text_in_a_wrong_encoding_is_named(raw: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as raised:
        read_text(io.BytesIO(raw), "note.txt")
    assert "note.txt" in str(raised.value)


def test_text_has_a_greatest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_NOTE_BYTES", 10)
    assert read_text(io.BytesIO(b"x" * 10), "x") == "x" * 10
    with pytest.raises(InputError, match="longer than"):
        read_text(io.BytesIO(b"x" * 11), "x")


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1))
def test_json_rows_come_back_as_they_were(rows: list[tuple[str, str]]) -> None:
    raw = "".join(json.dumps({"id": id_, "text": text}, ensure_ascii=False) + "\n" for id_, text in rows)
    assert from_jsonl(raw.encode("utf-8")) == [Note(id_, text) for id_, text in rows]


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1))
def test_csv_rows_come_back_as_they_were(rows: list[tuple[str, str]]) -> None:
    kept = [(id_.replace("\0", ""), text.replace("\0", "")) for id_, text in rows]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "id"])
    writer.writerows([text, id_] for id_, text in kept)
    assert from_csv(stream.getvalue().encode("utf-8-sig")) == [Note(id_, text) for id_, text in kept]


@given(st.binary(max_size=200))
def test_any_bytes_have_an_outcome(raw: bytes) -> None:
    for read in (from_jsonl, from_csv, lambda raw: read_text(io.BytesIO(raw), "rows")):
        with contextlib.suppress(InputError):  # anything else would be a crash
            read(raw)


def test_json_rows_without_id_go_by_their_line() -> None:
    assert from_jsonl(b'\n{"text": "a"}\r\n\n{"text": "b", "id": 9}') == [Note("2", "a"), Note("9", "b")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"text": "a\nb"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": 1%s}' % (b"0" * 5000), "not JSON"),
        (b'"text"', "a string, not an object"),
        (b'{"note": "x"}', "no field 'text'"),
        (b'{"text": null}', "null, not a string"),
        (b'{"text": 3}', "a number, not a string"),
        (b'{"text": {"a": 1}}', "an object, not a string"),
        (b'{"text": "x", "id": null}', "null, neither"),
        (b'{"text": "x", "id": true}', "a boolean, neither"),
        (b'{"text": "x", "id": "\\ud800"}', "lone surrogate"),
        (b'{"text": "\xff"}', "byte 0xff at column 11"),
    ],
)
def test_a_bad_json_row_says_why(row: bytes, reason: str) -> None:
    first, *middle, last = from_jsonl(b'{"text": "a"}\n' + row + b'\n{"text": "b"}\n')
    assert (first, isinstance(last, Note) and last.text) == (Note("1", "a"), "b")
    assert reason in " | ".join(bad.reason for bad in middle if isinstance(bad, BadRow))
    assert isinstance(middle[0], BadRow)
    assert middle[0].line == 2


def test_a_line_without_end_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_NOTE_BYTES", 20)
    rows = from_jsonl(b'{"text": "%s"}\n{"text": "b"}\n' % (b"x" * 100))
    assert rows == [BadRow(1, "the line is longer than 0 MiB"), Note("2", "b")]


def test_a_named_id_column_must_exist() -> None:
    [row] = from_jsonl(b'{"text": "a"}', Columns(id="visit"))
    assert isinstance(row, BadRow)
    assert "--id-column" in row.reason
    with pytest.raises(InputError, match="--id-column"):
        from_csv(b"text\na\n", Columns(id="visit"))
    assert from_csv(b"text\na\n\nb\n") == [Note("1", "a"), Note("2", "b")]


def test_bad_csv_rows_are_told_by_their_line() -> None:
    raw = b'id,text\n1,"two\nlines"\n2\n3,a,b\n4,caf\xe9\n5,last\n'
    good, short, long, latin, last = from_csv(raw)
    assert good == Note("1", "two\nlines")
    assert short == BadRow(4, "1 fields where the header names 2")
    assert long == BadRow(5, "3 fields where the header names 2")
    assert latin == BadRow(6, "not UTF-8: save the file as UTF-8")
    assert last == Note("5", "last")


@pytest.mark.parametrize("raw", [b'id,text\n1,a\n2,"never closed\n3,b\n', b'id,text\n1,a\n2,"x"y"\n3,b\n'])
def test_no_row_is_guessed_after_broken_quoting(raw: bytes) -> None:
    first, second = from_csv(raw)
    assert first == Note("1", "a")
    assert isinstance(second, BadRow)
    assert second.line == 3
    assert "not read" in second.reason


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "no rows"),
        (b"id,text\n", "no rows below"),
        (b"a,b\n1,2\n", "no column 'text'"),
        (b"text,text\na,b\n", "2 times"),
        (b"id,te\0xt\n1,a\n", "binary"),
        ("id,text\n1,a\n".encode("utf-16-le").join([b"\xff\xfe", b""]), "UTF-16"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error(raw: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        from_csv(raw)


@pytest.mark.parametrize("raw", [b"", b"\n \n"])
def test_json_lines_without_rows_are_an_error(raw: bytes) -> None:
    with pytest.raises(InputError, match="no rows"):
        from_jsonl(raw)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        open_notes(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        open_notes(tmp_path)
    with pytest.raises(InputError, match=r"a\\x00b|null"):
        open_notes("a\0b")
