"""The report in a terminal: the page's order, shorter, the verdict last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r2d_edge.rendering import printable
from r2d_edge.report.wording import (
    DISCLAIMER,
    RESULTS,
    VERDICTS,
    check_figure,
    count,
    data_in_words,
    flips_in_words,
    number,
    percent,
    percent_interval,
    points,
    points_interval,
    probability,
    recall,
    side_in_words,
    small,
    summary,
    under_triage_in_words,
)

if TYPE_CHECKING:
    from rich.console import Console

_SIDES = ("reference", "candidate")
_STYLES = {True: "green", False: "red", None: "yellow"}
_WORST = 5
_MOST_LABELS = 12  # of a flip matrix that fits
_NAME = 22  # letters of a label at most
# Older consoles have no such signs.
_PLAIN = {0x2212: "-", 0xA0: " ", 0x201C: '"', 0x201D: '"', 0x2013: "-"}


def render(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report of schema 1 (see `compare.make_report`); fits 80 columns."""
    compared = report["compared"]
    _say(console, "Quantization-accuracy report", "bold")
    for name in _SIDES:
        side = compared[name]
        _say(console, f"{name.capitalize()}: {side_in_words(side)}, sha256 {str(side['digest'])[:12]}")
    _say(console, f"Compared {data_in_words(report)}; {compared['machine']['cpu']}")
    for warning in compared.get("warnings") or []:
        _say(console, f"Note: {warning}", "yellow")
    _checks(report, console)
    _quality(report, console)
    _flips(report, console)
    _drift(report, console)
    _rationales(report, console)
    _worst(report, console)
    verdict = report["verdict"]["passed"]
    console.print()
    _say(console, DISCLAIMER)
    _say(console, f"{VERDICTS[verdict].upper()}. {summary(report)}", f"bold {_STYLES[verdict]}", whole=True)


def _checks(report: Mapping[str, Any], console: Console) -> None:
    rows: list[list[_Cell]] = [
        [
            check["name"][:1].upper() + check["name"][1:],
            (RESULTS[check["passed"]], _STYLES[check["passed"]]),
            *(check_figure(check, key).replace("points", "pt") for key in ("value", "bound", "limit")),
            count(check["rows_needed"]) if check.get("rows_needed") is not None else "",
        ]
        for check in report["verdict"]["checks"]
    ]
    _table(console, ("Check", "Result", "Measured", "At most", "Limit", "Needs rows"), rows)


def _quality(report: Mapping[str, Any], console: Console) -> None:
    quality = report.get("quality")
    if quality is None:
        return
    rows = []
    for key, name in (("macro_f1", "Macro-F1"), ("accuracy", "Accuracy")):
        change = quality["difference"][key]
        rows.append([name, *(_estimate(quality[side][key]) for side in _SIDES), _change(change)])
    _table(console, ("Quality", "Reference, %", "Candidate, %", "Change, points"), rows)
    rows = []
    for label in report["compared"]["labels"]:
        sides = [quality[side]["per_class"][label] for side in _SIDES]
        recalls = [_bare(*recall(side)) for side in sides]
        rows.append([_short(label), count(sides[0]["support"]), *recalls])
    _table(console, ("Recall", "Rows", "Reference, %", "Candidate, %"), rows)
    mcnemar = quality["mcnemar"]
    only = f"Right alone: reference {count(mcnemar['reference_only'])}, candidate {count(mcnemar['candidate_only'])}"
    _say(console, f"{only}; exact McNemar {probability(mcnemar['p'])}")


def _flips(report: Mapping[str, Any], console: Console) -> None:
    flips = report.get("flips")
    if flips is None:
        return
    console.print()
    _say(console, flips_in_words(report))
    labels = report["compared"]["labels"]
    if flips["ordered"] is not None:
        _say(console, under_triage_in_words(report))
        gold = flips["ordered"]["gold_under_triage"]
        rows = [["Under-triage", *(_estimate(gold[side]) for side in _SIDES), _change(gold["difference"])]]
        top = flips["ordered"].get("top_two_sensitivity")
        if top is not None:
            rows.append(["Top two found", *(_estimate(top[side]) for side in _SIDES), ""])
        _table(console, ("Against gold", "Reference, %", "Candidate, %", "Change, points"), rows)
    if len(labels) > _MOST_LABELS or not flips["count"]:
        return
    heads = ("Flips: reference down", *(str(place) for place in range(1, len(labels) + 1)))
    lines: list[list[_Cell]] = []
    for place, (label, line) in enumerate(zip(labels, flips["matrix"], strict=True)):
        cells: list[_Cell] = [
            (count(rows), "dim") if x == place or not rows else (count(rows), "bold") for x, rows in enumerate(line)
        ]
        lines.append([f"{place + 1} {_short(label)}", *cells])
    _table(console, heads, lines)


def _drift(report: Mapping[str, Any], console: Console) -> None:
    drift, calibration = report.get("drift"), report.get("calibration")
    if drift is not None:
        rows = [
            [name, *(small(drift[key][part]) for part in ("mean", "p99", "max"))]
            for key, name in (("kl", "KL, nats"), ("js", "JS, nats"))
        ]
        _table(console, ("Drift", "Mean", "99th percentile", "Greatest"), rows)
    if calibration is not None:
        sides = [("Reference", "reference"), ("Candidate", "candidate"), ("Candidate refitted", "candidate_refitted")]
        rows = [
            [
                name,
                percent(one["ece"]),
                *(number(one[figure]) for figure in ("brier", "nll")),
                # A report of an earlier version has no curve.
                *(number((one.get("risk_coverage") or {}).get(area)) for area in ("aurc", "augrc")),
                number(one["temperature"]),
            ]
            for name, key in sides
            if (one := calibration.get(key)) is not None
        ]
        _table(console, ("Calibration", "ECE", "Brier", "NLL", "AURC", "AUGRC", "Temperature"), rows)


def _rationales(report: Mapping[str, Any], console: Console) -> None:
    rationales = report.get("rationales")
    if rationales is None:
        return
    rows = []
    for name, key in (
        ("Number not in the note", "unsupported_numbers"),
        ("Drug-like word not in the note", "unsupported_terms"),
        ("Repeats itself", "repetition"),
        ("Leads to the same label", "consistency"),
    ):
        rows.append([name, *(percent((rationales.get(key) or {}).get(side)) for side in _SIDES)])
    for name, key in (("BLEU against gold", "bleu"), ("chrF against gold", "chrf")):
        rows.append([name, *(number((rationales.get(f"{side}_vs_gold") or {}).get(key), 1) for side in _SIDES)])
    _table(console, ("Rationales", "Reference", "Candidate"), rows)
    alike = rationales.get("candidate_vs_reference") or {}
    _say(
        console,
        f"{percent(rationales['exact_match'])} are the same word for word; candidate against reference: "
        f"BLEU {number(alike.get('bleu'), 1)}, chrF {number(alike.get('chrf'), 1)}",
    )


def _worst(report: Mapping[str, Any], console: Console) -> None:
    rows = []
    for one in (report.get("worst") or [])[:_WORST]:
        sides = [f"{_short(one[f'{side}_label'])} {percent(one[f'{side}_probability'], 0)}" for side in _SIDES]
        rows.append([_short(one["id"]), _short(one["gold"]), *sides, small(one["drift"])])
    if rows:
        _table(console, ("Moved most", "Gold", "Reference", "Candidate", "JS"), rows, words=4)


_Cell = str | tuple[str, str]


def _table(console: Console, heads: Sequence[str], rows: Sequence[Sequence[_Cell]], *, words: int = 1) -> None:
    """A table; a cell is a text, or a text with its style. The first columns hold words, the others figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for place, head in enumerate(heads):
        is_words = place < words
        table.add_column(
            Text(_plain(head)), justify="left" if is_words else "right", overflow="fold", no_wrap=not is_words
        )
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        table.add_row(*(Text(_plain(text), style) for text, style in cells))
    console.print()
    console.print(table)


def _say(console: Console, text: str, style: str = "", *, whole: bool = False) -> None:
    """A line of text; `whole` leaves it in one piece, however long."""
    from rich.text import Text

    console.print(Text(_plain(text), style), soft_wrap=whole)


def _plain(text: str) -> str:
    return printable(text).translate(_PLAIN)


def _short(label: str) -> str:
    return label if len(label) <= _NAME else f"{label[: _NAME - 3].rstrip()}..."


def _estimate(one: Mapping[str, float | None]) -> str:
    return _bare(one["value"], one["low"], one["high"])


def _bare(value: float | None, low: float | None, high: float | None) -> str:
    """A share with its interval, the percent sign left to the head."""
    return f"{percent(value).removesuffix(chr(0xA0) + '%')} {percent_interval(low, high)}".rstrip()


def _change(one: Mapping[str, float | None]) -> str:
    figure = points(one["value"]).removesuffix("\u00a0points")
    return f"{figure} {points_interval(one['low'], one['high'])}".rstrip()
