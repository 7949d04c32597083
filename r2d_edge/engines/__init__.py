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

_ENGINES = {"ctranslate2": "r2d_edge.engines.ct2", "llama.cpp": "r2d_edge.engines.llama_cpp"}
_INSTALL = {"llama.cpp": 'pip install "r2d-edge[gguf]" (it compiles llama.cpp, which takes some nine minutes)'}


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose about the machine. `threads` 0 lets the engine's rule decide."""

    device: str = "auto"
    compute_type: str = "default"
    threads: int = 0
    workers: int = 1


class Engine(Protocol):
    """A loaded model: an encoder-decoder, or a decoder-only one whose prompts hold the template's words.

    A prompt is what the model reads, a prefix what it has answered so far.

    Attributes:
        batches: whether many prompts at once take less time than one after the other.
    """

    batches: bool

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities of the answer's next token.

        Args:
            prompts: n whole prompts as `PromptEncoder` makes them, in token ids.
            prefixes: n beginnings of answers (without a start token), all of one length, may be empty.

        Returns:
            [n, vocabulary].
        """
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Greedy (or beam) answers, one per prompt, the end token left out.

        `decoding` concerns the answer alone: what the prompt says may be said again.

        Args:
            prompts: n whole prompts.
            max_tokens: the longest answer, its prefix included.
            decoding: beams and what is done against repetition.
            prefixes: n beginnings of the answers, all of one length; what follows them is returned.
        """
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
        how = f"; run: {_INSTALL[name]}" if name in _INSTALL else ""
        raise EngineError(f"engine {name!r} needs a library that is not installed: {error}{how}") from None
    except (OSError, RuntimeError) as error:  # its native part
        raise EngineError(f"engine {name!r}: its library does not load here: {error}") from None
    engine: Engine = module.open_engine(bundle, encoder, options)
    return engine
