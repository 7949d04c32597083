"""Real reports of made-up decisions, for the tests of what is drawn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge.report.compare import ReportOptions, make_report
from r2d_edge.report.gate import Gate

LEVELS = ("resuscitation", "emergent", "urgent", "less urgent", "non-urgent")
NOTE = "72 y female, chest pain since 6:40, BP 96/54, on warfarin.\nSweating; \u201ccannot breathe\u201d."


def made_report(
    folder: Path,
    *,
    labels: Sequence[str] = LEVELS,
    rows: int = 120,
    noise: float = 0.35,
    ordered: bool = True,
    rationales: bool = True,
    show_texts: bool = False,
    note: str = NOTE,
    gate: Gate | None = None,
) -> dict[str, Any]:
    """Compares two files of decisions, the candidate's with so much noise on its logits."""
    rng = np.random.default_rng(7)
    k = len(labels)
    gold = rng.integers(0, k, size=rows)
    gold[: min(k, rows)] = np.arange(k)[: min(k, rows)]
    logits = 2.2 * np.eye(k)[gold] - 0.5 * np.abs(np.arange(k)[None, :] - gold[:, None]) + rng.normal(size=(rows, k))
    folder.mkdir(parents=True, exist_ok=True)
    for name, given in (("reference", logits), ("candidate", logits + noise * rng.normal(size=(rows, k)))):
        shares = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
            for place, row in enumerate(shares):
                record = {
                    "schema": 1,
                    "id": f"row-{place:04d}",
                    "label": labels[int(row.argmax())],
                    "probabilities": dict(zip(labels, row.tolist(), strict=True)),
                    "rationale": f"Chest pain and BP 96/54 as {name} reads it; give 5 mg of morphine. {note[:40]}",
                    "consistent": bool(place % 3),
                    "model": f"{name} 1.0.0",
                }
                stream.write(json.dumps(record) + "\n")
    with (folder / "rows.jsonl").open("w", encoding="utf-8", newline="\n") as stream:
        for place, label in enumerate(gold):
            row = {"id": f"row-{place:04d}", "text": note, "label": labels[label], "rationales": {"llm": "Chest pain."}}
            stream.write(json.dumps(row) + "\n")
    options = ReportOptions(
        gate=gate or Gate(),
        rationales=rationales,
        show_texts=show_texts,
        resamples=200,
        labels=tuple(labels) if ordered else None,
    )
    sides = [str(folder / f"{name}.jsonl") for name in ("reference", "candidate")]
    return make_report(
        *sides, [folder / "rows.jsonl"], options, command="r2d-edge report --reference <A> --candidate B"
    )
