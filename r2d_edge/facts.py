"""Numbers that a text states, held against the note it is about.

Matching only, no understanding: it sees a figure that came from nowhere, not one that stands in the
wrong place ("saturation 104" where the note has a pressure of 104/56).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

_UNIT_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEEN_WORDS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
_TEN_WORDS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNITS = dict(zip(_UNIT_WORDS, range(1, 10), strict=True))
_TEENS = dict(zip((*_TEEN_WORDS, "nineteen"), range(10, 20), strict=True))
_TENS = dict(zip(_TEN_WORDS, range(20, 100, 10), strict=True))
_VALUES = {**_UNITS, **_TEENS, **_TENS, "a": 1}
_UNIT, _TEEN, _TEN = ("|".join(words) for words in (_UNITS, _TEENS, _TENS))
_BELOW_HUNDRED = rf"(?:{_TEN})(?:[ -](?:{_UNIT}))?|{_TEEN}|{_UNIT}"
_NUMBER_WORDS = re.compile(
    rf"(?<![^\W_])(?:(?P<hundreds>{_UNIT}|a)[ -]hundred(?:(?: and)?[ -](?P<more>{_BELOW_HUNDRED}))?"
    rf"|(?P<below>{_BELOW_HUNDRED}))(?![^\W_])"
)
_NAMES_WITH_DIGITS = re.compile(r"\b(?:spo2|sao2|pao2|o2|co2|pco2|paco2|etco2|h2o|b12|hba1c)\b")
_GROUPED_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])\d+,\d{1,2}(?![\d,.]\d)(?!\d)")
# A figure that a text states: not part of a name (T10, C5), not an ordinal (2nd).
_STATED_NUMBER = re.compile(r"(?<![^\W\d_])(?<![\d.])(\d+(?:\.\d+)?)(?!\d)(?!(?:st|nd|rd|th)\b)('?s\b)?")
# The end of "7/10" and "seven out of ten": the scale, not a finding.
_SCORE = re.compile(rf"(?<![\w.])(?:10|\d(?:\.\d+)?|{_UNIT}|ten) ?(?:/|out of) ?$")
_SCORE_TOP = Decimal(10)


class _Number(NamedTuple):
    start: int
    written: str
    value: Decimal
    decade: bool = False  # "the 80s"


def unsupported_numbers(text: str, note: str) -> list[str]:
    """The numbers a text states that its note does not hold, in order, each once.

    38 and 38.0 are the same, so are "two" and 2, "thirty-five" and 35; "the 80s" is supported by 80 to 89.
    Not counted: ordinals, names with digits (SpO2, T10), the word "one", the ten of "7/10". A rounded or
    computed figure counts as unsupported; a number is supported wherever in the note it stands, whatever
    it measures.

    Args:
        text: a rationale or a part of one.
        note: the note it is about.
    """
    held = _held(note)
    out: list[str] = []
    for number in _stated(text):
        if number.decade:
            supported = any(number.value <= value < number.value + 10 for value in held)
        else:
            supported = number.value in held
        if not supported and number.written not in out:
            out.append(number.written)
    return out


def _held(note: str) -> set[Decimal]:
    """Every value that a note holds, in figures or words."""
    plain = _plain(note)
    held = {Decimal(number) for number in _NUMBER.findall(plain)}
    held |= {Decimal(number.replace(",", ".")) for number in _DECIMAL_COMMA.findall(plain)}
    return held | {number.value for number in _worded(plain)} | {Decimal(1) for _ in re.findall(r"\bone\b", plain)}


def _stated(text: str) -> list[_Number]:
    """The numbers that a text claims, in order."""
    plain = _plain(text)
    found = [
        _Number(match.start(), match[1], value, bool(match[2]) and value % 10 == 0)
        for match in _STATED_NUMBER.finditer(plain)
        for value in (Decimal(match[1]),)
    ]
    # "One" is mostly a pronoun or an article: it supports a 1 but is not itself taken for a figure.
    found += [number for number in _worded(plain) if number.written != "one"]
    return sorted(number for number in found if number.value != _SCORE_TOP or not _SCORE.search(plain[: number.start]))


def _worded(plain: str) -> Iterator[_Number]:
    """Numbers in words, from one to nine hundred and ninety-nine."""
    for match in _NUMBER_WORDS.finditer(plain):
        value = 100 * _VALUES[match["hundreds"]] if match["hundreds"] else 0
        value += sum(_VALUES[word] for word in re.split(r"[ -]", match["more"] or match["below"] or "") if word)
        yield _Number(match.start(), match[0], Decimal(value))


def _plain(text: str) -> str:
    """Lower case, without names that hold digits, digits ungrouped (1,200 is 1200)."""
    return _GROUPED_DIGITS.sub("", _NAMES_WITH_DIGITS.sub(" ", text.casefold()))
