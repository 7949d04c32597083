"""Times of many notes → the figures that are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PARTS = ("label", "first", "rationale", "note")
_RESAMPLES = 2_000
_SEED = 13


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, mean, least and greatest, in milliseconds.

    A quantile is a time that was measured, never one between two: p95 of 30 is the second slowest, and p99 of
    fewer than 100 is the slowest.
    """
    laps = 1000 * np.asarray(seconds, dtype=np.float64)
    quantiles = {f"p{q}": float(np.percentile(laps, q, method="inverted_cdf")) for q in (50, 95, 99)}
    return {**quantiles, "mean": float(laps.mean()), "min": float(laps.min()), "max": float(laps.max())}


def latency(laps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The figures of one side: `laps` as a side reports them, one a note, in seconds.

    Returns:
        For each of `PARTS` its `summary` (`first` counts from the rationale's prompt, `note` is label and
        rationale); `tokens` a rationale on average; `tokens_per_second` once the first is there;
        `cpu_seconds_per_1000_notes`, the sum over all threads.
    """
    notes = [{**lap, "note": lap["label"] + lap["rationale"]} for lap in laps]
    steps = sum(lap["tokens"] - 1 for lap in laps)
    writing = sum(lap["rationale"] - lap["first"] for lap in laps)
    return {
        "notes": len(laps),
        "ms": {part: summary([note[part] for note in notes]) for part in PARTS},
        "tokens": float(np.mean([lap["tokens"] for lap in laps])),
        "tokens_per_second": steps / writing if writing > 0 and steps > 0 else None,
        "cpu_seconds_per_1000_notes": 1000 * float(np.mean([lap["cpu"] for lap in laps])),
    }


def ratio(slower: Sequence[Mapping[str, float]], faster: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How many times faster `faster` is, by the medians of the same notes' times, with a 95 % bootstrap interval.

    Args:
        slower: laps, a note each.
        faster: laps of the same notes in the same order; if one side was stopped earlier, the rest is left out.
    """
    count = min(len(slower), len(faster))
    times = np.array(
        [[lap["label"] + lap["rationale"] for lap in laps[:count]] for laps in (slower, faster)], dtype=np.float64
    )
    rows = np.random.default_rng(_SEED).integers(0, count, (_RESAMPLES, count))
    medians = np.median(times[:, rows], axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    value = np.median(times[0]) / np.median(times[1])
    return {"value": float(value), "low": float(low), "high": float(high), "notes": count}
