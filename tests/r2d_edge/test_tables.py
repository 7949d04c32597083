from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r2d_edge import tables
from r2d_edge.delimited import DELIMITERS, read_csv
from r2d_edge.errors import InputError
from r2d_edge.inputs import BadRow, Columns, Note
from r2d_edge.tables import Reading, Source, where_of

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def from_csv(raw: bytes, columns: Columns | None = None, **how: Any) -> list[Note | BadRow]:
    return list(read_csv(io.BytesIO(raw), "rows", columns or Columns(), **how))


def rows_of(path: Path, **reading: Any) -> list[Note | BadRow]:
    return list(Source(str(path), Reading(**reading)).rows())


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1), st.sampled_from(DELIMITERS), st.booleans())
def test_csv_rows_come_back_whatever_parts_them(rows: list[tuple[str, str]], delimiter: str, bom: bool) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "id"])
    writer.writerows([text, id_] for id_, text in rows)
    raw = stream.getvalue().encode("utf-8-sig" if bom else "utf-8")
    assert from_csv(raw) == [Note(id_, text) for id_, text in rows]
    assert from_csv(raw, delimiter=delimiter) == [Note(id_, text) for id_, text in rows]


@given(st.binary(max_size=200))
def test_any_bytes_have_an_outcome(raw: bytes) -> None:
    for beginning in (b"", b"id,text\n"):
        try:
            found = from_csv(beginning + raw)
        except InputError:
            continue
        assert all(isinstance(row, (Note, BadRow)) for row in found)


def test_bad_csv_rows_are_told_by_their_line() -> None:
    raw = b'id;text\n1;"two\nlines"\n2\n4;caf\xe9\n5;a\0b\n6;last\n'
    assert from_csv(raw) == [
        Note("1", "two\nlines"),
        BadRow(4, "1 fields where the header names 2"),
        BadRow(5, "not UTF-8: save the file as UTF-8"),
        BadRow(6, "binary: it holds a NUL character"),
        Note("6", "last"),
    ]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "no rows"),
        (b"id,text\n", "no rows below"),
        (b"a,b\n1,2\n", "no column 'text'.*--text-column"),
        (b"text,text\na,b\n", "2 times"),
        (b"\0\0", "binary"),
        ("id,text\n1,a\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error(raw: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        from_csv(raw)


def test_no_row_is_guessed_after_broken_quoting() -> None:
    first, second = from_csv(b'id,text\n1,a\n2,"never closed\n3,b\n')
    assert first == Note("1", "a")
    assert isinstance(second, BadRow)
    assert "not read" in second.reason


def test_rows_are_chosen_by_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.jsonl"
    rows = [{"text": "a", "ward": 3, "done": True}, {"text": "b", "ward": "3"}, {"text": "c"}, {"ward": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n", encoding="utf-8-sig")
    assert rows_of(path, where={"ward": "3"})[:2] == [Note("1", "a"), Note("2", "b")]
    assert [row.line for row in rows_of(path, where={"ward": "3"})[2:] if isinstance(row, BadRow)] == [4, 5]
    assert rows_of(path, where={"ward": "3", "done": "true"})[0] == Note("1", "a")
    monkeypatch.setattr("r2d_edge.inputs.MAX_NOTE_BYTES", 40)
    path.write_text('{"text": "%s"}\n{"text": "b", "ward": 3}\n' % ("x" * 100), encoding="utf-8")
    long, second = rows_of(path, where={"ward": "3"})
    assert isinstance(long, BadRow)
    assert second == Note("2", "b")
    table = tmp_path / "notes.csv"
    table.write_text("text\tward\na\t3\nb\t4\n", encoding="utf-8")
    assert rows_of(table, where={"ward": "4"}) == [Note("2", "b")]
    with pytest.raises(InputError, match=r"no column 'bed'.*--where"):
        rows_of(table, where={"bed": "4"})


def test_where_needs_a_column_and_a_value() -> None:
    assert where_of(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for wrong in ("a", "=b"):
        with pytest.raises(ValueError, match="COLUMN=VALUE"):
            where_of([wrong])


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.TXT").write_text("two", encoding="utf-8-sig")
    (tmp_path / "1.txt").write_text("one", encoding="utf-8")
    (tmp_path / "9.txt").write_bytes(b"caf\xe9")
    (tmp_path / "other.pdf").write_bytes(b"%PDF")
    one, bad, two = rows_of(tmp_path)
    assert (one, two) == (Note("1.txt", "one"), Note("b/2.TXT", "two"))
    assert isinstance(bad, BadRow)
    assert "9.txt is not UTF-8" in bad.reason
    source = Source(str(tmp_path), Reading())
    before = source.sha256()
    (tmp_path / "1.txt").rename(tmp_path / "3.txt")
    assert source.sha256() != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt files"):
        rows_of(tmp_path / "empty")
    with pytest.raises(InputError, match="is a folder"):
        rows_of(tmp_path, format="csv")
    with pytest.raises(InputError, match="no columns to choose"):
        rows_of(tmp_path, where={"a": "b"})


def test_an_input_is_told_by_its_name_or_by_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        Source(str(tmp_path / "none.csv"), Reading())
    (tmp_path / "notes.dat").write_text("text\na\n", encoding="utf-8")
    with pytest.raises(InputError, match="--input-format"):
        Source(str(tmp_path / "notes.dat"), Reading())
    assert rows_of(tmp_path / "notes.dat", format="csv") == [Note("1", "a")]
    assert rows_of(tmp_path / "notes.dat", format="text") == [Note("notes.dat", "text\na\n")]


class TestParquet:
    @pytest.fixture(autouse=True)
    def arrow(self) -> Any:
        self.pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet")
        self.parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet")

    def write(self, path: Path, **columns: Any) -> Path:
        self.parquet.write_table(self.pyarrow.table(columns), path)
        return path

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), WORDS), min_size=1))
    def test_rows_come_back_as_they_were(self, tmp_path: Path, rows: list[tuple[int, str]]) -> None:
        path = self.write(tmp_path / "n.parquet", id=[id_ for id_, _ in rows], text=[text for _, text in rows])
        assert rows_of(path) == [Note(str(id_), text) for id_, text in rows]

    def test_a_bad_row_is_told_by_its_number(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "n.parquet", text=["a", None, "c"], ward=[1, 1, 2])
        assert rows_of(path) == [Note("1", "a"), BadRow(2, "column 'text' is null, not a string"), Note("3", "c")]
        assert rows_of(path, where={"ward": "2"}) == [Note("3", "c")]
        assert rows_of(self.write(tmp_path / "f.parquet", text=[1.5])) == [
            BadRow(1, "column 'text' is of type float, not a string")
        ]

    def test_what_is_no_table_of_notes_is_an_error(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "n.parquet", words=["a"])
        with pytest.raises(InputError, match="column 'text' 0 times"):
            rows_of(path)
        with pytest.raises(InputError, match="column 'visit' 0 times"):
            rows_of(path, columns=Columns("words", "visit"))
        whole = path.read_bytes()
        for raw in (b"", b"PAR1", whole[:-9], whole[20:]):
            path.write_bytes(raw)
            with pytest.raises(InputError, match=r"not a Parquet file|damaged"):
                rows_of(path, columns=Columns("words"))


def test_without_pyarrow_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"r2d-edge\[parquet\]"):
        tables.load_parquet()


@pytest.mark.parametrize("what", ["all", "some"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder"])
def test_rows_that_are_passed_over_are_those_that_were_given(kind: str, what: str, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "text": f"note {n}", "ward": "ab"[n % 3 == 0]} for n in range(2100 if kind == "parquet" else 20)
    ]
    path = tmp_path / f"notes.{kind}"
    if kind == "jsonl":
        lines = [json.dumps(row) for row in rows]
        lines[4:5] = ["", "no JSON", '"text"']
        path.write_text("\n".join(lines), encoding="utf-8")
    elif kind == "csv":
        lines = [f"{row['id']},{row['text']},{row['ward']}" for row in rows]
        lines[4:5] = ["", "x", 'a,"two\nlines",b', "caf\udce9,x,a"]
        path.write_text(
            "id,text,ward\n" + "\n".join(lines) + '\nx,"never closed', encoding="utf-8", errors="surrogateescape"
        )
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet")
        pytest.importorskip("pyarrow.parquet", reason="the extra parquet").write_table(
            pyarrow.Table.from_pylist(rows), path
        )
    else:
        path.mkdir()
        for row in rows:
            (path / f"{row['id']}.txt").write_text(str(row["text"]), encoding="utf-8")
    reading = Reading(where={"ward": "a"} if what == "some" and kind != "folder" else {})
    whole = list(Source(str(path), reading).rows())
    assert len(whole) > 5
    for skip in (0, 1, 5, 7, 1500, len(whole) - 1, len(whole), len(whole) + 3):
        assert list(Source(str(path), reading).rows(skip)) == whole[skip:]
