"""Cased text cut into basic tokens where an uncased BERT cuts it (Devlin et al., arXiv 1810.04805)."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import NamedTuple


class Word(NamedTuple):
    """A basic token of a cased text: a word, a number or a single mark.

    Attributes:
        key: as an uncased vocabulary has it.
        form: as the text spells it.
        tight: no blank stands before it.
    """

    key: str
    form: str
    tight: bool


def fold(text: str) -> str:
    """`text` in lower case and without accents, character by character as BERT does."""
    return text.lower() if text.isascii() else "".join(map(_fold_character, text))


def split_words(text: str) -> list[Word]:
    """Splits cased text where the BERT pre-tokenizer would, each word in its own spelling."""
    words: list[Word] = []
    letters: list[str] = []
    tight = False

    def close() -> None:
        nonlocal tight
        form = "".join(letters)
        letters.clear()
        if key := fold(form):
            words.append(Word(key, form, tight))
            tight = True

    for character in unicodedata.normalize("NFC", text):
        if _is_dropped(character):
            continue
        if character.isspace():
            close()
            tight = False
        elif is_mark(_fold_character(character)):
            close()
            letters.append(character)
            close()
        else:
            letters.append(character)
    close()
    return words


@lru_cache(maxsize=4096)
def is_mark(key: str) -> bool:
    """Whether a basic token is a single mark: an ASCII symbol or any Unicode punctuation."""
    if len(key) != 1:
        return False
    if key.isascii():
        return key.isprintable() and not key.isalnum() and key != " "
    return unicodedata.category(key).startswith("P")


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    decomposed = unicodedata.normalize("NFD", character)
    return "".join(part.lower() for part in decomposed if unicodedata.category(part) != "Mn")


@lru_cache(maxsize=4096)
def _is_dropped(character: str) -> bool:
    """Whether the normalizer removes a character: controls, formats, unassigned, the replacement sign."""
    return character not in "\t\n\r" and (character == "\ufffd" or unicodedata.category(character).startswith("C"))
