"""Options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

COMPUTE_TYPES = (
    "default",
    "auto",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
)

model = click.option(
    "--model", metavar="MODEL", help="Bundle folder, bundle .zip, or an embedded model's name.  [default: triage-nano]"
)


def engine(command: Command) -> Command:
    """Adds what can be chosen about the machine: device, compute type, threads, workers."""
    workers = click.option(
        "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Batches at once."
    )
    threads = click.option(
        "--threads", type=click.IntRange(min=0), default=0, help="Threads a worker.  [default: chosen, see `info`]"
    )
    return _machine(command, workers, threads)


def tuned_engine(command: Command) -> Command:
    """The same for long work: workers are None, and threads 0, where they are to be measured."""
    workers = click.option("--workers", type=click.IntRange(min=1), help="Batches at once.  [default: measured once]")
    threads = click.option(
        "--threads", type=click.IntRange(min=0), default=0, help="Threads a worker.  [default: measured once]"
    )
    return _machine(command, workers, threads)


def _machine(command: Command, *counts: Callable[[Any], Any]) -> Command:
    for option in (
        *counts,
        click.option(
            "--compute-type",
            type=click.Choice(COMPUTE_TYPES),
            default="default",
            metavar="TYPE",
            help=f"One of {', '.join(COMPUTE_TYPES)}.  [default: the bundle's own]",
        ),
        click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True),
    ):
        command = option(command)
    return command


def output_format(choices: Sequence[str], *, piped: str) -> Callable[[Command], Command]:
    """Adds `--format`: text for a terminal, `piped` otherwise, or as chosen."""

    def chosen(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
        return value or ("text" if sys.stdout.isatty() else piped)

    return click.option(
        "--format",
        "format_",
        type=click.Choice(choices),
        callback=chosen,
        help=f"Default: text for a terminal, {piped} when piped.",
    )
