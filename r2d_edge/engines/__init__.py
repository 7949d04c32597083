"""Engines behind one small protocol; each is imported when a bundle asks for it by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from r2d_edge.errors import EngineError

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle, Decoding
    from r2d_edge.task import PromptEncoder

_ENGINES = {"ctranslate2": "r2d_edge.engines.ct2"}


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose about the machine. `threads` 0 lets the engine's rule decide."""

    device: str = "auto"
    compute_type: str = "default"
    threads: int = 0
    workers: int = 1


class Engine(Protocol):
    """A loaded encoder-decoder."""

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities of the decoder's next token.

        Args:
            prompts: n encoder inputs, as token ids.
            prefixes: n decoder prefixes (without the start token), all of one length, may be empty.

        Returns:
            [n, vocabulary].
        """
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, decoding: Decoding) -> list[list[int]]:
        """Greedy (or beam) continuations, one per prompt, the end token left out."""
        ...

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        """The same as `generate` for one prompt, a token at a time (beam 1)."""
        ...

    def describe(self) -> dict[str, str | int]:
        """Engine, version, device, compute type and threads, for `info`."""
        ...


def open_engine(bundle: Bundle, encoder: PromptEncoder, options: EngineOptions) -> Engine:
    """Opens the engine a bundle names.

    Raises:
        EngineError: it is unknown here or its library is not installed.
    """
    name = bundle.manifest.engine
    if name not in _ENGINES:
        raise EngineError(f"engine {name!r} is unknown to this version; known: {', '.join(sorted(_ENGINES))}")
    try:
        module = importlib.import_module(_ENGINES[name])
    except ImportError as error:
        raise EngineError(f"engine {name!r} needs a library that is not installed: {error}") from None
    engine: Engine = module.open_engine(bundle, encoder, options)
    return engine
