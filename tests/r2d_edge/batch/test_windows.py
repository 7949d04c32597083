from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.batch import windows as module
from r2d_edge.batch.windows import Placed, Window, batches, windows
from r2d_edge.inputs import BadRow, Note

ROWS = st.lists(
    st.builds(Note, st.text(max_size=3), st.text(max_size=6)) | st.builds(BadRow, st.integers(1, 9), st.text()),
    max_size=40,
)


def cut(rows: list[Note | BadRow]) -> list[Window]:
    return list(windows(Placed("in", row) for row in rows))


@given(ROWS)
def test_every_row_is_in_its_place_and_every_text_in_one_batch(rows: list[Note | BadRow]) -> None:
    [window] = cut(rows) or [Window(0, (), "")]
    assert [placed.row for placed in window.rows] == rows
    notes = [row for row in rows if isinstance(row, Note)]
    assert list(window.notes) == notes
    parts = batches(window.texts, 4)
    assert [text for part in parts for text in part] == list(window.texts)
    assert sorted(window.texts) == sorted({note.text for note in notes})
    assert {len(part) for part in parts[:-1]} <= {4}
    assert [len(text) for text in window.texts] == sorted(len(text) for text in window.texts)
    assert len(window.rejected) + len(notes) == len(rows)


@given(ROWS, ROWS)
def test_the_digest_tells_other_rows(one: list[Note | BadRow], two: list[Note | BadRow]) -> None:
    assert (cut(one)[-1:] == cut(two)[-1:]) == (one == two)
    if one and two:
        assert (cut(one)[-1].digest == cut(two)[-1].digest) == (one == two)


def test_windows_are_cut_by_rows_and_by_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_ROWS", 3)
    rows: list[Note | BadRow] = [Note(str(number), "x") for number in range(7)]
    assert [(window.number, len(window.rows)) for window in cut(rows)] == [(0, 3), (1, 3), (2, 1)]
    monkeypatch.setattr(module, "WINDOW_CHARACTERS", 2)
    assert [len(window.rows) for window in cut(rows)] == [2, 2, 2, 1]


def test_windows_after_one_are_as_if_all_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_ROWS", 3)
    rows: list[Note | BadRow] = [Note(str(number), "x") for number in range(10)]
    whole = cut(rows)
    after = windows((Placed("in", row) for row in rows[6:]), number=2, digest=whole[1].digest)
    assert list(after) == whole[2:]
