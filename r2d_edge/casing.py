"""Case and spacing for the rationales of an uncased WordPiece decoder.

An uncased BERT vocabulary lower-cases, strips accents and cuts every mark off, so a decoder writes
"sp ##o ##2 93 %" and "don ' t". `Caser` makes "SpO2 93%" and "don't" of them: a word is spelled as
the note spells it, else as the training rationales did, and sentence starts get their capital last.
Whether a blank stands beside a mark is decided from counts over its neighbours in the training
rationales, from the most to the least telling. Only blanks, case and accents are ever changed.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from r2d_edge.errors import BundleError
from r2d_edge.words import Word, fold, is_mark, split_words

CASING = "casing.json"
SCHEMA = 1

_EDGE = ""  # the neighbour of the first and of the last word
_CONTRACTED = frozenset(("s", "t", "d", "m", "re", "ve", "ll", "clock"))  # an apostrophe joins it: don't, o'clock
_ABBREVIATIONS = frozenset(("e.g.", "i.e.", "vs.", "dr.", "mr.", "mrs.", "ms.", "st.", "approx."))
_CLOSING_QUOTES = "\"')]}’”"
_OPENING_QUOTES = "\"'([{‘“"
_SENTENCE_MARKS = frozenset(".,;:!?")
_MAX_FORMS = 15_000  # the most frequent are kept, so that a large corpus makes no large file
_MAX_GAPS = 10_000


def _is_title(form: str) -> bool:
    """Whether the first letter is the only capital, as a sentence start alone would make it."""
    return form[:1].isupper() and form[1:] == form[1:].lower()


def _capitalise(form: str) -> str:
    """`form` with a first capital, unless it has capitals of its own (pH) or the capital folds elsewhere (ß)."""
    first = form[:1].upper()
    return first + form[1:] if form == form.lower() and fold(first) == fold(form[:1]) else form


def _digits_alike(text: str) -> str:
    return "".join("0" if character.isdigit() else character for character in text)


def _chunks(words: Sequence[Word]) -> list[list[Word]]:
    """The words between blanks."""
    chunks: list[list[Word]] = []
    for word in words:
        if word.tight and chunks:
            chunks[-1].append(word)
        else:
            chunks.append([word])
    return chunks


def _core(keys: Sequence[str]) -> slice:
    """Where a chunk is without the marks around it."""
    start, stop = 0, len(keys)
    while start < stop and is_mark(keys[start]):
        start += 1
    while stop > start and is_mark(keys[stop - 1]):
        stop -= 1
    return slice(start, stop)


def _spellings(core: Sequence[Word]) -> list[Word]:
    """What a chunk says about spelling: the whole and its words (not a lone letter: the C of C-spine)."""
    whole = Word("".join(word.key for word in core), "".join(word.form for word in core), False)
    return [whole] if len(core) == 1 else [whole, *(word for word in core if len(word.key) > 1)]


def _most_common(counts: Counter[str]) -> str:
    return max(counts, key=lambda form: (counts[form], form))


class _Sentences:
    """Follows a text chunk by chunk and knows where a sentence starts."""

    def __init__(self) -> None:
        self.first = True  # no word yet
        self.start = True  # the next word starts a sentence

    def see(self, chunk: str) -> None:
        """Takes a folded chunk; one without a letter or digit changes nothing."""
        if any(character.isalnum() for character in chunk):
            self.first = False
            bare = chunk.rstrip(_CLOSING_QUOTES)
            ended = bare.endswith((".", "!", "?")) and not bare.endswith("..")
            self.start = ended and bare.lstrip(_OPENING_QUOTES) not in _ABBREVIATIONS


class _Quotes:
    """Whether a straight quotation mark stands open, told from the blanks before the marks."""

    def __init__(self) -> None:
        self._open: set[str] = set()

    def see(self, key: str, tight: bool) -> None:
        """Takes a word; `tight` says that no blank stands before it."""
        if key in self._open:
            self._open.discard(key)
        elif key in ("'", '"') and not tight:
            self._open.add(key)

    def around(self, left: str, right: str) -> bool:
        """Whether `left` or `right` is a mark that stands open."""
        return left in self._open or right in self._open


class _Gap(NamedTuple):
    """The place between `left` and `right`, of which one at least is a mark."""

    before: str
    left: str
    right: str
    after: str
    tight: bool  # no blank stands before `left`
    quoted: bool

    def contexts(self) -> list[tuple[str, ...]]:
        """Names of what stands around the gap, the most telling first."""
        if is_mark(self.left):
            one, two = self.before, self.right
            mark = ("" if self.tight else "_") + self.left + ">"
            neighbour = _shape(two[:1], two, self.left)
        else:
            one, two = self.left, self.after
            mark = "<" + self.right
            neighbour = _shape(two[:1], two, self.right)
        shape = _shape(one[-1:], one)
        return [
            (f"{one} {mark} {two}",),
            (f"{one} {mark} {neighbour}", f"{shape} {mark} {two}"),
            (f"{shape} {mark}{'Q' if self.quoted else ''} {neighbour}",),
            (mark,),
        ]

    def tight_by_rule(self) -> bool:
        """The spacing of a mark that training never showed."""
        if is_mark(self.right):
            return self.right in ".,;:!?)]}%’”-/'" or self.quoted
        return self.left in "([{‘“-/'’" or self.quoted


def _shape(nearest: str, key: str, mark: str = "") -> str:
    """The kind of a neighbour: a mark is itself; else Digit, Word or, after an apostrophe, conTraction."""
    if not key or is_mark(key):
        return key
    if mark in ("'", "’") and key in _CONTRACTED:
        return "T"
    return "D" if nearest.isdigit() else "W"


class _NoteIndex:
    """What a note says: which words a mark joins, and which words have capitals or accents."""

    def __init__(self, note: str) -> None:
        self.joined: set[tuple[str, str, str]] = set()
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for line in note.splitlines():
            words = split_words(line)
            for left, middle, right in zip(words, words[1:], words[2:], strict=False):
                # A comma without its blank is a slip, not a spelling.
                if middle.tight and right.tight and middle.key not in _SENTENCE_MARKS:
                    self.joined.add((left.key, middle.key, right.key))
            if any(character.islower() for character in line):  # capitals throughout say nothing
                _count_forms(words, counts)
        best = {key: _most_common(forms) for key, forms in counts.items()}
        self.forms = {key: form for key, form in best.items() if form != key}


def _count_forms(words: Sequence[Word], counts: dict[str, Counter[str]]) -> None:
    """Counts the forms of a note's line, first capitals left out where any word would have them."""
    start = True
    for chunk in _chunks(words):
        keys = [word.key for word in chunk]
        core = chunk[_core(keys)]
        for word in _spellings(core):
            if word.key and not (start and _is_title(word.form)):
                counts[word.key][word.form] += 1
        ended = "".join(keys).rstrip(_CLOSING_QUOTES).endswith((".", "!", "?", ":"))
        start = ended or (start and not core)  # a dash that opens a list's line is no word


class Caser:
    """What was learned about spelling and spacing from rationales.

    Args:
        forms: spelled words and chunks, in lower case where they are known so; "0" stands for any digit.
        gaps: net counts (tight minus blank) of the contexts of a gap beside a mark.
        capital_first: a rationale's first word gets a capital.
        capital_later: so does the first word of every later sentence.
    """

    def __init__(
        self, forms: Iterable[str], gaps: Mapping[str, int], *, capital_first: bool = True, capital_later: bool = True
    ) -> None:
        self._forms = {fold(form): form for form in forms}
        self._gaps = dict(gaps)
        self.capital_first = capital_first
        self.capital_later = capital_later

    @classmethod
    def learn(cls, rationales: Iterable[str]) -> Caser:
        """Learns from cased rationales, best those of the source that the decoder was trained on."""
        gaps: Counter[str] = Counter()
        forms: dict[str, Counter[str]] = defaultdict(Counter)
        capitals = {True: 0, False: 0}  # net count of capitals: of the first word, of later sentences
        for rationale in rationales:
            words = split_words(rationale)
            _count_gaps(words, gaps)
            sentences = _Sentences()
            for chunk in _chunks(words):
                keys = [word.key for word in chunk]
                core = chunk[_core(keys)]
                title = bool(core) and _is_title(core[0].form)
                if sentences.start and core and (title or core[0].form.islower()):
                    capitals[sentences.first] += 1 if title else -1
                for word in _spellings(core):
                    if word.key and not (sentences.start and _is_title(word.form)):
                        forms[word.key][word.form] += 1
                sentences.see("".join(keys))
        return cls(
            _lexicon(forms), _telling(gaps), capital_first=capitals[True] >= 0, capital_later=capitals[False] >= 0
        )

    def to_json(self) -> dict[str, Any]:
        """The caser as JSON-ready data."""
        return {
            "schema": SCHEMA,
            "capital_first": self.capital_first,
            "capital_later": self.capital_later,
            "forms": sorted(self._forms.values()),
            "gaps": dict(sorted(self._gaps.items())),
        }

    @classmethod
    def from_json(cls, data: Any) -> Caser:
        """Reads what `to_json` gave.

        Raises:
            ValueError: a field is missing, unknown or of a wrong type, or the schema is another one.
        """
        fields = {"schema": int, "capital_first": bool, "capital_later": bool, "forms": list, "gaps": dict}
        if not isinstance(data, dict) or data.keys() != fields.keys():
            raise ValueError(f"a casing description has exactly the fields {', '.join(fields)}")
        if data["schema"] != SCHEMA:
            raise ValueError(f"casing schema {data['schema']!r} is unknown; this version reads schema {SCHEMA}")
        for name, kind in fields.items():
            if type(data[name]) is not kind:
                raise ValueError(f"casing field {name!r} must be of type {kind.__name__}")
        if not all(isinstance(form, str) for form in data["forms"]):
            raise ValueError("casing field 'forms' must hold strings")
        if not all(type(net) is int for net in data["gaps"].values()):
            raise ValueError("casing field 'gaps' must hold whole numbers")
        return cls(
            data["forms"],
            data["gaps"],
            capital_first=data["capital_first"],
            capital_later=data["capital_later"],
        )

    def save(self, path: Path) -> None:
        """Writes one JSON file, byte for byte the same for the same caser."""
        text = json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n"
        path.write_bytes(text.encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> Caser:
        """Reads a file that `save` wrote.

        Raises:
            BundleError: it is no such file.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path.name} cannot be read: {error}") from None

    def restore(self, tokens: Iterable[str], note: str) -> str:
        """The text of WordPiece tokens ('##' marks a continuation; specials left out), spelled and spaced."""
        stream = self.stream(note)
        return "".join([*map(stream.push, tokens), stream.finish()])

    def stream(self, note: str) -> CasingStream:
        """The same as `restore`, a token at a time."""
        return CasingStream(self, _NoteIndex(note))

    def _spell(self, key: str, note_forms: Mapping[str, str]) -> str | None:
        """The spelling of a folded word or chunk, None where neither the note nor the lexicon knows it.

        The note comes first, but its capitals may be a heading's or a shout: they give way to a
        lexicon that knows the word in lower case, and a single first capital to any entry.
        """
        noted, known = note_forms.get(key), self._forms.get(key)
        if noted and not (known and (known == key or _is_title(noted))):
            return noted
        if known:
            return known
        alike = self._forms.get(_digits_alike(key))
        if alike is None:
            return None
        digits = (character for character in key if character.isdigit())
        return "".join(next(digits, "0") if character == "0" else character for character in alike)

    def _is_tight(self, gap: _Gap) -> bool:
        """Whether no blank belongs into a gap beside a mark."""
        for names in gap.contexts():
            if net := sum(self._gaps.get(name, 0) for name in names):
                return net > 0
        return gap.tight_by_rule()


class CasingStream:
    """Restores one rationale while it is made.

    Text is given out chunk by chunk: a chunk is certain once the first word after its blank and that
    word's right neighbour are whole, so what is held back is one chunk and two words.
    """

    def __init__(self, caser: Caser, note: _NoteIndex) -> None:
        self._caser = caser
        self._note = note
        self._pending = ""  # the word whose '##' pieces may still come
        self._words = [_EDGE]  # the last three whole words
        self._tight = False  # no blank stands before the middle one
        self._chunk: list[str] = []
        self._quotes = _Quotes()
        self._sentences = _Sentences()
        self._blank = ""

    def push(self, token: str) -> str:
        """Takes the next token and returns the text that is now certain, often none."""
        piece = token.removeprefix("##") or token
        if piece != token and self._pending:
            self._pending += piece.rstrip()
            return ""
        word, self._pending = self._pending, piece.strip()
        return self._take(word) if word else ""

    def finish(self) -> str:
        """Returns the rest of the text; the stream is then at its end."""
        text = self._take(self._pending) if self._pending else ""
        self._pending = ""
        if len(self._words) > 1:
            text += self._take(_EDGE)
        return text + self._close()

    def _take(self, word: str) -> str:
        """Decides the gap before the last word, now that its right neighbour is known."""
        self._words.append(word)
        if len(self._words) < 4:
            if len(self._words) == 3:
                self._chunk = [self._words[1]]
            return ""
        before, left, right, after = self._words
        del self._words[0]
        self._quotes.see(left, self._tight)
        self._tight = self._is_tight(before, left, right, after)
        text = "" if self._tight else self._close()
        self._chunk.append(right)
        return text

    def _is_tight(self, before: str, left: str, right: str, after: str) -> bool:
        if not (is_mark(left) or is_mark(right)):
            return False
        if (before, left, right) in self._note.joined or (left, right, after) in self._note.joined:
            return True
        quoted = self._quotes.around(left, right)
        return self._caser._is_tight(_Gap(before, left, right, after, self._tight, quoted))

    def _close(self) -> str:
        """Spells the chunk and starts the next one."""
        chunk, self._chunk = self._chunk, []
        if not chunk:
            return ""
        place = _core(chunk)
        core = chunk[place]
        whole = self._spell("".join(core)) if core else None
        forms = [whole] if whole else [(self._spell(key) if len(key) > 1 else None) or key for key in core]
        capital = self._caser.capital_first if self._sentences.first else self._caser.capital_later
        if forms and self._sentences.start and capital:
            forms[0] = _capitalise(forms[0])
        self._sentences.see("".join(chunk))
        text = self._blank + "".join([*chunk[: place.start], *forms, *chunk[place.stop :]])
        self._blank = " "
        return text

    def _spell(self, key: str) -> str | None:
        return self._caser._spell(key, self._note.forms)


def _count_gaps(words: Sequence[Word], gaps: Counter[str]) -> None:
    """Counts the contexts of every gap beside a mark."""
    quotes = _Quotes()
    keys = [_EDGE, *(word.key for word in words), _EDGE]
    for index, (left, right) in enumerate(pairwise(words)):
        quotes.see(left.key, left.tight)
        if is_mark(left.key) or is_mark(right.key):
            quoted = quotes.around(left.key, right.key)
            gap = _Gap(keys[index], left.key, right.key, keys[index + 3], left.tight, quoted)
            for names in gap.contexts():
                for name in names:
                    gaps[name] += 1 if right.tight else -1


def _lexicon(forms: Mapping[str, Counter[str]]) -> list[str]:
    """The most common form of each frequent word and chunk, and of their patterns with "0" for any digit."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for key, spelled in forms.items():
        for form, count in spelled.items():
            counts[key][form] += count
            if (alike := _digits_alike(key)) != key:
                counts[alike][_digits_alike(form)] += count
    frequent = sorted(counts, key=lambda key: (-counts[key].total(), key))
    return [_most_common(counts[key]) for key in frequent[:_MAX_FORMS]]


def _telling(gaps: Mapping[str, int]) -> dict[str, int]:
    """The contexts that lean most to one side."""
    kept = sorted(gaps, key=lambda name: (-abs(gaps[name]), name))[:_MAX_GAPS]
    return {name: gaps[name] for name in kept if gaps[name]}
