"""A judge's result as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def result_table(result: Mapping[str, Any]) -> Table:
    """What `judge_scores` or `judge_pairs` returned, to print with rich."""
    return _score_table(result) if result["mode"] == "score" else _pair_table(result)


def _score_table(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"Scores from 1 to 5 by {_judge(result)}", caption=_caption(result))
    for heading in ("criterion", "mean", "95 % interval", "1 / 2 / 3 / 4 / 5"):
        table.add_column(heading, justify="left" if heading == "criterion" else "right")
    for criterion, figures in result["scores"].items():
        counts = " / ".join(str(count) for count in figures.get("counts", {}).values())
        table.add_row(criterion.replace("_", " "), _number(figures["value"]), _span(figures), counts)
    return table


def _pair_table(result: Mapping[str, Any]) -> Table:
    a, b = (escape(record["file"]) for record in result["records"])
    table = Table(title=f"{a} (a) against {b} (b) by {_judge(result)}", caption=_caption(result))
    for heading in ("figure", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    ties, position = result["ties"], result["position"]
    table.add_row("wins of a", str(result["wins_a"]))
    table.add_row("wins of b", str(result["wins_b"]))
    table.add_row(f"ties ({ties['disagreed']} by disagreement with itself)", str(ties["all"]))
    table.add_row("not judged (refused or unparsable)", str(result["unjudged"]))
    for name, figures in (
        ("preference for a (ties count half)", result["preference_a"]),
        ("agreement with itself under swapping", result["self_agreement"]),
        ("first place's share (0.5 is no bias)", position["first_share"]),
    ):
        table.add_row(name, _number(figures["value"]), _span(figures))
    table.add_row("sign test, p", f"{result['sign_test_p']:.3g}")
    return table


def _judge(result: Mapping[str, Any]) -> str:
    judge = result["judge"]
    return escape(str(judge.get("model") or judge.get("file")))


def _caption(result: Mapping[str, Any]) -> str:
    rows, answers = result["rows"], result["answers"]
    refused = f"; {answers['refused']} questions refused" if answers["refused"] else ""
    return (
        f"{rows['judged']} of {rows['available']} rows; "
        f"{answers['unparsable']} of {answers['asked']} answers unparsable ({answers['unparsable_share']:.1%}){refused}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _span(figures: Mapping[str, float | None]) -> str:
    return f"{_number(figures['low'])} to {_number(figures['high'])}"
