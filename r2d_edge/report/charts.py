"""The page's pictures: inline SVG whose colours and type are the page's own (page.css).

Every picture has a title and a label that says its figures, for who does not see it; the two sides differ
by the shape of their marks, never by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from r2d_edge.report.markup import Attribute, Content, Html, element, joined
from r2d_edge.report.wording import count, percent, reading

WIDTH = 360  # of most pictures, in their own units: little more than what a telephone shows
_LABEL_LETTERS = 46  # what fits over a row
_MARGIN_BINS = 10
# Reliability diagrams.
_SIDE, _LEFT, _TOP, _RIGHT = 200, 46, 10, 16
_COUNTS = 34


class Estimate(NamedTuple):
    """A share with its interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


def verdict_icon(passed: bool | None) -> Html:
    """A tick in a disc, a cross in an octagon, or an exclamation mark in a triangle."""
    if passed:
        shape = joined(_shape("circle", cx=12, cy=12, r=11), _shape("path", class_="sign", d="M6.5 12.5l3.8 3.8 7.4-8"))
    elif passed is False:
        octagon = "M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4z"
        shape = joined(_shape("path", d=octagon), _shape("path", class_="sign", d="M7.5 7.5l9 9M16.5 7.5l-9 9"))
    else:
        shape = joined(
            _shape("path", d="M12 1.5L23.5 22.2H.5z"),
            _shape("path", class_="sign", d="M12 9.2v5.6M12 18.6v.1"),
        )
    return element("svg", shape, class_="icon", viewBox="0 0 24 24", aria_hidden="true", focusable="false")


def gauge(value: float, bound: float | None, limit: float, said: str) -> Html | None:
    """A check's figure and its bound against the limit; None where the limit is 0.

    Args:
        value: what was measured.
        bound: what it is at most; None where nothing bounds it.
        limit: what is allowed.
        said: the same in words.
    """
    if limit <= 0:
        return None
    left, right, width, middle = -1.0, 3.0, 132, 12

    def x(share: float) -> float:
        place = (min(max(share / limit, left), right) - left) / (right - left)
        return 6 + place * (width - 12)

    end = bound if bound is not None else math.inf
    parts = [
        _shape("rect", class_="beyond", x=x(limit), y=2, width=width - x(limit), height=20),
        _line(6, middle, width - 6, middle, "grid"),
        _line(x(0), 7, x(0), 17, "axis"),
        _line(x(value), middle, x(end), middle, "whisker"),
        _line(x(limit), 1, x(limit), 23, "limit"),
        _mark("candidate", min(x(value), width - 20), middle),
    ]
    if end / limit > right:  # the line goes on, and the figure itself may lie there
        parts.append(_shape("path", class_="arrow", d=f"M{width - 9} 7l8 5-8 5z"))
    else:
        parts.append(_line(x(end), 8, x(end), 16, "whisker"))
    return _picture("gauge", width, 24, "Measured figure, bound and limit", said, parts)


def recall(rows: Sequence[tuple[str, Estimate, Estimate]]) -> Html:
    """Recall of each label for both sides, as dots with 95 % intervals.

    Args:
        rows: label, reference, candidate.
    """
    left, right, block, top = 8.0, 290.0, 52, 34
    bottom = top + block * len(rows)

    def x(share: float) -> float:
        return left + share * (right - left)

    parts = [_legend(("reference", "candidate"))]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(x(tick), top - 4, x(tick), bottom, "grid"))
        anchor = "start" if tick == 0 else "middle"
        parts.append(_text(f"{100 * tick:.0f}" + ("\u00a0%" if tick == 1 else ""), x(tick), bottom + 14, anchor=anchor))
    for place, (label, *sides) in enumerate(rows):
        y = top + place * block
        parts.append(_text(_short(label), left, y + 11, class_="name backed"))
        for step, (kind, side) in enumerate(zip(("reference", "candidate"), sides, strict=True)):
            middle = y + 21 + 14 * step
            if side.low is not None and side.high is not None:
                parts.append(_line(x(side.low), middle, x(side.high), middle, f"whisker {kind}"))
                parts += [
                    _line(x(end), middle - 3, x(end), middle + 3, f"whisker {kind}") for end in (side.low, side.high)
                ]
            if side.value is not None:
                parts.append(_mark(kind, x(side.value), middle))
            parts.append(_text(percent(side.value), WIDTH - 2, middle + 4, anchor="end", class_="figure"))
    said = reading([(label, one.value, two.value) for label, one, two in rows])
    return _picture("chart", WIDTH, bottom + 22, "Recall of each label with 95 % intervals", said, parts)


def label_shares(rows: Sequence[tuple[str, float, float]]) -> Html:
    """How often each label is given by both sides, as bars.

    Args:
        rows: label, share of the reference, share of the candidate.
    """
    left, right, block, top = 8.0, 296.0, 50, 30
    greatest = max([share for _, *shares in rows for share in shares], default=0.0) or 1.0
    parts = [_legend(("reference", "candidate"), bars=True)]
    for place, (label, *shares) in enumerate(rows):
        y = top + place * block
        parts.append(_text(_short(label), left, y + 10, class_="name"))
        for step, (kind, share) in enumerate(zip(("reference", "candidate"), shares, strict=True)):
            bar = y + 17 + 13 * step
            width = share / greatest * (right - left)
            parts.append(_shape("rect", class_=f"bar {kind}", x=left, y=bar, width=width, height=10))
            parts.append(_text(percent(share), WIDTH - 2, bar + 9, anchor="end", class_="figure"))
    parts.append(_line(left, top + 14, left, top + block * len(rows) - 5, "axis"))
    title = "Share of all rows that each label is given to"
    return _picture("chart", WIDTH, top + block * len(rows), title, reading(rows), parts)


def reliability(name: str, kind: str, bins: Sequence[Mapping[str, Any]]) -> Html:
    """A reliability diagram: accuracy against confidence, with the rows of each bin below.

    Args:
        name: of the side, for the title.
        kind: `reference`, `candidate` or `refitted`.
        bins: with `low`, `high`, `count`, `confidence` and `accuracy`.
    """
    used = [one for one in bins if one["count"] and one["confidence"] is not None and one["accuracy"] is not None]
    width, base = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE
    floor = base + 8 + _COUNTS

    def x(share: float) -> float:
        return _LEFT + share * _SIDE

    def y(share: float) -> float:
        return base - share * _SIDE

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [_line(x(tick), _TOP, x(tick), base, "grid"), _line(x(0), y(tick), x(1), y(tick), "grid")]
        parts.append(_text(f"{100 * tick:.0f}", _LEFT - 6, y(tick) + 4, anchor="end"))
        parts.append(_text(f"{100 * tick:.0f}", x(tick), floor + 15, anchor="middle"))
    parts.append(_line(x(0), y(0), x(1), y(1), "perfect"))
    parts.append(_text("Accuracy, %", 11, y(0.5), anchor="middle", transform=f"rotate(-90 11 {y(0.5):g})"))
    parts.append(_text("Confidence, %; bars: rows", x(0.5), floor + 30, anchor="middle"))
    most = max((one["count"] for one in used), default=1)
    for one in used:
        height = max(1.0, one["count"] / most * _COUNTS)
        place = {"x": x(one["low"]) + 1, "width": (one["high"] - one["low"]) * _SIDE - 2}
        parts.append(_shape("rect", class_=f"bar {kind}", y=floor - height, height=height, **place))
        parts.append(_line(x(one["confidence"]), y(one["accuracy"]), x(one["confidence"]), y(one["confidence"]), "gap"))
    parts.append(_line(x(0), floor, x(1), floor, "axis"))
    trail = " ".join(f"{x(one['confidence']):.1f},{y(one['accuracy']):.1f}" for one in used)
    parts.append(_shape("polyline", class_=f"trail {kind}", points=trail))
    parts += [_mark(kind, x(one["confidence"]), y(one["accuracy"])) for one in used]
    said = "; ".join(
        f"confidence {percent(one['confidence'])}, accuracy {percent(one['accuracy'])}, {one['count']} rows"
        for one in used
    )
    return _picture("chart", width, floor + 36, f"Reliability of the {name}", said or "no rows", parts)


def risk_coverage(sides: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> Html:
    """Errors among the surest rows against the share of rows decided, a line for each side.

    Args:
        sides: kind (`reference`, `candidate` or `refitted`) and points with `coverage` and `risk`.
    """
    left, right, top, base = 40.0, WIDTH - 16.0, 30.0, 180.0
    highest = max((point["risk"] for _, curve in sides for point in curve), default=0.0) or 1.0

    def x(share: float) -> float:
        return left + share * (right - left)

    def y(share: float) -> float:
        return base - share / highest * (base - top)

    parts = [_legend([kind for kind, _ in sides])]
    for tick in (0.0, 0.5, 1.0):
        parts += [_line(left, y(tick * highest), right, y(tick * highest), "grid")]
        parts.append(_text(f"{100 * tick * highest:.0f}", left - 6, y(tick * highest) + 4, anchor="end"))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_text(f"{100 * tick:.0f}", x(tick), base + 14, anchor="middle"))
    parts.append(_line(left, base, right, base, "axis"))
    for kind, curve in sides:
        trail = " ".join(f"{x(point['coverage']):.1f},{y(point['risk']):.1f}" for point in curve)
        parts.append(_shape("polyline", class_=f"trail {kind}", points=trail))
        parts += [_mark(kind, x(point["coverage"]), y(point["risk"])) for point in curve[-1:]]
    parts.append(_text("Errors among the decided, %, by rows decided, %", WIDTH / 2, base + 30, anchor="middle"))
    said = "; ".join(
        f"{kind}: {percent(point['risk'])} of the surest {percent(point['coverage'])}"
        for kind, curve in sides
        for point in curve[len(curve) // 2 - 1 :: max(1, len(curve) // 2)]
    )
    return _picture("chart", WIDTH, base + 36, "Risk by coverage", said or "no rows", parts)


def flipped_margins(margins: Sequence[float]) -> Html:
    """How close a call the flipped rows were: rows by the reference's margin, 0 to 1."""
    bins = [0] * _MARGIN_BINS
    for margin in margins:
        bins[min(_MARGIN_BINS - 1, max(0, int(margin * _MARGIN_BINS)))] += 1
    left, top, height = 8.0, 18, 90
    base, step = top + height, (WIDTH - 2 * 8.0) / _MARGIN_BINS
    most = max(bins)
    parts = []
    for place, rows in enumerate(bins):
        x = left + place * step
        tall = rows / most * height if most else 0.0
        if rows:
            parts.append(_shape("rect", class_="bar candidate", x=x + 1.5, y=base - tall, width=step - 3, height=tall))
            parts.append(_text(count(rows), x + step / 2, base - tall - 4, anchor="middle", class_="figure"))
        parts.append(_text(f"{place / _MARGIN_BINS:g}", x, base + 14, anchor="start" if place == 0 else "middle"))
    parts.append(_text("1", left + step * _MARGIN_BINS, base + 14, anchor="end"))
    parts.append(_line(left, base, WIDTH - left, base, "axis"))
    parts.append(_text("Margin of the reference: 0 is a close call", WIDTH / 2, base + 30, anchor="middle"))
    said = "; ".join(
        f"{place / _MARGIN_BINS:g} to {(place + 1) / _MARGIN_BINS:g}: {rows}" for place, rows in enumerate(bins) if rows
    )
    return _picture("chart", WIDTH, base + 36, "Flipped rows by the reference's margin", said or "none", parts)


def _picture(class_: str, width: float, height: float, title: str, said: str, parts: Sequence[Html]) -> Html:
    return element(
        "svg",
        element("title", title),
        *parts,
        class_=class_,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        role="img",
        aria_label=f"{title}: {said}",
    )


def _legend(kinds: Sequence[str], *, bars: bool = False) -> Html:
    parts = []
    for place, kind in enumerate(kinds):
        x = 8 + 110.0 * place
        if bars:
            parts.append(_shape("rect", class_=f"bar {kind}", x=x, y=5, width=12, height=10))
        else:
            parts.append(_mark(kind, x + 5, 10))
        parts.append(_text(kind, x + 18, 14))
    return joined(*parts)


def _mark(kind: str, x: float, y: float) -> Html:
    """A ring for the reference, a filled square for the candidate, a filled triangle for it refitted."""
    class_ = f"mark {kind}"
    if kind == "reference":
        return _shape("circle", class_=class_, cx=x, cy=y, r=4)
    if kind == "candidate":
        return _shape("rect", class_=class_, x=x - 4, y=y - 4, width=8, height=8)
    return _shape("path", class_=class_, d=f"M{x:.1f} {y - 5:.1f}l5 9h-10z")


def _text(text: str, x: float, y: float, *, anchor: str = "start", **attributes: Attribute) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return _shape("line", class_=class_, x1=x1, y1=y1, x2=x2, y2=y2)


def _shape(name: str, *children: Content, **attributes: Attribute) -> Html:
    return element(name, *children, **attributes)


def _short(label: str) -> str:
    """A label cut to what fits; the tables beside the pictures have it whole."""
    return label if len(label) <= _LABEL_LETTERS else f"{label[: _LABEL_LETTERS - 1].rstrip()}…"
