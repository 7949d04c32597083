"""CTranslate2 by itself: its translator on whole batches, without what `r2d_edge` puts around it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as r2d_edge's own engine does

import ctranslate2
import numpy as np

from benchmarks.sides import Lap, Row, Wish


class CTranslate2Side:
    """A `ctranslate2.Translator`."""

    def __init__(self, path: Path, *, compute_type: str, threads: int, device: str) -> None:
        self._model = ctranslate2.Translator(
            str(path), device=device, compute_type=compute_type, intra_threads=threads, inter_threads=1
        )
        self._vocabulary: list[str] = json.loads((path / "shared_vocabulary.json").read_text(encoding="utf-8"))
        self._ids = {token: index for index, token in enumerate(self._vocabulary)}
        self._threads = threads
        self._path = str(path)

    def describe(self) -> dict[str, Any]:
        device = self._model.device
        return {
            "engine": "ctranslate2",
            "version": ctranslate2.__version__,
            "device": device,
            "compute_type": self._model.compute_type,
            "threads": self._threads,
            "isa": instruction_set(self._path) if device == "cpu" else None,
        }

    def note(self, row: Row, wish: Wish) -> Lap:
        start = time.perf_counter()
        self._labels([row], 0)
        label = time.perf_counter()
        first: list[float] = []

        def on_step(_: Any) -> None:
            if not first:
                first.append(time.perf_counter())

        [ids] = self._write([row], wish, 0, callback=on_step)
        end = time.perf_counter()
        return Lap(label - start, (first[0] if first else end) - label, end - label, len(ids), ids)

    def many(self, rows: Sequence[Row], wish: Wish, batch_size: int) -> int:
        self._labels(rows, batch_size)
        return sum(map(len, self._write(rows, wish, batch_size)))

    def _labels(self, rows: Sequence[Row], batch_size: int) -> list[int]:
        results = self._model.translate_batch(
            [self._tokens(row.predict) for row in rows],
            max_batch_size=batch_size,
            max_decoding_length=1,
            min_decoding_length=0,
            max_input_length=0,
            beam_size=1,
            return_logits_vocab=True,
        )
        return [int(np.argmax(_on_host(result.logits[0][-1]))) for result in results]

    def _write(self, rows: Sequence[Row], wish: Wish, batch_size: int, **options: Any) -> list[list[int]]:
        results = self._model.translate_batch(
            [self._tokens(row.explain) for row in rows],
            max_batch_size=batch_size,
            max_decoding_length=wish.tokens,
            min_decoding_length=wish.tokens if wish.forced else 0,
            max_input_length=0,
            beam_size=1,
            repetition_penalty=wish.repetition_penalty,
            no_repeat_ngram_size=wish.no_repeat_ngram,
            **options,
        )
        return [[self._ids[token] for token in result.hypotheses[0]] for result in results]

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[index] for index in ids]


def open_side(path: str, compute_type: str, threads: int, device: str = "cpu") -> CTranslate2Side:
    """Loads a model folder.

    Args:
        path: the folder with model.bin.
        compute_type: as CTranslate2 calls it; `default` is as saved.
        threads: of one call.
        device: `cpu` or `cuda`.
    """
    return CTranslate2Side(Path(path), compute_type=compute_type, threads=threads, device=device)


def instruction_set(model: str) -> str | None:
    """What CTranslate2 chose for this processor; it says so only while it loads, and only to its log."""
    code = "import sys, ctranslate2; ctranslate2.Translator(sys.argv[1], intra_threads=1)"
    environment = {**os.environ, "CT2_VERBOSE": "1"}
    command = [sys.executable, "-c", code, model]
    log = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr
    told = [re.search(rf"{name}: (\w+)", log) for name in ("Selected ISA", "SGEMM backend", "GEMM_S8 backend")]
    words = [f"{name} {found[1]}" for name, found in zip(("", "float32 by", "int8 by"), told, strict=True) if found]
    return ", ".join(words).strip() or None


def _on_host(view: Any) -> Any:
    view = view.to_device(ctranslate2.Device.cpu) if view.device != "cpu" else view
    view = view.to(ctranslate2.DataType.float32) if view.dtype != ctranslate2.DataType.float32 else view
    return np.asarray(view)
