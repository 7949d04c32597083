"""r2d-edge itself: text in, decision out, with all that it does around its engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.sides import Lap, Row, Wish
from r2d_edge.decide import Decider, load
from r2d_edge.decision import Decision
from r2d_edge.engines import EngineOptions


class ProductSide:
    """A `Decider`. What is wished for is not asked: a bundle says itself how its rationales are decoded."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider

    def describe(self) -> dict[str, Any]:
        told = self._decider.engine.describe()
        told.pop("threads_why")
        return {**told, "engine": f"r2d-edge on {told['engine']}", "model": self._decider.bundle.label, "isa": None}

    def note(self, row: Row, wish: Wish) -> Lap:
        labelled: list[float] = []
        shown: list[float] = []

        def on_label(_: Decision) -> None:
            labelled.append(time.perf_counter())

        def on_token(_: str) -> None:
            shown.append(time.perf_counter())

        start = time.perf_counter()
        decision = self._decider.decide(row.text, on_label=on_label, on_token=on_token)
        end = time.perf_counter()
        label = labelled[0]
        first = shown[0] if shown else end
        return Lap(label - start, first - label, end - label, self._tokens(decision))

    def many(self, rows: Sequence[Row], wish: Wish, batch_size: int) -> int:
        texts = [row.text for row in rows]
        many = self._decider.decide_many
        decisions = many(texts, batch_size=batch_size) if batch_size else many(texts)
        return sum(self._tokens(decision) for decision in decisions)

    def _tokens(self, decision: Decision) -> int:
        """Of the rationale as it is read in the end."""
        return len(self._decider.encoder.text_ids(decision.rationale)) if decision.rationale else 0


def open_side(path: str | None, threads: int) -> ProductSide:
    """Opens a bundle by name or path (None: the embedded one)."""
    return ProductSide(load(path, EngineOptions(device="cpu", threads=threads)))
