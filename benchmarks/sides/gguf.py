"""llama.cpp, through r2d_edge's own engine: it has no batches, and a note follows the other."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from benchmarks.sides import Lap, Row, Wish
from r2d_edge.bundle import Decoding
from r2d_edge.engines.llama_cpp import LlamaCppEngine, engine_of
from r2d_edge.task import TASK_FILE, PromptEncoder, Task


class LlamaCppSide:
    """A GGUF encoder-decoder that does not know its end token, so that it writes as much as is wished."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self._engine = engine

    def describe(self) -> dict[str, Any]:
        told = self._engine.describe()
        told.pop("threads_why")
        features = str(llama_cpp.llama_print_system_info().decode())
        return {
            **told,
            "isa": " ".join(part.partition("=")[0].strip() for part in features.split("|") if "= 1" in part),
        }

    def note(self, row: Row, wish: Wish) -> Lap:
        start = time.perf_counter()
        self._engine.next_log_probabilities([row.predict], [[]])
        label = time.perf_counter()
        first = None
        ids = []
        for index in self._stream(row, wish):
            first = first or time.perf_counter()
            ids.append(index)
        end = time.perf_counter()
        return Lap(label - start, (first or end) - label, end - label, len(ids), ids)

    def many(self, rows: Sequence[Row], wish: Wish, batch_size: int) -> int:
        return sum(self.note(row, wish).tokens for row in rows)

    def _stream(self, row: Row, wish: Wish) -> Any:
        decoding = Decoding(repetition_penalty=wish.repetition_penalty, no_repeat_ngram=wish.no_repeat_ngram)
        return self._engine.stream(row.explain, max_tokens=wish.tokens, decoding=decoding)


def open_side(path: str, checkpoint: str, threads: int) -> LlamaCppSide:
    """Loads a GGUF file.

    Args:
        path: the file.
        checkpoint: the folder with its tokenizer and task.
        threads: for prompts and tokens.
    """
    folder = Path(checkpoint)
    task = Task.from_json(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
    encoder = PromptEncoder.from_file(folder / "tokenizer.json", task)
    encoder.end_id = -1
    encoder.special_ids = frozenset()  # the engine hides them, and every token must be counted
    return LlamaCppSide(engine_of(Path(path), encoder, threads=threads))
