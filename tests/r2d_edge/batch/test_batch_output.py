from __future__ import annotations

import csv
import hashlib
import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.batch.files import Files
from r2d_edge.batch.output import PlainFile, neutralised, writer_of

LABELS = ("emergent", "urgent")


def record(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1, "id": "7", "label": "urgent", "probabilities": {"emergent": 0.25, "urgent": 0.75},
        "label_set": ["emergent", "urgent"], "abstained": False, "reason": None, "rationale": "Stable.",
        "consistent": None, "truncated": False, "model": "tiny 1", **changes,
    }  # fmt: skip


def write(path: Path, format_: str, records: list[dict[str, Any]], *, bom: bool = False) -> bytes:
    file = PlainFile(path, Files())
    writer = writer_of(format_, file, LABELS, excel_bom=bom)
    for row in records:
        writer.write(row)
    writer.close()
    digest = file.finish()
    raw = path.read_bytes()
    assert digest == hashlib.sha256(raw).hexdigest()
    return raw


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1", "+A1", "-A1", "@SUM(A1)", " =1", "\t=1", "\r\n=1", "\u00a0=1", "\u200b=1", "\ufeff=1", "\u3000＝1",
        "＝1", "＋A1", "－A1", "＠A1", "﹦1", "\u2212A1", "=cmd|' /C calc'!A0", "-1+2", "--1",
    ],
)  # fmt: skip
def test_what_a_spreadsheet_would_run_gets_an_apostrophe(cell: str) -> None:
    assert neutralised(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["", " ", "a=1", "-5", "+4.5", "-3,25", "Stable.", "'=1", "39.2 C"])
def test_plain_cells_stay(cell: str) -> None:
    assert neutralised(cell) == cell


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_cell_begins_with_a_sign_of_a_formula(text: str) -> None:
    cell = neutralised(text)
    assert cell in (text, "'" + text)
    shown = cell.strip()
    try:
        float(cell.replace(",", "."))
    except ValueError:
        assert not shown.startswith(tuple("=+-@＝＋－＠"))


def test_json_lines_hold_the_records(tmp_path: Path) -> None:
    records = [record(), record(id="é\u2028", label=None, probabilities={})]
    raw = write(tmp_path / "out.jsonl", "jsonl", records)
    assert [json.loads(line) for line in raw.split(b"\n")[:-1]] == records


def test_csv_is_safe_and_comes_back(tmp_path: Path) -> None:
    raw = write(
        tmp_path / "out.csv", "csv", [record(id="=1+1", rationale='a "b",\nc'), record(reason="low confidence")]
    )
    one, two = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""))
    assert (one["id"], one["rationale"], one["label_set"]) == ("'=1+1", 'a "b",\nc', "emergent; urgent")
    assert (one["probability emergent"], one["abstained"], one["consistent"]) == ("0.25", "false", "")
    assert two["reason"] == "low confidence"
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert write(tmp_path / "bom.csv", "csv", [], bom=True).startswith(b"\xef\xbb\xbfid,label,")


def test_parquet_has_types_and_is_the_same_each_time(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet")
    records = [record(), record(id="=8", label=None, probabilities={}, label_set=None, rationale=None)]
    raw = write(tmp_path / "out.parquet", "parquet", records)
    assert write(tmp_path / "again.parquet", "parquet", records) == raw
    one, two = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (one["probability urgent"], one["label_set"], one["abstained"]) == (0.75, ["emergent", "urgent"], False)
    assert (two["id"], two["label"], two["probability urgent"], two["label_set"]) == ("=8", None, None, None)
    assert parquet.read_table(tmp_path / "again.parquet").num_rows == 2


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "out.jsonl", tmp_path / "elsewhere"
    elsewhere.write_text("kept", encoding="utf-8")
    path.symlink_to(elsewhere)
    write(path, "jsonl", [record()])
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert elsewhere.read_text(encoding="utf-8") == "kept"
