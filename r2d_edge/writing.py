"""Generated ids → the text a person reads, whole or as it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from r2d_edge.bundle import Bundle
from r2d_edge.casing import CASING, Caser
from r2d_edge.task import PromptEncoder


class Writer:
    """Writes rationales; with a caser, for uncased vocabularies, in proper case and spacing."""

    def __init__(self, encoder: PromptEncoder, caser: Caser | None) -> None:
        self._encoder = encoder
        self._caser = caser

    @classmethod
    def of(cls, bundle: Bundle, encoder: PromptEncoder) -> Writer:
        """The writer a bundle asks for: with its casing.json, or plain where it has none."""
        caser = Caser.load(bundle.path(CASING)) if CASING in bundle.manifest.files else None
        return cls(encoder, caser)

    def write(self, ids: Sequence[int], note: str) -> str:
        """The whole text of `ids`."""
        if self._caser is None:
            return self._encoder.decode(ids).strip()
        return self._caser.restore(self._encoder.tokens(ids), note)

    def stream(self, ids: Iterable[int], note: str, on_text: Callable[[str], None] | None) -> str:
        """Consumes `ids` as they come, hands on each piece of text once it is certain, returns all."""
        if on_text is None:
            return self.write(list(ids), note)
        if self._caser is None:
            return self._stream_decoded(ids, on_text)
        pieces = []
        stream = self._caser.stream(note)
        for index in ids:
            pieces.append(stream.push(self._encoder.tokens([index])[0]))
            if pieces[-1]:
                on_text(pieces[-1])
        pieces.append(stream.finish())
        if pieces[-1]:
            on_text(pieces[-1])
        return "".join(pieces)

    def _stream_decoded(self, ids: Iterable[int], on_text: Callable[[str], None]) -> str:
        """A decoder may still change its last word, so all but that is handed on."""
        seen: list[int] = []
        shown = ""
        for index in ids:
            seen.append(index)
            text = self._encoder.decode(seen).lstrip()
            certain = text[: text.rfind(" ") + 1]
            if certain.startswith(shown) and len(certain) > len(shown):
                on_text(certain[len(shown) :])
                shown = certain
        text = self._encoder.decode(seen).strip()
        if len(text) > len(shown):
            on_text(text[len(shown) :])
        return text
