"""The flip matrix: a table whose cells are shaded as a heat map, and say in signs what the shades say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from r2d_edge.report.markup import Content, Html, element, joined
from r2d_edge.report.wording import count

_SHADES = 4  # of a flip, by its count
_MANY_LABELS, _LONG_LABEL = 6, 16  # from here on the matrix heads its columns by number


def flip_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, ordered: bool) -> Html:
    """The flip matrix as a table whose cells are shaded by their counts, and marked where they are flips."""
    most = max((rows for y, line in enumerate(matrix) for x, rows in enumerate(line) if x != y), default=0)
    numbered = len(labels) >= _MANY_LABELS or max(map(len, labels)) > _LONG_LABEL
    heads: list[Content] = []
    for place, label in enumerate(labels, start=1):
        short = joined(element("span", str(place), aria_hidden="true"), element("span", label, class_="unseen"))
        heads.append(short if numbered else label)
    lines = []
    for y, (label, line) in enumerate(zip(labels, matrix, strict=True)):
        name = f"{y + 1}\u2002{label}" if numbered else label
        cells = [_flip_cell(rows, x - y, most, ordered=ordered) for x, rows in enumerate(line)]
        total = element("td", count(sum(line)), class_="total")
        lines.append(element("tr", element("th", name, scope="row"), *cells, total))
    totals = [element("td", count(sum(line[x] for line in matrix)), class_="total") for x in range(len(labels))]
    whole = element("td", count(sum(map(sum, matrix))), class_="total")
    first = element("th", "Reference ↓", element("br"), "Candidate →", scope="col", class_="corner")
    head = element(
        "tr", first, *(element("th", name, scope="col") for name in heads), element("th", "All", scope="col")
    )
    foot = element("tr", element("th", "All", scope="row"), *totals, whole)
    key = "= the same label; ≠ another label. The stronger the shade, the more rows."
    if ordered:
        key = (
            "Labels run from the most to the least severe. = the same label; ▼ less severe than the reference said; "
            "▲ more severe. The stronger the shade, the more rows."
        )
    caption = element("caption", "Flip matrix: counts of rows", id="matrix")
    inside = element(
        "table", caption, element("thead", head), element("tbody", *lines), element("tfoot", foot), class_="matrix"
    )
    box = element("div", inside, class_="scroll", role="region", aria_labelledby="matrix", tabindex=0)
    return joined(box, element("p", key, class_="note"))


def _flip_cell(rows: int, step: int, most: int, *, ordered: bool) -> Html:
    """A cell of the flip matrix.

    Args:
        rows: its count.
        step: how many labels the candidate is from the reference; above 0 is less severe.
        most: the greatest count of a flip.
        ordered: whether labels have an order of severity.
    """
    if not step:
        return element("td", _sign("=", "same label: "), count(rows), class_="kept")
    if not rows:
        return element("td", "0", class_="none")
    shade = max(1, math.ceil(_SHADES * math.sqrt(rows / most)))
    if not ordered:
        return element("td", _sign("≠", "another label: "), count(rows), class_=f"over-{shade}")
    if step > 0:
        return element("td", _sign("▼", "less severe: "), count(rows), class_=f"under-{shade}")
    return element("td", _sign("▲", "more severe: "), count(rows), class_=f"over-{shade}")


def _sign(sign: str, said: str) -> Html:
    return joined(element("span", sign, class_="sign", aria_hidden="true"), element("span", said, class_="unseen"))
