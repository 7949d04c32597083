from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from r2d_edge.report import charts
from r2d_edge.report.charts import Estimate
from r2d_edge.report.markup import Html

HOSTILE = '<script>alert("1")</script> & \'</svg>\x1b[31m\u202e'


def read(picture: Html | None) -> ET.Element:
    assert picture is not None
    return ET.fromstring(picture)  # what is not well-formed is refused


def of_class(picture: ET.Element, name: str) -> list[ET.Element]:
    return [one for one in picture.iter() if name in (one.get("class") or "").split()]


def texts(picture: ET.Element) -> list[str]:
    return ["".join(one.itertext()) for one in picture.iter("text")]


def place(one: ET.Element, key: str) -> float:
    return float(one.get(key, "nan"))


def bin_(low: float, count: int, confidence: float | None, accuracy: float | None) -> dict[str, Any]:
    return {"low": low, "high": low + 0.1, "count": count, "confidence": confidence, "accuracy": accuracy}


def test_every_picture_says_its_figures() -> None:
    bins = [bin_(0.8, 12, 0.85, 0.75)]
    pictures = {
        charts.gauge(0.02, 0.04, 0.01, "2 of 100"): "2 of 100",
        charts.recall([("urgent", Estimate(0.5, 0.4, 0.6), Estimate(0.25, 0.2, 0.3))]): "reference 50.0\u00a0%",
        charts.label_shares([("urgent", 0.5, 0.25)]): "candidate 25.0\u00a0%",
        charts.reliability("candidate", "candidate", bins): "accuracy 75.0\u00a0%, 12 rows",
        charts.flipped_margins([0.05, 0.07]): "0 to 0.1: 2",
    }
    for picture, said in pictures.items():
        svg = read(picture)
        assert svg.get("role") == "img"
        assert said in (svg.get("aria-label") or "")
        [title] = svg.findall("title")
        assert title.text


def test_a_gauge_puts_the_figure_the_bound_and_the_limit_in_their_places() -> None:
    svg = read(charts.gauge(0.0, 0.02, 0.01, ""))
    [zero] = of_class(svg, "axis")
    [limit] = of_class(svg, "limit")
    [mark] = of_class(svg, "mark")
    line = of_class(svg, "whisker")[0]
    assert place(mark, "x") + 4 == pytest.approx(place(zero, "x1"))
    assert place(line, "x2") - place(zero, "x1") == pytest.approx(
        2 * (place(limit, "x1") - place(zero, "x1")), abs=0.02
    )
    assert not of_class(svg, "arrow")


@pytest.mark.parametrize("bound", [0.5, None])
def test_a_gauge_shows_that_a_bound_lies_beyond_it(bound: float | None) -> None:
    svg = read(charts.gauge(0.4, bound, 0.01, ""))
    assert of_class(svg, "arrow")
    [mark] = of_class(svg, "mark")
    assert place(mark, "x") + place(mark, "width") < place(svg, "width")


def test_a_gauge_needs_a_limit() -> None:
    assert charts.gauge(0.0, 0.0, 0.0, "") is None


def test_recall_dots_stand_between_the_ends_of_their_intervals() -> None:
    rows = [
        ("urgent", Estimate(0.5, 0.25, 0.75), Estimate(1.0, 0.5, 1.0)),
        ("other", Estimate(0.0, 0.0, 0.5), Estimate(None, None, None)),
    ]
    svg = read(charts.recall(rows))
    ticks = {round(place(one, "x1"), 1) for one in of_class(svg, "grid")}
    left, right = min(ticks), max(ticks)
    circles = [one for one in of_class(svg, "mark") if one.tag == "circle"][1:]  # the first is the legend's
    assert [place(one, "cx") for one in circles] == pytest.approx([(left + right) / 2, left])
    whisker = of_class(svg, "whisker")[0]
    assert (place(whisker, "x1"), place(whisker, "x2")) == pytest.approx(
        (left + (right - left) / 4, left + (right - left) * 0.75)
    )
    squares = [one for one in of_class(svg, "mark") if one.tag == "rect"][1:]
    assert len(squares) == 1  # what is not known has no mark, but says so
    assert "n/a" in texts(svg)


def test_sides_differ_by_shape_and_not_by_colour_alone() -> None:
    bins = [bin_(0.5, 3, 0.55, 0.6)]
    shapes = {
        kind: of_class(read(charts.reliability(kind, kind, bins)), "mark")[0].tag
        for kind in ("reference", "candidate", "refitted")
    }
    assert len(set(shapes.values())) == 3


def test_reliability_leaves_empty_bins_out() -> None:
    svg = read(charts.reliability("reference", "reference", [bin_(0.0, 0, None, None), bin_(0.9, 4, 1.0, 1.0)]))
    [mark] = of_class(svg, "mark")
    [perfect] = of_class(svg, "perfect")
    assert (place(mark, "cx"), place(mark, "cy")) == (place(perfect, "x2"), place(perfect, "y2"))
    assert len(of_class(svg, "bar")) == 1
    assert "no rows" in (read(charts.reliability("x", "reference", [bin_(0.0, 0, None, None)])).get("aria-label") or "")


def test_label_bars_are_as_long_as_their_shares() -> None:
    svg = read(charts.label_shares([("a", 0.6, 0.3), ("b", 0.0, 0.1)]))
    widths = [place(one, "width") for one in of_class(svg, "bar")][2:]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.02)
    assert widths[2] == 0
    assert widths[3] == pytest.approx(widths[0] / 6, abs=0.02)
    read(charts.label_shares([("a", 0.0, 0.0)]))  # nothing is no division by nothing


def test_margins_are_counted_in_ten_bins() -> None:
    svg = read(charts.flipped_margins([0.0, 0.05, 0.1, 0.999, 1.0]))
    assert [text for text in texts(svg) if text in ("1", "2")] == [
        "2",
        "1",
        "2",
        "1",
    ]  # three counts, and the axis' end
    assert len(of_class(svg, "bar")) == 3
    assert not of_class(read(charts.flipped_margins([])), "bar")


def test_hostile_labels_are_text() -> None:
    rows = [(HOSTILE, 0.5, 0.5)]
    pictures = [
        charts.label_shares(rows),
        charts.recall([(HOSTILE, Estimate(0.5, 0.4, 0.6), Estimate(0.5, 0.4, 0.6))]),
        charts.reliability(HOSTILE, "candidate", [bin_(0.0, 1, 0.05, 0.1)]),
        charts.gauge(0.1, 0.2, 0.1, HOSTILE),
    ]
    for picture in pictures:
        svg = read(picture)
        assert "script" not in {one.tag for one in svg.iter()}
        assert "\x1b" not in (picture or "")
        assert "\u202e" not in (picture or "")


def test_long_labels_are_cut_where_they_would_not_fit() -> None:
    label = "a label of which nobody would have thought that it could be as long as this one is"
    [name] = [text for text in texts(read(charts.label_shares([(label, 0.5, 0.5)]))) if text.startswith("a label")]
    assert name.endswith("…")
    assert len(name) <= 46


@pytest.mark.parametrize("passed", [True, False, None])
def test_verdict_icons_have_shapes_of_their_own(passed: bool | None) -> None:
    others = {True, False, None} - {passed}
    assert all(charts.verdict_icon(passed) != charts.verdict_icon(other) for other in others)
    assert read(charts.verdict_icon(passed)).get("aria-hidden") == "true"  # the word beside it says it


def test_risk_coverage_draws_a_line_for_each_side() -> None:
    curve = [{"coverage": 0.5, "risk": 0.0}, {"coverage": 1.0, "risk": 0.2}]
    svg = read(charts.risk_coverage([("reference", curve), ("candidate", curve[:1])]))
    lines = [line.get("points", "") for line in svg.iter() if line.tag.endswith("polyline")]
    assert lines == ["192.0,180.0 344.0,30.0", "192.0,180.0"]
    assert "reference: 0.0\u00a0% of the surest 50.0\u00a0%; reference: 20.0\u00a0%" in (svg.get("aria-label") or "")
    assert "no rows" in (read(charts.risk_coverage([])).get("aria-label") or "")
