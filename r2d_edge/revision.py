"""Sentences that state a number which the note does not hold are written again, or left out.

So is a rationale that is nothing but the name of a label: asked to explain one, a small model now and then only
repeats it.

Forbidding the number's tokens in place was tried and is worse: after "a pulse of" the decoder then puts
in another number of the note that is no pulse, or a word that makes no sense. So the sentence is begun
anew with another first token, and what is then written is the model's own, greedily decoded.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r2d_edge.facts import unsupported_numbers

if TYPE_CHECKING:
    from r2d_edge.bundle import Decoding
    from r2d_edge.engines import Engine
    from r2d_edge.task import PromptEncoder
    from r2d_edge.writing import Writer

BEGINNINGS = 8  # other first tokens that are tried for a sentence, the most probable first
REWRITES = 24  # the most for a whole rationale: each costs about as much as writing it once
_ENDS = (".", "!", "?")
_CLOSING = "\"')]}”’"


@dataclass(frozen=True)
class _Question:
    """To the engine: the next token's scores after a prefix of the rationale, or the rest of it.

    It is asked by a revision that waits for the answer, so that those of many rationales share a batch.
    """

    about: Literal["scores", "rest"]
    prefix: list[int]

    def is_like(self, other: _Question) -> bool:
        """Whether one call of the engine answers both: it takes prefixes of one length."""
        return (self.about, len(self.prefix)) == (other.about, len(other.prefix))


class Reviser:
    """Checks a rationale sentence by sentence while it is decoded.

    Args:
        engine: writes sentences anew.
        encoder: knows the special tokens.
        writer: makes the text that is checked.
        max_tokens: the longest rationale.
        decoding: how rationales are decoded.
    """

    def __init__(
        self, engine: Engine, encoder: PromptEncoder, writer: Writer, *, max_tokens: int, decoding: Decoding
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._writer = writer
        self._max_tokens = max_tokens
        self._decoding = decoding
        self._labels = encoder.task.labels.labels

    def revise(self, prompt: Sequence[int], ids: Iterable[int], note: str) -> Iterator[int]:
        """The ids of a rationale whose every number stands in the note, and which is more than a label's name.

        They come a sentence at a time, so what was handed on is never taken back. A sentence for which
        every beginning fails, or none may be tried any more, is left out; nothing comes where that is so for
        all of them.

        Args:
            prompt: what asks for the rationale.
            ids: the rationale as it is decoded; read only as far as needed.
            note: the note it is about.
        """
        revision = self._revision(ids, note)
        answer: Any = None
        while True:
            try:
                step = revision.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, _Question):
                [answer] = self._ask([prompt], [step])
            else:
                yield from step

    def revise_many(
        self, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], notes: Sequence[str]
    ) -> list[list[int]]:
        """The same for many rationales; what several of them need from the engine is asked in one batch.

        As ever where an engine writes rationales in batches, int8 rounding can make one differ from the same alone.

        Args:
            prompts: n prompts, each asking for a rationale.
            drafts: n rationales as they were decoded.
            notes: the n notes they are about.
        """
        if not self._engine.batches:
            together = zip(prompts, drafts, notes, strict=True)
            return [list(self.revise(prompt, draft, note)) for prompt, draft, note in together]
        revisions = [self._revision(draft, note) for draft, note in zip(drafts, notes, strict=True)]
        written: list[list[int]] = [[] for _ in revisions]
        asked: dict[int, _Question] = {}

        def go_on(row: int, answer: Any = None) -> None:
            with suppress(StopIteration):
                while not isinstance(step := revisions[row].send(answer), _Question):
                    written[row] += step
                    answer = None
                asked[row] = step

        for row in range(len(revisions)):
            go_on(row)
        while asked:
            first = next(iter(asked.values()))
            rows = [row for row, other in asked.items() if other.is_like(first)]
            questions = [asked.pop(row) for row in rows]
            for row, answer in zip(rows, self._ask([prompts[row] for row in rows], questions), strict=True):
                go_on(row, answer)
        return written

    def _ask(self, prompts: Sequence[Sequence[int]], questions: Sequence[_Question]) -> Sequence[Any]:
        """The engine's answers to questions that are alike."""
        prefixes = [question.prefix for question in questions]
        if questions[0].about == "scores":
            return list(self._engine.next_log_probabilities(prompts, prefixes))
        return self._engine.generate(prompts, max_tokens=self._max_tokens, decoding=self._decoding, prefixes=prefixes)

    def _revision(self, ids: Iterable[int], note: str) -> Generator[list[int] | _Question, Any, None]:
        """Gives the sentences that hold, and questions, for which it is sent the engine's answers."""
        read: list[int] = []  # all before the present sentence, as the decoder sees it
        left = REWRITES
        sentences = self._sentences(ids, note)
        while sentence := next(sentences, None):
            fails = self._unsupported(sentence, note)
            if not (read or fails) and self._names_a_label(sentence, note):
                following = next(sentences, None)
                fails = following is None
                sentences = chain([following] if following else [], sentences)
            if fails:
                anew: list[int] = []
                beginnings = (yield from self._beginnings(read, sentence[0])) if left else []
                for prefix in beginnings[:left]:
                    left -= 1
                    rest = yield _Question("rest", prefix)
                    ending = self._sentences([prefix[-1], *rest], note)
                    first = next(ending)
                    if not (self._unsupported(first, note) or self._names_a_label(first, note)):
                        anew, sentences = first, ending
                        break
                if not anew:
                    read += sentence  # what follows was written with it in view
                    continue
                sentence = anew
            read += sentence
            yield sentence

    def _beginnings(self, read: list[int], drafted: int) -> Generator[_Question, Any, list[list[int]]]:
        """What was read with each other first token of the next sentence, the most probable first."""
        if len(read) + 1 >= self._max_tokens:
            return []
        scores = yield _Question("scores", list(read))
        unwanted = {drafted, *self._encoder.special_ids}
        firsts = [index for index in np.argsort(-scores, kind="stable").tolist() if index not in unwanted]
        return [[*read, first] for first in firsts[:BEGINNINGS]]

    def _unsupported(self, sentence: Sequence[int], note: str) -> bool:
        return bool(unsupported_numbers(self._writer.write(sentence, note), note))

    def _names_a_label(self, sentence: Sequence[int], note: str) -> bool:
        return is_name_alone(self._writer.write(sentence, note), self._labels)

    def _sentences(self, ids: Iterable[int], note: str) -> Iterator[list[int]]:
        """Cuts at a full stop that a blank follows, once the token after it is known."""
        sentence: list[int] = []
        ended = ""  # the sentence's text where it may have ended
        for index in ids:
            if ended:
                after = self._writer.write([*sentence, index], note)[len(ended) :]
                # "38. 5" may be one number, of a tokenizer that sets blanks as it likes.
                decimal = ended[-2:-1].isdigit() and after.lstrip()[:1].isdigit()
                if after[:1].isspace() and not decimal:
                    yield sentence
                    sentence = []
            sentence.append(index)
            ended = ""
            if any(mark in self._encoder.tokens([index])[0] for mark in _ENDS):
                text = self._writer.write(sentence, note)
                ended = text if text.rstrip(_CLOSING).endswith(_ENDS) else ""
        if sentence:
            yield sentence


def is_name_alone(text: str, names: Iterable[str]) -> bool:
    """Whether a text is one of these names and nothing more, whatever its case and marks."""
    words = _words(text)
    return bool(words) and any(words == _words(name) for name in names)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
