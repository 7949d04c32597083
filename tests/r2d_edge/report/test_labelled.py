import hashlib
import json
from pathlib import Path

import pytest

from r2d_edge.errors import InputError
from r2d_edge.report.labelled import check_labels, choose_source, draw, read_labelled
from r2d_edge.task import LabelSet
from tests.r2d_edge.report.conftest import labelled, write_rows

LABELS = LabelSet(("yes", "no"))
SECRET = "the text of a note"


def test_json_lines(data):
    rows, [file] = read_labelled([data])
    assert [row.id for row in rows] == [f"row-{n}" for n in range(16)] == [row.own_id for row in rows]
    assert rows[3].text == labelled()[3]["text"]
    assert (rows[3].gold, rows[3].rationales) == ("less urgent", labelled()[3]["rationales"])
    assert (file.name, file.rows) == ("data.jsonl", 16)
    assert file.sha256 == hashlib.sha256(data.read_bytes()).hexdigest()


def test_csv_with_line_breaks_a_byte_order_mark_and_rationales_of_sources(tmp_path):
    path = tmp_path / "rows.csv"
    text = 'id,text,label,rationale_llm,rationale\r\na,"one\ntwo, three",yes,because,\r\n\r\nb,four,no,,"so, yes"\r\n'
    path.write_text(text, encoding="utf-8-sig", newline="")
    rows, _ = read_labelled([path])
    assert [(row.id, row.text, row.gold) for row in rows] == [("a", "one\ntwo, three", "yes"), ("b", "four", "no")]
    assert [dict(row.rationales) for row in rows] == [{"llm": "because"}, {"rationale": "so, yes"}]


def test_rows_without_ids_are_numbered_as_infer_numbers_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a", "label": 1}\n\n{"text": "b", "label": "2"}\n', encoding="utf-8")
    rows, _ = read_labelled([path])
    assert [(row.id, row.gold) for row in rows] == [("2", "1"), ("4", "2")]


def test_ids_are_unique_over_files(tmp_path):
    one = write_rows(tmp_path / "one.jsonl", labelled(2))
    other = write_rows(tmp_path / "other.jsonl", labelled(2))
    rows, files = read_labelled([one, other])
    assert [row.id for row in rows] == ["one/row-0", "one/row-1", "other/row-0", "other/row-1"]
    assert [row.own_id for row in rows] == ["row-0", "row-1"] * 2
    assert len(files) == 2
    (tmp_path / "a").mkdir()
    rows, _ = read_labelled([one, write_rows(tmp_path / "a" / "one.jsonl", labelled(1))])
    assert rows[-1].id == "a/one/row-0"
    with pytest.raises(InputError, match="given twice"):
        read_labelled([one, one])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text": SECRET}], "row 1: no label"),
        ([{"text": SECRET, "label": " "}], "row 1: no label"),
        ([{"label": "yes"}], "line 1: no field 'text'"),
        ([{"text": SECRET, "label": "yes", "rationales": [SECRET]}], "row 1: a rationale is not text"),
        ([{"text": SECRET, "label": "yes", "rationale": 3}], "row 1: a rationale is not text"),
        ([{"id": "x", "text": SECRET, "label": "yes"}] * 2, "id x comes 2 times"),
        ([[SECRET]], "line 1: an array, not an object"),
    ],
)
def test_faults_are_named_without_the_text(tmp_path, lines, message):
    with pytest.raises(InputError, match=message) as caught:
        read_labelled([write_rows(tmp_path / "rows.jsonl", lines)])
    assert SECRET not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_labelled([tmp_path / "absent.jsonl"])
    (tmp_path / "rows.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"neither \.jsonl nor \.csv"):
        read_labelled([tmp_path / "rows.txt"])
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no rows"):
        read_labelled([tmp_path / "empty.jsonl"])


def test_many_faults_are_counted(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "x"} for _ in range(14)])
    with pytest.raises(InputError, match=r"row 10: no label and 4 more"):
        read_labelled([path])


def test_gold_labels_outside_the_set_are_named(data):
    rows, _ = read_labelled([data])
    with pytest.raises(InputError, match=r"16 rows have a label that is not one of .*: row-0, row-1"):
        check_labels(rows, LABELS)


def test_whose_rationales(data, tmp_path):
    rows, _ = read_labelled([data])
    assert choose_source(rows, "nurse") == "nurse"
    assert choose_source(rows, None, ["doctor", "llm"]) == "llm"
    with pytest.raises(InputError, match="of llm, nurse: choose one with --source"):
        choose_source(rows, None)
    with pytest.raises(InputError, match="no row has a rationale of source 'doctor'; sources: llm, nurse"):
        choose_source(rows, "doctor")
    bare = write_rows(tmp_path / "bare.jsonl", [{"text": "a", "label": "b"}])
    assert choose_source(read_labelled([bare])[0], None) is None


def test_a_limit_draws_by_the_seed_and_keeps_the_order(data):
    rows, _ = read_labelled([data])
    drawn = {seed: [row.id for row in draw(rows, 5, seed)] for seed in (1, 2)}
    order = [row.id for row in rows]
    assert drawn[1] != drawn[2]
    assert all(len(ids) == 5 and ids == sorted(ids, key=order.index) for ids in drawn.values())
    assert draw(rows, 99, 1) == draw(rows, None, 1) == rows
    assert json.dumps(drawn[1]) == json.dumps([row.id for row in draw(rows, 5, 1)])


def test_a_table_may_be_parted_by_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id;text;label;rationale\n1;chest pain, sweating;urgent;pale, clammy\n", encoding="utf-8")
    [row], _ = read_labelled([path])
    assert (row.text, row.gold) == ("chest pain, sweating", "urgent")
    assert list(row.rationales.values()) == ["pale, clammy"]
