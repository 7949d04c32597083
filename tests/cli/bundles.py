"""A tiny bundle for the command line's tests: random weights, real engine, real files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.bundle import GOLDEN, MANIFEST, Manifest, seal
from tests.tiny_models import TEXTS, write_tiny_bart

NOTES = TEXTS[1:5]


def make_bundle(folder: Path) -> Path:
    """Writes checkpoint and bundle below `folder` and returns the bundle's folder."""
    golden = folder / "golden.jsonl"
    golden.write_text("".join(json.dumps({"text": note}) + "\n" for note in NOTES), encoding="utf-8")
    options = ConversionOptions(
        quantization="float32", name="tiny", version="0.0.1", licence="Apache-2.0", golden=golden
    )
    # With this seed the model gives notes different labels.
    return convert_to_ctranslate2(write_tiny_bart(folder / "checkpoint", seed=4), folder / "bundle", options).output


def write_golden(folder: Path, rows: list[dict[str, float]]) -> None:
    """Golden rows with these expected log-probabilities."""
    lines = [json.dumps({"text": note, "log_probabilities": row}) + "\n" for note, row in zip(NOTES, rows, strict=True)]
    (folder / GOLDEN).write_text("".join(lines), encoding="utf-8")


def reseal(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Makes the manifest fit the folder's files as they are now, with top-level fields changed."""
    data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    seal(folder, Manifest.from_json({**data, **(changes or {})}))
