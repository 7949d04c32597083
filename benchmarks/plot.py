"""The plot of a run: what a note takes on each side, one panel a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LABEL, _REST = "#9a6700", "#0b6bcb"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes an SVG: median milliseconds of label and rationale, one thread, the bars' order as in the tables.

    Args:
        result: a run as it is written to its JSON file.
        path: of the file; the format is taken from its suffix.

    Raises:
        ImportError: matplotlib is not installed (it comes with the extra `train`).
        ValueError: no side of the run has a latency.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "r2d-edge"  # the same figures give the same file
    panels = {name: bars for name, model in result["models"].items() if (bars := _bars(model))}
    if not panels:
        raise ValueError("no side of this run has a latency to draw")
    heights = [0.9 + 0.34 * len(bars) for bars in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, (name, bars) in zip(axes[:, 0], panels.items(), strict=True):
        names = list(bars)
        labels = [bars[side]["label"]["p50"] for side in names]
        notes = [bars[side]["note"]["p50"] for side in names]
        rest = [note - label for note, label in zip(notes, labels, strict=True)]
        axis.barh(names, labels, color=_LABEL, label="label")
        axis.barh(names, rest, left=labels, color=_REST, label="rationale")
        for row, note in enumerate(notes):
            axis.annotate(
                f"{note:,.0f}", (note, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(_title(name, result["models"][name]), loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="lower right")
    axes[-1, 0].set_xlabel("milliseconds a note, median, one thread")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _bars(model: Mapping[str, Any]) -> dict[str, Any]:
    """The times of every side that did the equal work."""
    return {
        name: side["latency"]["equal"]["ms"]
        for name, side in model["sides"].items()
        if "equal" in side.get("latency", {})
    }


def _title(name: str, model: Mapping[str, Any]) -> str:
    weights = "random weights" if model["weights"] == "random" else "its own weights"
    return f"{name}, {weights}, {model['equal']['tokens']} tokens a rationale"
