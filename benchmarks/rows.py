"""A run's figures as cells of tables, for the terminal and for Markdown alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cells = tuple[list[str], list[list[str]]]

_LATENCY_HEAD = [
    "side",
    "label p50",
    "first token p50",
    "note p50",
    "p95",
    "p99",
    "tokens/s",
    "times full size",
    "CPU s/1000 notes",
    "MB on disk",
    "MB peak",
    "s to first label",
]
_THROUGHPUT_HEAD = ["side", "best batch", "notes/s", "tokens/s", "tokens a note", "CPU s/1000 notes", "MB peak"]


def latency_cells(model: Mapping[str, Any], kind: str = "equal") -> Cells:
    """A row for every side that was run and measured so; under `equal` also for those that were only opened."""
    rows = []
    for name, side in model["sides"].items():
        if "opening" not in side:
            continue
        found = side.get("latency", {}).get(kind)
        opening = side["opening"]
        rest = [_mega(side["size_bytes"]), _mega(opening["peak_bytes"]), f"{opening['first_label_seconds']:.1f}"]
        if found is None:
            if kind == "equal":
                rows.append([name, *[""] * 8, *rest])
            continue
        ms = found["ms"]
        times = side.get("times_full_size", {}).get(kind)
        rows.append(
            [
                name,
                _ms(ms["label"]["p50"]),
                _ms(ms["first"]["p50"]),
                *(_ms(ms["note"][quantile]) for quantile in ("p50", "p95", "p99")),
                "" if found["tokens_per_second"] is None else f"{found['tokens_per_second']:.0f}",
                "" if times is None else f"{times['value']:.2f}",
                f"{found['cpu_seconds_per_1000_notes']:.0f}",
                *rest,
            ]
        )
    return _LATENCY_HEAD, rows


def left_out(model: Mapping[str, Any]) -> list[str]:
    """The sides that have no row, or not all of their figures, each with its reason."""
    return [f"{name} {side['status']}: {side['reason']}" for name, side in model["sides"].items() if side["reason"]]


def throughput_cells(model: Mapping[str, Any]) -> Cells:
    """A row for every side that was given many notes at once."""
    rows = []
    for name, side in model["sides"].items():
        if best := side.get("throughput", {}).get("best"):
            size = str(best["batch_size"] or ("its own" if name == "r2d-edge" else "one call"))
            figures = [best["notes_per_second"], best["tokens_per_second"], best["tokens"]]
            places = (2, 0, 1)
            cells = [f"{figure:.{place}f}" for figure, place in zip(figures, places, strict=True)]
            rows.append([name, size, *cells, f"{best['cpu_seconds_per_1000_notes']:.0f}", _mega(best["peak_bytes"])])
    return _THROUGHPUT_HEAD, rows


def figure_cells(figures: Sequence[Mapping[str, Any]]) -> Cells:
    """A row a figure to reach."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [
        [figure["name"], figure["target"], _value(figure["value"]), words[figure["reached"]], figure["reason"] or ""]
        for figure in figures
    ]
    return ["figure", "to reach", "measured", "reached", "why not"], rows


def _value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _mega(value: int) -> str:
    return f"{value / 1e6:.0f}"
