from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.decision import Decision
from r2d_edge.rendering import CsvWriter, JsonLinesWriter, JsonWriter, json_text, printable

ANY_TEXT = st.text(st.characters(), max_size=40)  # lone surrogates and control characters too


def decision(text: str) -> Decision:
    return Decision(id=text, label="b", probabilities={"a": 0.25, "b": 0.75}, model="m", rationale=text)


@given(ANY_TEXT)
def test_json_lines_are_valid_utf8_lines_and_lose_nothing(text: str) -> None:
    stream = io.StringIO()
    writer = JsonLinesWriter(stream)
    writer.write(decision(text))
    writer.close()
    line = stream.getvalue().encode("utf-8").decode("utf-8")
    assert line.count("\n") == 1
    assert len(line.splitlines()) == 1  # no separator of Unicode's that a reader may split at
    assert json.loads(line)["rationale"] == text
    assert not any("\x7f" <= character <= "\x9f" or character < " " for character in line.rstrip("\n"))


@given(st.lists(ANY_TEXT, max_size=3))
def test_a_json_document_is_valid_for_any_number_of_notes(texts: list[str]) -> None:
    stream = io.StringIO()
    writer = JsonWriter(stream, single=False)
    for text in texts:
        writer.write(decision(text))
    writer.close()
    assert [record["id"] for record in json.loads(stream.getvalue())] == texts


def test_json_keeps_letters_readable_and_refuses_nan() -> None:
    assert json_text("fièvre 39 °C") == '"fièvre 39 °C"'
    with pytest.raises(ValueError, match="Out of range"):
        json_text(float("nan"))


def test_csv_survives_quotes_commas_and_line_breaks() -> None:
    stream = io.StringIO()
    CsvWriter(stream, ("a", "b")).write(decision('x,"y"\nz'))
    [row] = csv.DictReader(io.StringIO(stream.getvalue(), newline=""))
    assert row["rationale"] == 'x,"y"\nz'
    assert (row["probability a"], row["probability b"]) == ("0.25", "0.75")
    assert (row["consistent"], row["truncated"]) == ("", "false")


@given(ANY_TEXT)
def test_printable_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert shown == printable(shown)
    assert not set(shown) & {chr(code) for code in (*range(32), *range(0x7F, 0xA0))}
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – text, °C", "plain – text, °C"),
        ("a\tb\nc", "a b c"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ended", "0;never ended"),
        ("x\ud800y", "xy"),
    ],
)
def test_printable_on_what_terminals_obey(text: str, shown: str) -> None:
    assert printable(text) == shown
