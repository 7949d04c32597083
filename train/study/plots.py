"""The plots of a study, as SVG, from its committed results alone.

Okabe and Ito's colours with a marker and a line style each, so that they can be told apart without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.study.curves import training_curve
from train.study.figures import METRICS
from train.study.results import Result
from train.study.spec import Study
from train.study.tables import Setting, settings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"
_PER_ROW = 4
_LINES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, readable aloud
    "svg.hashsalt": "r2d-edge",  # the same results give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
_F1 = METRICS["macro_f1"]


def draw(study: Study, results: Mapping[str, Result], folder: Path) -> dict[Path, str]:
    """Draws what the results suffice for.

    Returns:
        What each picture shows, by its file: the text for readers who cannot see it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    settings = settings_of(study, results)
    done = [setting for setting in settings if setting.rows]
    found = {}
    with mpl.rc_context(_STYLE):
        for name, plot in (
            ("f1-parameters", _by_parameters(done)),
            ("learning-curves", _curves(study, results)),
            ("sources", _sources(done)),
        ):
            if plot is not None:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{name}.svg"
                plot[0].savefig(path, metadata={"Date": None, "Creator": None})
                found[path] = plot[1]
    return found


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, in rows of at most `_PER_ROW`."""
    from matplotlib.figure import Figure

    columns = min(count, _PER_ROW)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.4 * columns, 2.8 * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _style(methods: list[str], method: str) -> dict[str, Any]:
    place = methods.index(method)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place % len(_LINES)],
        "markersize": 5,
        "linewidth": 1.4,
        "label": method,
    }


def _by_parameters(done: list[Setting]) -> tuple[Figure, str] | None:
    """F1 against parameters, one line a method, each with its first sources."""
    if not done:
        return None
    sets = list(dict.fromkeys(setting.set_name for setting in done))
    methods = list(dict.fromkeys(setting.cell.method for setting in done))
    figure, panels = _panels(len(sets))
    for axes, name in zip(panels, sets, strict=True):
        for place, method in enumerate(methods):
            points: dict[str, Setting] = {}
            for setting in done:
                if (setting.set_name, setting.cell.method) == (name, method):
                    points.setdefault(setting.cell.size, setting)
            ordered = sorted(points.values(), key=lambda setting: setting.parameters)
            spreads = [setting.spread(_F1) for setting in ordered]
            # A little to the side, so that the bars of methods do not hide one another.
            x = [setting.parameters / 1e6 * 1.02 ** (place - (len(methods) - 1) / 2) for setting in ordered]
            means = [found.mean if found else math.nan for found in spreads]
            halves = [found.half or 0.0 if found else 0.0 for found in spreads]
            axes.errorbar(x, means, yerr=halves, capsize=2.5, **_style(methods, method))
        sizes = {setting.parameters / 1e6: setting.cell.size for setting in done if setting.set_name == name}
        axes.set_xscale("log")
        axes.set_xticks(list(sizes), [f"{size}\n{count:.1f} M" for count, size in sizes.items()])
        axes.set_xticks([], minor=True)
        if len(sizes) == 1:
            only = next(iter(sizes))
            axes.set_xlim(only / 1.15, only * 1.15)
        axes.set(title=name, xlabel="parameters (log scale)")
    panels[0].set_ylabel("validation macro-F1")
    panels[-1].legend(frameon=False)
    words = "; ".join(
        f"{setting.set_name}, {setting.cell.size}, {setting.cell.method} {found.mean:.3f}"
        for setting in done
        if (found := setting.spread(_F1)) is not None and setting.cell.stage1_source in (None, setting.cell.source)
    )
    return figure, f"Macro-F1 against parameters, one line a method, bars for 95 % intervals over seeds: {words}."


def _curves(study: Study, results: Mapping[str, Result]) -> tuple[Figure, str] | None:
    """Validation F1 by step of training: the mean of the seeds, at the steps that all of them have reached."""
    curves: dict[tuple[str, str], dict[str, list[dict[float, float]]]] = {}
    first: dict[tuple[str, str, str], str] = {}
    for cell in study.cells:
        result = results.get(cell.name)
        curve = training_curve(result) if result is not None else {}
        # Of a method with several sources, the first that was run.
        if not curve.get("step"):
            continue
        if first.setdefault((cell.data, cell.size, cell.method), cell.sources) != cell.sources:
            continue
        for name in cell.recipe.validation:
            curves.setdefault((name, cell.size), {}).setdefault(cell.method, []).append(
                dict(zip(curve["step"], curve[name], strict=True))
            )
    if not curves:
        return None
    methods = list(dict.fromkeys(method for found in curves.values() for method in found))
    figure, panels = _panels(len(curves))
    last = []
    for axes, ((name, size), found) in zip(panels, curves.items(), strict=True):
        for method, runs in found.items():
            steps = sorted(set(runs[0]).intersection(*runs))
            if not steps:
                continue  # stopped before the first evaluation of another seed
            values = np.array([[run[step] for step in steps] for run in runs])
            style = _style(methods, method)
            axes.plot(steps, values.mean(axis=0), **style)
            if len(runs) > 1:
                axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, lw=0)
            last.append(f"{name}, {size}, {method} ends at {values.mean(axis=0)[-1]:.3f}")
        axes.set(title=f"{name}, {size}", xlabel="optimizer steps")
    panels[0].set_ylabel("validation macro-F1")
    panels[-1].legend(frameon=False)
    words = "Validation macro-F1 during training by optimizer step, mean and range over seeds"
    return figure, f"{words} (the tables hold the best step's checkpoint): {'; '.join(last)}."


def _sources(done: list[Setting]) -> tuple[Figure, str] | None:
    """A heat map of stage-1 source against stage-2 source, for each set and method that has two pairs or more."""
    grids: dict[tuple[str, str, str], dict[tuple[str, str], float]] = {}
    for setting in done:
        cell, found = setting.cell, setting.spread(_F1)
        if cell.stage1_source is not None and cell.source is not None and found is not None:
            key = (setting.set_name, cell.size, cell.method)
            grids.setdefault(key, {})[cell.stage1_source, cell.source] = found.mean
    grids = {key: grid for key, grid in grids.items() if len(grid) > 1}
    if not grids:
        return None
    figure, panels = _panels(len(grids))
    words = []
    for axes, (key, grid) in zip(panels, grids.items(), strict=True):
        names = list(dict.fromkeys(name for pair in grid for name in pair))
        values = np.array([[grid.get((row, column), math.nan) for column in names] for row in names])
        axes.imshow(values, cmap="cividis")
        middle = float(np.nanmin(values) + np.nanmax(values)) / 2
        for row, column in np.ndindex(values.shape):
            found = values[row, column]
            text = "not run" if math.isnan(found) else f"{found:.3f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if found <= middle else "black")
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(title=", ".join(key), xlabel="source of stage 2", ylabel="source of stage 1")
        best = max(grid, key=lambda pair: grid[pair])
        words.append(f"{', '.join(key)}: best with stage 1 {best[0]}, stage 2 {best[1]} ({grid[best]:.3f})")
    return figure, f"Macro-F1 by the source of stage 1 (rows) and of stage 2 (columns). {'; '.join(words)}."
