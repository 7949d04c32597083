"""Fits a bundle's temperature on labelled rows, through the runtime, on this bundle's own numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge import calibration
from r2d_edge.decide import Decider
from r2d_edge.errors import InputError
from r2d_edge.label_scores import score_labels


def fit(decider: Decider, files: Sequence[Path], batch_size: int = 16) -> dict[str, Any]:
    """A calibration for `convert ctranslate2 --calibration`.

    Args:
        files: JSON Lines with `text` and `label`.

    Returns:
        `temperature`, `abstain_below` (0: never) and `source`, which says how and on what it was fitted.

    Raises:
        InputError: a row has no text, or a label outside the bundle's label set.
    """
    texts: list[str] = []
    gold: list[int] = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                texts.append(row["text"])
                gold.append(decider.task.labels.index(row["label"]))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path.name}, line {number}: {error}") from None
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
