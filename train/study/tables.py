"""The tables of a study, in Markdown, from its committed results alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r2d_edge.bootstrap import Estimate
from train.scoring import bare_warning, empty_warning
from train.study.figures import METRICS, Metric, Spread, paired_difference, spread, value
from train.study.results import Result, Rows
from train.study.spec import Cell, Study

_MANY = 3


@dataclass
class Setting:
    """Cells that differ in the seed alone, on one validation set.

    Attributes:
        rows: of the finished seeds.
        context: their results' contexts.
        failed: how many seeds failed.
        wanted: how many seeds the study asks for.
        parameters: of the trained model; 0 if no seed is finished.
        written: rationales of the finished seeds together, the empty ones too.
        empty: how many of them are empty.
        bare: how many are nothing but the name of a label.
    """

    cell: Cell
    set_name: str
    rows: dict[int, Rows] = field(default_factory=dict)
    context: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failed: int = 0
    wanted: int = 0
    parameters: int = 0
    written: int = 0
    empty: int = 0
    bare: int = 0

    def spread(self, metric: Metric) -> Spread | None:
        """A figure over the seeds."""
        return spread([value(metric, rows) for rows in self.rows.values()])


def settings_of(study: Study, results: Mapping[str, Result]) -> list[Setting]:
    """The settings of a study, by validation set, size, method and sources in the order of the study file."""
    found: dict[tuple[str, str, str, str, str], Setting] = {}
    for cell in study.cells:
        result = results.get(cell.name)
        for set_name in cell.recipe.validation:
            key = (cell.data, set_name, cell.size, cell.method, cell.sources)
            setting = found.setdefault(key, Setting(cell, set_name))
            setting.wanted += 1
            if result is not None and result.error is None:
                setting.rows[cell.seed] = result.sets[set_name]
                setting.context[cell.seed] = result.context
                setting.parameters = result.parameters
                figures = result.evaluation.get(set_name, {})
                setting.written += figures.get("rationales", 0)
                setting.empty += figures.get("empty_rationales", 0)
                setting.bare += figures.get("bare_labels", 0)
            elif result is not None:
                setting.failed += 1
    places: list[tuple[str, ...]] = [(s.cell.data, s.set_name) for s in found.values()]
    places += [(setting.cell.method,) for setting in found.values()]
    order = {place: number for number, place in enumerate(dict.fromkeys(places))}
    sizes = list(dict.fromkeys(cell.size for cell in study.cells))
    return sorted(
        found.values(),
        key=lambda s: (order[s.cell.data, s.set_name], sizes.index(s.cell.size), order[s.cell.method,]),
    )


def results_table(study: Study, results: Mapping[str, Result]) -> str:
    """Mean ± half width of the 95 % interval over seeds; settings without a result share a line.

    The best of a figure on one set and size is bold where its paired interval against the runner-up excludes zero.
    Below the table stands which models left a notable share of their rationales empty or wrote a label's name in
    their place, and who judged.
    """
    metrics = _shown(results)
    head = ["set", "model", "method", "rationales", "seeds", *(metric.title for metric in metrics.values())]
    lines, notes = [], []
    for settings in _groups(settings_of(study, results)):
        best = {name: marked_best(settings, metric) for name, metric in metrics.items()}
        for setting in settings:
            if setting.rows:
                cells = [_figure(setting, metric, best[name] is setting) for name, metric in metrics.items()]
                place = [*_place(setting), setting.cell.method, setting.cell.sources]
                lines.append([*place, _seeds(setting), *cells])
                warnings = empty_warning(setting.empty, setting.written), bare_warning(setting.bare, setting.written)
                notes += [f"\n- {', '.join(place)}: {warning}" for warning in warnings if warning is not None]
        for state, kept in (("failed", True), ("not run", False)):
            left = [setting for setting in settings if not setting.rows and bool(setting.failed) is kept]
            if left:
                methods = _listed((setting.cell.method for setting in left), "methods")
                sources = _listed((setting.cell.sources for setting in left), "pairs of sources")
                lines.append([*_place(left[0]), methods, sources, state, *[""] * len(metrics)])
    notes += [f"\n- {note}" for note in _judges(results)]
    return markdown_table(head, lines) + "".join(notes) + ("\n" if notes else "")


def differences_table(study: Study, results: Mapping[str, Result]) -> str:
    """Paired differences between methods that learned the same rationales, with 95 % intervals over rows.

    Bold where the interval excludes zero.
    """
    metrics = _shown(results)
    head = ["set", "model", "rationales", "difference", *(metric.title for metric in metrics.values())]
    lines = []
    for settings in _groups(settings_of(study, results)):
        done = [setting for setting in settings if setting.rows]
        for second, first in itertools.combinations(done, 2):
            if first.cell.method == second.cell.method or not _comparable(first.cell, second.cell):
                continue
            cells = []
            for metric in metrics.values():
                cells.append(_difference(_paired(metric, first, second), metric))
            sources = first.cell.sources if first.cell.source else second.cell.sources
            lines.append([*_place(first), sources, f"{first.cell.method} − {second.cell.method}", *cells])
    return markdown_table(head, lines)


def marked_best(settings: Sequence[Setting], metric: Metric) -> Setting | None:
    """The setting with the best mean, if its paired interval against the runner-up excludes zero."""
    ranked = [(found.mean, setting) for setting in settings if (found := setting.spread(metric)) is not None]
    if len(ranked) < 2:
        return None
    ranked.sort(key=lambda item: item[0], reverse=metric.higher_is_better)
    best, second = ranked[0][1], ranked[1][1]
    difference = _paired(metric, best, second)
    if difference is None:
        return None
    sure = difference.low > 0 if metric.higher_is_better else difference.high < 0
    return best if sure else None


def _paired(metric: Metric, first: Setting, second: Setting) -> Estimate | None:
    """The paired difference over those seeds whose figures were made alike, where both sides say how."""
    seeds = []
    for seed in first.rows.keys() & second.rows.keys():
        ours, theirs = metric.made_with(first.context[seed]), metric.made_with(second.context[seed])
        if ours is None or theirs is None or ours == theirs:
            seeds.append(seed)
    return paired_difference(metric, *({seed: setting.rows[seed] for seed in seeds} for setting in (first, second)))


def _shown(results: Mapping[str, Result]) -> dict[str, Metric]:
    """The metrics; a judge's only where a result has its scores."""
    judged = any("judge" in result.context for result in results.values())
    return {name: metric for name, metric in METRICS.items() if name != "judge" or judged}


def _judges(results: Mapping[str, Result]) -> list[str]:
    """A line for each judge whose scores the results have."""
    found = [result.context["judge"] for result in results.values() if "judge" in result.context]
    who = [(judge["identity"].get("model") or judge["identity"].get("file"), judge["warning"]) for judge in found]
    return [
        f"judge: {name}, scores from 1 to 5{f'; {warning}' if warning else ''}" for name, warning in dict.fromkeys(who)
    ]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _groups(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings of one validation set and size, which are what is compared."""
    groups: dict[tuple[str, str, str], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.cell.data, setting.set_name, setting.cell.size), []).append(setting)
    return list(groups.values())


def _comparable(first: Cell, second: Cell) -> bool:
    """Whether no source differs, where both have one."""
    pairs = ((first.source, second.source), (first.stage1_source, second.stage1_source))
    return all(a is None or b is None or a == b for a, b in pairs)


def _place(setting: Setting) -> list[str]:
    return [setting.set_name, setting.cell.size]


def _seeds(setting: Setting) -> str:
    done = len(setting.rows)
    failed = f", {setting.failed} failed" if setting.failed else ""
    return f"{done}" if done == setting.wanted else f"{done} of {setting.wanted}{failed}"


def _figure(setting: Setting, metric: Metric, best: bool) -> str:
    found = setting.spread(metric)
    if found is None:
        return ""
    text = f"{found.mean:.{metric.places}f}"
    if found.half is not None:
        text += f" ± {found.half:.{metric.places}f}"
    return f"**{text}**" if best else text


def _difference(found: Estimate | None, metric: Metric) -> str:
    if found is None:
        return ""
    difference, low, high = (f"{number:+.{metric.places}f}" for number in found)
    text = f"{difference} ({low} to {high})"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def _listed(names: Iterable[str], plural: str) -> str:
    unique = list(dict.fromkeys(name for name in names if name != "–"))
    if not unique:
        return "–"
    return ", ".join(unique) if len(unique) <= _MANY + 1 else f"{len(unique)} {plural}"
