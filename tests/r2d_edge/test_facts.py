"""Numbers that a text states and its note does not hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.facts import unsupported_numbers


@pytest.mark.parametrize(
    ("text", "note", "expected"),
    [
        ("Fever of 38.0 and a pulse of 110.", "T 38, HR 110", []),
        ("Fever of 38.5 and a pulse of 111.", "T 38, HR 110", ["38.5", "111"]),
        ("Two days of vomiting, three falls.", "vomiting x2d", ["three"]),
        ("Pain for 2 days.", "pain for two days", []),
        ("BP 140/95.", "BP 140/90", ["95"]),
        ("140 over 90, 140 again, 7 and 7.", "none", ["140", "90", "7"]),
        ("Saturation (SpO2) is low.", "sats 85", []),
        ("A burn at T10 on the 2nd day.", "burn", []),
        ("No one thing stands out.", "well", []),
        ("1 visit.", "one visit", []),
        ("A pulse in the 80s, then in the 90s.", "HR 84", ["90"]),
        ("Platelets 1,200.", "plt 1200", []),
        ("Glucose 2", "SpO2 99%", ["2"]),
        ("nothing stated", "HR 84", []),
    ],
)
def test_figures(text: str, note: str, expected: list[str]) -> None:
    assert unsupported_numbers(text, note) == expected


@pytest.mark.parametrize(
    ("text", "note", "expected"),
    [
        ("Thirty-five minutes ago", "35 min ago", []),
        ("Thirty five minutes ago", "30 or 5 min ago", ["thirty five"]),
        ("GCS of fourteen", "GCS 15", ["fourteen"]),
        ("A pressure of a hundred and four over sixty", "104/60", []),
        ("two hundred milligrams, nine hundred and ninety-nine", "200 mg, 999", []),
        ("104 over sixty", "a hundred and four over sixty", []),
        ("a seventy-year-old", "man of 71", ["seventy"]),
        ("someone, nobody, tension, sixteenths, tenth", "well", []),
        ("a hundred ways", "well", ["a hundred"]),
    ],
)
def test_numbers_in_words(text: str, note: str, expected: list[str]) -> None:
    assert unsupported_numbers(text, note) == expected


@pytest.mark.parametrize(
    ("text", "note", "expected"),
    [
        ("Pain of 7/10", "pain 7", []),
        ("Pain of 8/10", "pain 7", ["8"]),
        ("Pain, seven out of ten", "pain 7", []),
        ("10/10 pain", "pain 10", []),
        ("A pressure of 98/10", "98", ["10"]),
        ("10 days", "pain 7", ["10"]),
    ],
)
def test_the_ten_of_a_score_is_no_finding(text: str, note: str, expected: list[str]) -> None:
    assert unsupported_numbers(text, note) == expected


def test_a_note_may_write_decimals_with_a_comma() -> None:
    assert unsupported_numbers("Fever of 38.5", "T 38,5, HR 110") == []
    assert unsupported_numbers("Fever of 38.5", "T 38,55") == ["38.5"]
    assert unsupported_numbers("1.2 litres", "plt 1,200") == ["1.2"]


@given(st.text(max_size=60) | st.from_regex(r"[\d a-z.,/'-]{0,40}", fullmatch=True))
def test_a_text_supports_its_own_numbers(text: str) -> None:
    assert unsupported_numbers(text, text) == []


@given(st.integers(0, 500), st.integers(0, 500))
def test_whole_numbers(stated: int, held: int) -> None:
    assert unsupported_numbers(f"pulse {stated}", f"HR {held}") == ([] if stated == held else [str(stated)])
