"""HTML and SVG elements in which every text is escaped unless it is markup already."""

from __future__ import annotations

import html

from r2d_edge.rendering import printable

_VOID = frozenset(("br", "meta"))


class Html(str):
    """Text that is markup: it is not escaped again."""

    __slots__ = ()


Content = str | int | None
Attribute = str | int | float | None


def escaped(text: str) -> Html:
    """A text as markup, line breaks kept; what acts instead of being shown (control and bidi marks) is dropped."""
    return Html(html.escape("\n".join(printable(line) for line in text.split("\n"))))


def element(name: str, /, *children: Content, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        children: `Html` stays as it is, other text is escaped, None is left out.
        attributes: underscores stand for hyphens, one at the end is dropped (`class_`); None is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{joined(*children)}</{name}>")


def joined(*children: Content) -> Html:
    """Several pieces as one."""
    return Html(
        "".join(child if isinstance(child, Html) else escaped(str(child)) for child in children if child is not None)
    )


def _attribute(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{round(value, 2):g}"
    return html.escape(printable(str(value)))
