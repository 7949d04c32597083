"""A run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import figure_cells, latency_cells, left_out, throughput_cells

WIDE = 170
KINDS = {"natural": "stopping where the model does", "fixed note": "the 150-token note again and again"}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the machine, every model's sides, and the figures to reach."""
    machine = result["machine"]
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {' '.join(machine['features'])}")
    for name, model in result["models"].items():
        title = f"{name}: one thread, {model['equal']['tokens']} tokens a rationale on every side, milliseconds"
        console.print(_table(title, *latency_cells(model)))
        for line in left_out(model):
            console.print(f"  {line}", markup=False)
        for kind, words in KINDS.items():
            if (cells := latency_cells(model, kind))[1]:
                console.print(_table(f"{name}: one thread, {words}, milliseconds", *cells))
        if (cells := throughput_cells(model))[1]:
            console.print(_table(f"{name}: many notes at once, one thread", *cells))
    if result["figures"]:
        console.print(_table("figures to reach", *figure_cells(result["figures"])))


def _table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, box=None, title_justify="left", header_style="bold")
    for number, column in enumerate(head):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def wide_console() -> Console:
    """Standard error, with a width of its own where it is no terminal."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=WIDE)
