"""Decisions for a person at a terminal: one note as it is decided, or a table of many."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from r2d_edge.decision import Decision
from r2d_edge.rendering import printable

BAR_CELLS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"
_INDENT = "  "
_MAX_WIDTH = 100


class NoteView:
    """One note: the label at once, the rationale as it is made, the model last."""

    def __init__(self, labels: Sequence[str], *, rationale: bool) -> None:
        self._labels = labels
        self._rationale = rationale
        self._paragraph = Paragraph()

    def label(self, decision: Decision) -> None:
        """Shows the label, its probabilities, and first of all whether they may be used."""
        other = _more_probable(decision)
        if decision.abstained:
            click.echo(_styled(f"ABSTAINED: {_why(decision)}", fg="yellow", bold=True))
        if decision.label is None:
            click.echo("No label was given: a person must read this note.")
        elif decision.abstained:
            given = f"{_shown(decision.label)} {_percent(decision.probabilities[decision.label])}"
            by = "Most probable" if other is None else "Chosen by costs or rounding up"
            rest = "" if other is None else f"; most probable: {other}"
            click.echo(f"Do not use the label without reading the note. {by}: {given}{rest}")
        else:
            click.echo(_styled(_shown(decision.label), bold=True))
            if other is not None:
                click.echo(f"Chosen by costs or rounding up; most probable: {other}")
        if decision.probabilities:
            click.echo()
            labels = self._labels or tuple(decision.probabilities)  # an open set has no list
            width = max(len(_shown(label)) for label in labels)
            for label in labels:
                share = decision.probabilities[label]
                line = f"{_INDENT}{_shown(label):<{width}}  {bar(share)}  {_percent(share):>5}"
                click.echo(_styled(line, bold=label == decision.label, dim=label != decision.label))
        if decision.label_set is not None:
            click.echo(f"{_INDENT}one of: {', '.join(map(_shown, decision.label_set)) or 'none'} (conformal set)")
        if self._rationale and decision.label is not None:
            click.echo()
        sys.stdout.flush()

    def token(self, piece: str) -> None:
        """Shows a piece of the rationale."""
        self._paragraph.add(printable(piece))

    def break_off(self) -> None:
        """Ends the line, so that what is said next begins a new one."""
        self._paragraph.end()

    def close(self, decision: Decision) -> None:
        """Ends the rationale and says which model decided and how long it took."""
        if decision.rationale and not self._paragraph.started:
            self._paragraph.add(printable(decision.rationale))
        self._paragraph.end()
        if decision.consistent is False:
            click.echo(_styled("The rationale alone leads to another label.", fg="yellow"))
        times = " · ".join(f"{step} {value:.0f} ms" for step, value in decision.ms.items())
        click.echo()
        click.echo(_styled(" · ".join(filter(None, (printable(decision.model), times))), dim=True))


class Paragraph:
    """Wraps text at words while it comes in pieces."""

    def __init__(self, width: int | None = None) -> None:
        columns = width or min(_MAX_WIDTH, shutil.get_terminal_size().columns)
        self._room = max(20, columns - 2 * len(_INDENT))
        self._used = 0
        self._word = ""
        self.started = False

    def add(self, piece: str) -> None:
        """Shows every word that the piece completes."""
        self.started = self.started or bool(piece)
        *complete, self._word = (self._word + piece).split(" ")
        for word in filter(None, complete):
            self._show(word)
        sys.stdout.flush()

    def end(self) -> None:
        """Shows the last word and ends the line."""
        if self._word:
            self._show(self._word)
            self._word = ""
        if self._used:
            click.echo()
            self._used = 0

    def _show(self, word: str) -> None:
        if self._used and self._used + 1 + len(word) > self._room:
            click.echo()
            self._used = 0
        lead = " " if self._used else _INDENT
        click.echo(lead + word, nl=False)
        self._used += len(word) + (lead == " ")


class TableWriter:
    """Many notes: one table, shown when the last of them is decided (or the work is broken off)."""

    def __init__(self, *, rationale: bool) -> None:
        self._rationale = rationale
        self._decisions: list[Decision] = []

    def write(self, decision: Decision) -> None:
        self._decisions.append(decision)

    def close(self) -> None:
        if not self._decisions:
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("id", "label", "p"):
            table.add_column(
                column, no_wrap=column == "p", justify="right" if column == "p" else "left", overflow="fold"
            )
        sets = any(decision.label_set is not None for decision in self._decisions)
        if sets:
            table.add_column("one of", overflow="fold")
        table.add_column("abstained", overflow="fold")
        if self._rationale:
            table.add_column("rationale", ratio=1, overflow="fold")
        for decision in self._decisions:
            table.add_row(*self._cells(decision, sets), style="yellow" if decision.abstained else None)
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(table)
        abstained = sum(decision.abstained for decision in self._decisions)
        console.print(
            f"{len(self._decisions)} notes, {abstained} abstained · {printable(self._decisions[0].model)}", style="dim"
        )

    def _cells(self, decision: Decision, sets: bool) -> list[Any]:
        share = decision.probabilities.get(decision.label) if decision.label else None
        cells = [
            printable(decision.id),
            _shown(decision.label or "none"),
            "" if share is None else _percent(share),
            *([", ".join(map(_shown, decision.label_set or ()))] if sets else []),
            _why(decision) if decision.abstained else "",
        ]
        return [*cells, printable(decision.rationale or "")] if self._rationale else cells


def bar(share: float) -> str:
    """A share of 1 as a bar of `BAR_CELLS` cells, to an eighth of a cell."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_CELLS * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(BAR_CELLS)


def _more_probable(decision: Decision) -> str | None:
    """The most probable label with its probability, where a policy of costs or rounding up gave another one."""
    if decision.label is None:
        return None
    best = max(decision.probabilities, key=decision.probabilities.__getitem__)
    if decision.probabilities[best] <= decision.probabilities[decision.label]:
        return None
    return f"{_shown(best)} {_percent(decision.probabilities[best])}"


def _why(decision: Decision) -> str:
    reason = printable(decision.reason or "no reason given")
    return f"{reason} (the end of the note did not fit and was not read)" if decision.truncated else reason


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if 0.01 <= share <= 0.99 else f"{100 * share:.1f} %"


def _shown(label: str) -> str:
    return printable(label)


def _styled(text: str, **style: Any) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)
