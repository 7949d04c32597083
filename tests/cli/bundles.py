"""A tiny bundle for the command line's tests: random weights, real engine, real files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.checkpoint import read_checkpoint
from convert.ct2 import export
from r2d_edge.bundle import CARD, GOLDEN, MANIFEST, TOKENIZER, Calibration, Manifest, seal
from r2d_edge.decide import load
from r2d_edge.label_scores import score_labels
from tests.tiny_models import TEXTS, write_tiny_bart

NOTES = TEXTS[1:5]


def make_bundle(folder: Path) -> Path:
    """Writes checkpoint and bundle below `folder` and returns the bundle's folder."""
    checkpoint = read_checkpoint(write_tiny_bart(folder / "checkpoint"))
    labels = checkpoint.task.labels.labels
    target = folder / "bundle"
    target.mkdir()
    export(checkpoint, target / "model", "float32")
    (target / TOKENIZER).write_bytes((checkpoint.folder / TOKENIZER).read_bytes())
    (target / CARD).write_text("# A tiny model for tests\n", encoding="utf-8")
    write_golden(target, [dict.fromkeys(labels, 0.0)])
    seal(
        target,
        Manifest(
            name="tiny",
            version="0.0.1",
            task=checkpoint.task,
            engine="ctranslate2",
            compute_type="float32",
            files={},
            calibration=Calibration(source="none: random weights"),
            extra={"licence": "Apache-2.0", "intended_use": "tests of the command line"},
        ),
    )
    decider = load(target)
    scores = score_labels(decider.engine, decider.encoder, [decider.encoder.predict(note).ids for note in NOTES])
    write_golden(target, [dict(zip(labels, row, strict=True)) for row in scores.tolist()])
    reseal(target)
    return target


def write_golden(folder: Path, rows: list[dict[str, float]]) -> None:
    """Golden rows with these expected log-probabilities."""
    lines = [
        json.dumps({"text": note, "log_probabilities": row}) + "\n" for note, row in zip(NOTES, rows, strict=False)
    ]
    (folder / GOLDEN).write_text("".join(lines), encoding="utf-8")


def reseal(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Makes the manifest fit the folder's files as they are now, with top-level fields changed."""
    data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    seal(folder, Manifest.from_json({**data, **(changes or {})}))
