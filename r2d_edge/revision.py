"""Sentences that state a number which the note does not hold are written again, or left out.

Forbidding the number's tokens in place was tried and is worse: after "a pulse of" the decoder then puts
in another number of the note that is no pulse, or a word that makes no sense. So the sentence is begun
anew with another first token, and what is then written is the model's own, greedily decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

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

    def revise(self, prompt: Sequence[int], ids: Iterable[int], note: str) -> Iterator[int]:
        """The ids of a rationale whose every number stands in the note.

        They come a sentence at a time, so what was handed on is never taken back. A sentence for which
        every beginning fails, or none may be tried any more, is left out; nothing comes where that is so for
        all of them.

        Args:
            prompt: what asks for the rationale.
            ids: the rationale as it is decoded; read only as far as needed.
            note: the note it is about.
        """
        read: list[int] = []  # all before the present sentence, as the decoder sees it
        left = REWRITES
        sentences = self._sentences(ids, note)
        while sentence := next(sentences, None):
            if self._unsupported(sentence, note):
                anew, tried = self._begin_anew(prompt, read, sentence[0], note, min(left, BEGINNINGS))
                left -= tried
                if anew:
                    sentences = self._sentences(anew, note)
                    sentence = next(sentences)
                else:
                    read += sentence  # what follows was written with it in view
                    continue
            read += sentence
            yield from sentence

    def _begin_anew(
        self, prompt: Sequence[int], read: list[int], drafted: int, note: str, tries: int
    ) -> tuple[list[int], int]:
        """Another end of the rationale, from the sentence on that `drafted` began; its first sentence holds.

        Returns:
            The ids, none where no beginning held, and how many beginnings were tried.
        """
        if not tries or len(read) + 1 >= self._max_tokens:
            return [], 0
        scores = self._engine.next_log_probabilities([prompt], [read])[0]
        unwanted = {drafted, *self._encoder.special_ids}
        beginnings = [index for index in np.argsort(-scores, kind="stable").tolist() if index not in unwanted]
        for tried, first in enumerate(beginnings[:tries], start=1):
            prefix = [*read, first]
            rest = self._engine.generate(
                [prompt], max_tokens=self._max_tokens, decoding=self._decoding, prefixes=[prefix]
            )[0]
            anew = [first, *rest]
            if not self._unsupported(next(self._sentences(anew, note)), note):
                return anew, tried
        return [], tries

    def _unsupported(self, sentence: Sequence[int], note: str) -> bool:
        return bool(unsupported_numbers(self._writer.write(sentence, note), note))

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
