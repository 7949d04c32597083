"""What several commands share: options, and how a result and a step are told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from convert.bundling import ConversionResult
    from convert.extras import ConversionOptions

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

Command = TypeVar("Command", bound=Callable[..., Any])

TOLD = (
    click.option("--name", help="The bundle's name.  [default: the checkpoint folder's]"),
    click.option("--version", default="0.1.0", show_default=True, help="The bundle's version."),
    click.option("--task", type=FILE, help="Labels, prompts and limits.  [default: the checkpoint's r2d_task.json]"),
    click.option(
        "--golden",
        type=FILE,
        help="JSON Lines with `text`: the rows of the proof. They become part of the bundle: no patients' notes. "
        "[default: the checkpoint's golden.jsonl, else built-in notes]",
    ),
    click.option(
        "--bound", type=float, help="Allowed difference of label log-probabilities, in nats.  [default: by type]"
    ),
    click.option("--token-bound", type=float, help="The same of next-token log-probabilities.  [default: by type]"),
    click.option("--calibration", type=FILE, help="JSON with temperature, abstain_below and source."),
    click.option("--metrics", type=FILE, help="JSON with measured figures, for the manifest."),
    click.option("--card", type=FILE, help="The model card.  [default: a plain one is generated]"),
    click.option("--licence", help="The model's licence, as an SPDX expression."),
    click.option("--beam-size", type=click.IntRange(1), default=1, show_default=True, help="For rationales."),
    click.option("--repetition-penalty", type=click.FloatRange(1.0), default=1.0, show_default=True),
    click.option("--no-repeat-ngram", type=click.IntRange(0), default=0, show_default=True),
    click.option("--only-numbers-of-the-note", is_flag=True, help="Sentences with other numbers are written anew."),
)


def told(command: Command) -> Command:
    """The options of every export: what travels in the bundle, how it is proven, how it writes."""
    for option in reversed(TOLD):
        command = option(command)
    return command


def conversion_options(
    *, beam_size: int, repetition_penalty: float, no_repeat_ngram: int, only_numbers_of_the_note: bool, **rest: Any
) -> ConversionOptions:
    """What `told` and a command's own options of the same names were given."""
    from convert.extras import ConversionOptions
    from r2d_edge.bundle import Decoding

    decoding = Decoding(beam_size, repetition_penalty, no_repeat_ngram, only_numbers_of_the_note)
    return ConversionOptions(decoding=decoding, **rest)


def show(result: ConversionResult) -> None:
    """A table for a terminal, one line of JSON for a pipe."""
    if not sys.stdout.isatty():
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    parity = result.parity
    for key, value in (
        ("bundle", f"{result.output}  ({result.name} {result.version})"),
        ("size", f"{result.size / 1e6:.1f} MB"),
        ("compute type", result.compute_type),
        (
            "parity",
            f"labels {parity.labels.value:.2g} nats (allowed {parity.bound.labels:g}), "
            f"tokens {parity.tokens.value:.2g} "
            f"(allowed {parity.bound.tokens:g}), same label on {parity.same_label} of {parity.rows} rows",
        ),
        ("sha256", result.digest),
    ):
        table.add_row(f"[bold]{key}[/]", value)
    Console().print(table)


def tell(step: str) -> None:
    """A step of long work, for the person who waits."""
    click.echo(step, err=True)


def quiet_transformers() -> None:
    """Keeps transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
