"""What the page's sections are put together from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from r2d_edge.report.charts import verdict_icon
from r2d_edge.report.markup import Content, Html, element, escaped, joined
from r2d_edge.report.wording import RESULTS, percent, percent_interval, points, points_interval

STATES = {True: "pass", False: "fail", None: "open"}
# A head that is short for want of room, for who reads the table row by row.
_IN_FULL = {"Ref.": "reference", "Cand.": "candidate", "Rows": "rows", "Conf.": "confidence", "Acc.": "accuracy"}


def paragraph(*children: Content) -> Html:
    """A paragraph."""
    return element("p", *children)


def items(items: Sequence[str]) -> Html:
    """A list of sentences."""
    return element("ul", *(element("li", item) for item in items))


def terms(pairs: Sequence[tuple[str, str]]) -> list[Html]:
    """Terms with their meanings, for a `dl`."""
    return [element("div", element("dt", term), element("dd", meaning)) for term, meaning in pairs]


def figure(picture: Html, caption: str) -> Html:
    """A picture with its caption."""
    return element("figure", picture, element("figcaption", caption))


def badge(passed: bool | None) -> Html:
    """How a check came out, as a sign and a word."""
    return element("span", verdict_icon(passed), RESULTS[passed], class_=f"badge {STATES[passed]}")


def code(text: str) -> Html:
    """What is copied letter by letter."""
    return element("code", text)


def beside(figure: str, other: str) -> Html:
    """A figure with what belongs to it on a line of its own."""
    return joined(figure, " ", element("span", other, class_="interval")) if other else escaped(figure)


def estimate(one: Mapping[str, float | None]) -> Html:
    """A share with its interval."""
    return beside(percent(one["value"]), percent_interval(one["low"], one["high"]))


def difference(one: Mapping[str, float | None]) -> Html:
    """A difference in points with its interval."""
    return beside(points(one["value"]), points_interval(one["low"], one["high"]))


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Content]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    class_: str | None = None,
) -> Html:
    """A table in a box of its own, which scrolls where it is too wide; on a narrow screen each row is a block.

    Args:
        caption: what it shows.
        heads: of the columns; where they are blank there is none.
        rows: cells; the first of each heads its row.
        groups: what stands over how many columns each.
        class_: of the table.
    """
    key = "table-" + hashlib.sha256(caption.encode("utf-8")).hexdigest()[:8]
    lines = []
    if groups:
        over = [
            element("th", name, scope="colgroup", colspan=span) if name else element("td", colspan=span)
            for name, span in groups
        ]
        lines.append(element("tr", *over, class_="groups"))
    # The roles keep a table a table where the style sets its rows as blocks.
    over_each = [name for name, span in groups for _ in range(span)] or [""] * len(heads)
    whole = [
        f"{group}, {_IN_FULL.get(name, name)}" if group else name for group, name in zip(over_each, heads, strict=True)
    ]
    names = [element("th", name, scope="col", role="columnheader") if name else element("td") for name in heads]
    lines.append(element("tr", *names, role="row"))
    body = []
    for first, *cells in rows:
        said = [
            element("td", element("span", cell), role="cell", data_name=name)
            for name, cell in zip(whole[1:], cells, strict=True)
        ]
        body.append(element("tr", element("th", first, scope="row", role="rowheader"), *said, role="row"))
    inside = element(
        "table",
        element("caption", caption, id=key),
        element("thead", *lines, role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        class_=f"plain {class_}" if class_ else "plain",
        role="table",
    )
    return element("div", inside, class_="scroll", role="region", aria_labelledby=key, tabindex=0)
