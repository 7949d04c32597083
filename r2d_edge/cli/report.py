"""`r2d-edge report`: what a candidate model costs against its reference, held against a gate."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from r2d_edge.cli import GATE_FAILED, PROGRAM, WRONG_USAGE, say

_ARGUMENTS = "r2d_edge.cli.report.arguments"


class _Command(click.Command):
    """Keeps the arguments as they were typed: the report holds the command that made it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


@click.command(name="report", cls=_Command)
@click.option("--reference", required=True, metavar="A", help="What is trusted: a bundle, checkpoint or decisions.")
@click.option("--candidate", required=True, metavar="B", help="What is to replace it.")
@click.option(
    "--data", required=True, multiple=True, metavar="FILE", help="Labelled rows, .jsonl or .csv; may be repeated."
)
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder for report.json and report.html.")
@click.option("--force", is_flag=True, help="Replace an earlier report.")
@click.option("--gate", metavar="FILE", help="Limits as .toml or .json.  [default: see below]")
@click.option("--require-certified", is_flag=True, help="Exit code 5 too where the rows are too few to certify.")
@click.option("--source", metavar="NAME", help="Whose rationales in the data are the gold ones.")
@click.option("--no-rationales", is_flag=True, help="Compare labels alone.")
@click.option("--bertscore", metavar="FOLDER", help="An encoder's folder; BERTScore is worked out with it.")
@click.option(
    "--show-texts", is_flag=True, help="Put the notes of the worst rows into the report. They may be private."
)
@click.option("--labels", metavar="A,B,...", help="For two files of decisions: the labels, most severe first.")
@click.option("--setting", metavar="NAME", help="Where the notes come from, as a bundle's calibration names it.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Compare only N rows, drawn with the seed.")
@click.option("--resamples", type=click.IntRange(100, 1_000_000), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads.  [default: chosen, see `info`]")
@click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True)
@click.pass_context
def command(
    context: click.Context,
    reference: str,
    candidate: str,
    data: tuple[str, ...],
    output: str,
    force: bool,
    gate: str | None,
    require_certified: bool,
    source: str | None,
    no_rationales: bool,
    bertscore: str | None,
    show_texts: bool,
    labels: str | None,
    setting: str | None,
    limit: int | None,
    resamples: int,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Compares a candidate model with its reference on labelled notes.

    A and B are bundles (name, folder or .zip), checkpoint folders (these need torch), or .jsonl files of decisions
    as `infer` writes them. Each row of the data has a text and a label, and may have an id and rationales.

    The gate's limits, as shares: flips 0.01, net_under_triage 0.005, macro_f1_loss 0.01, ece_increase 0.02. A limit
    counts as kept only where its bound at 95 % confidence is within it. Exit code 5: a limit is broken, or with
    --require-certified not shown to be kept.
    """
    from r2d_edge.engines import EngineOptions
    from r2d_edge.errors import InputError
    from r2d_edge.rendering import json_text
    from r2d_edge.report.compare import ReportOptions, make_report
    from r2d_edge.report.gate import Gate, read_gate
    from r2d_edge.report.output import HTML, JSON, check_output, write_report
    from r2d_edge.report.sides import MismatchError

    folder = Path(output)
    sources = [Path(name) for name in (*data, reference, candidate, gate, bertscore) if name]
    check_output(folder, sources, force=force)  # what cannot be written is known before any work
    if bertscore is not None and not (Path(bertscore) / "config.json").is_file():
        raise InputError(f"{bertscore} is not an encoder's folder: it holds no config.json")
    options = ReportOptions(
        gate=read_gate(Path(gate)) if gate is not None else Gate(),
        source=source,
        rationales=not no_rationales,
        bertscore=Path(bertscore) if bertscore is not None else None,
        show_texts=show_texts,
        limit=limit,
        resamples=resamples,
        seed=seed,
        setting=setting,
        labels=tuple(name.strip() for name in labels.split(",")) if labels is not None else None,
    )
    with _Progress(shown=sys.stderr.isatty()) as progress:
        try:
            report = make_report(
                reference,
                candidate,
                [Path(name) for name in data],
                options,
                EngineOptions(device=device, threads=threads),
                command=shlex.join([PROGRAM, "report", *context.meta[_ARGUMENTS]]),
                on_step=progress.step,
            )
        except MismatchError as error:
            say(f"{error}; see `{context.command_path} --help`")
            context.exit(WRONG_USAGE)
    from r2d_edge.report.page import html

    write_report(folder, {JSON: json_text(report, indent=2) + "\n", HTML: html(report)})
    _show(report)
    verdict = report["verdict"]
    if not sys.stdout.isatty():
        click.echo(
            json_text({"passed": verdict["passed"], "summary": verdict["summary"], "report": str(folder / HTML)})
        )
    say(f"the report is at {folder / HTML}")
    if verdict["passed"] is False or (verdict["passed"] is None and require_certified):
        context.exit(GATE_FAILED)


def _show(report: dict[str, Any]) -> None:
    """The table on stderr."""
    from rich.console import Console

    from r2d_edge.report.terminal import render

    console = Console(stderr=True)
    # A file has no width of its own.
    render(report, console if console.is_terminal else Console(stderr=True, width=100))


class _Progress(AbstractContextManager["_Progress"]):
    """A bar for each side on stderr; nothing where it is not shown."""

    def __init__(self, *, shown: bool) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        if shown:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()

    def step(self, side: str, done: int, total: int) -> None:
        """A side has decided so many of all rows."""
        if self._bar is not None:
            if side not in self._tasks:
                self._tasks[side] = self._bar.add_task(side, total=total)
            self._bar.update(self._tasks[side], completed=done)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
