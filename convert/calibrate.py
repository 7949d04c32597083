"""Fits a bundle's temperature on labelled rows, through the runtime, on this bundle's own numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge import calibration
from r2d_edge.decide import Decider, why_unreadable
from r2d_edge.errors import InputError
from r2d_edge.label_scores import score_labels
from r2d_edge.task import LabelSet


def fit(decider: Decider, files: Sequence[Path], batch_size: int = 16) -> dict[str, Any]:
    """A calibration for `convert ctranslate2 --calibration`.

    Args:
        files: JSON Lines with `text` and `label`.

    Returns:
        `temperature`, `abstain_below` (0: never) and `source`, which says how and on what it was fitted.

    Raises:
        InputError: a row has no text, or a label outside the bundle's label set.
    """
    rows = [row for path in files for row in _read(path, decider.task.labels)]
    if not rows:
        raise InputError("no labelled rows to fit a temperature on")
    texts, gold = [text for text, _ in rows], [label for _, label in rows]
    prompts = [decider.encoder.predict(text).ids for text in texts]
    scores = np.concatenate(
        [
            score_labels(decider.engine, decider.encoder, prompts[first : first + batch_size])
            for first in range(0, len(prompts), batch_size)
        ]
    )
    truth = np.array(gold, dtype=np.int64)
    temperature = calibration.fit_temperature(scores, truth)
    data = ", ".join(
        f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" for path in files
    )
    return {
        "temperature": round(temperature, 4),
        "abstain_below": 0.0,
        "source": f"temperature by maximum likelihood on {len(texts)} rows ({data}) scored by this quantization",
    }


def _read(path: Path, labels: LabelSet) -> Iterator[tuple[str, int]]:
    """Text and label index of every row; a message never repeats what stands in a row."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: not JSON") from None
        text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or (reason := why_unreadable(text)):
            raise InputError(f"{where}: no text that can be scored{f' ({reason})' if isinstance(text, str) else ''}")
        if label not in labels.labels:
            raise InputError(f"{where}: its label is none of {list(labels.labels)}")
        yield text, labels.index(label)
