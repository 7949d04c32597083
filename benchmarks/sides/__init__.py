"""The engines that are timed, each behind the same small protocol and in a process of its own.

A side is opened by `benchmarks.worker` in the Python that has its library, which need not be this project's:
here, only what is named by `_SIDES` may be imported beside the standard library and NumPy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_SIDES = {
    "transformers": "benchmarks.sides.pytorch",
    "onnxruntime": "benchmarks.sides.onnx",
    "llama.cpp": "benchmarks.sides.gguf",
    "ctranslate2": "benchmarks.sides.ct2",
    "r2d-edge": "benchmarks.sides.product",
}


@dataclass(frozen=True)
class Row:
    """A note: the two prompts in the side's own token ids, and its text for sides that read text."""

    text: str
    predict: list[int]
    explain: list[int]


@dataclass(frozen=True)
class Wish:
    """How a rationale is to be written.

    Attributes:
        tokens: the most tokens.
        forced: exactly so many, whatever the model would do: equal work on every side.
        repetition_penalty: as the engines know it; 1 is none.
        no_repeat_ngram: likewise; 0 is none.
    """

    tokens: int
    forced: bool = True
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0


@dataclass
class Lap:
    """What one note took, in seconds; `first` and `rationale` count from the rationale's prompt."""

    label: float
    first: float
    rationale: float
    tokens: int
    ids: list[int] = field(default_factory=list)


class Side(Protocol):
    """An opened engine."""

    def describe(self) -> dict[str, Any]:
        """Engine, version, device, compute type, threads and instruction set, as far as it tells."""
        ...

    def note(self, row: Row, wish: Wish) -> Lap:
        """One note as a person waits for it: the label, then the rationale."""
        ...

    def many(self, rows: Sequence[Row], wish: Wish, batch_size: int) -> int:
        """All notes, labels and rationales, `batch_size` at a time (0: in one call); the tokens written."""
        ...


def open_side(kind: str, settings: Mapping[str, Any]) -> Side:
    """Opens a side.

    Args:
        kind: one of those known here.
        settings: what that side's `open_side` wants.
    """
    side: Side = importlib.import_module(_SIDES[kind]).open_side(**settings)
    return side


def by_length(rows: Sequence[Row]) -> list[Row]:
    """The longest first, so that what shares a batch needs little padding."""
    return sorted(rows, key=lambda row: -len(row.explain))


def batches(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """Neighbours, `size` at a time; 0 is all of them."""
    step = size or len(rows)
    return [rows[start : start + step] for start in range(0, len(rows), step)]
