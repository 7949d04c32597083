"""`r2d-edge batch`: files of notes in, one file of decisions out; what stops it loses nothing."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2d_edge.cli import INTERRUPTED, ROWS_FAILED, TERMINATED, Terminated, options, say

if TYPE_CHECKING:
    from r2d_edge.batch.job import Summary
    from r2d_edge.batch.run import Progress
    from r2d_edge.batch.tuning import Plan
    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions

_SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_SHOWN_LABELS = 6  # of an open label set


@click.command(name="batch")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, metavar="PATH", help="The file of decisions.")
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Where the work is done: here, or on a Ray cluster (see above).",
)
@click.option("--format", "format_", type=click.Choice(("jsonl", "csv", "parquet")), help="Default: by PATH's ending.")
@click.option(
    "--input-format",
    type=click.Choice(("jsonl", "csv", "parquet", "text")),
    help="Default: by each INPUT's ending; JSON Lines for stdin.",
)
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Where a row's note stands.")
@click.option("--id-column", default="id", show_default=True, metavar="NAME", help="Where a row's id stands.")
@click.option("--delimiter", metavar="SIGN", help="Of CSV; 'tab' for a tab.  [default: found in the first row]")
@click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Only rows with this value; may be repeated.")
@options.model
@click.option("--rationale/--no-rationale", default=True, help="Whether to write rationales.  [default: yes]")
@click.option("--check", is_flag=True, help="Say whether the rationale alone leads to the same label.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@click.option("--force", is_flag=True, help="Replace PATH, or a journal made with something else.")
@click.option("--excel-bom", is_flag=True, help="Begin CSV with the mark by which Excel knows UTF-8.")
@options.tuned_engine
@click.option(
    "--tune/--no-tune",
    default=True,
    help="Measure once how many workers and threads are fastest here, if the input is large.  [default: yes]",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 1024), help="Notes at a time.  [default: 64; for labels alone 256]"
)
@click.option(
    "--setting", metavar="NAME", help="Where the notes come from, as the bundle's calibration names it (see `info`)."
)
@click.option("--beam-size", type=click.IntRange(1, 1000), help="For rationales; default: the bundle's own.")
@click.option(
    "--audit",
    metavar="FILE",
    help="Append each row, once, to a hash-chained log, without the notes (see `audit`), when its window of 1,024 rows "
    "is done. A run that goes on appends what is missing.",
)
@click.pass_context
def command(
    context: click.Context,
    inputs: tuple[str, ...],
    output: str,
    engine: str,
    format_: str | None,
    input_format: str | None,
    text_column: str,
    id_column: str,
    delimiter: str | None,
    where: tuple[str, ...],
    model: str | None,
    rationale: bool,
    check: bool,
    strict: bool,
    force: bool,
    excel_bom: bool,
    device: str,
    compute_type: str,
    threads: int,
    workers: int | None,
    tune: bool,
    batch_size: int | None,
    setting: str | None,
    beam_size: int | None,
    audit: str | None,
) -> None:
    """Decides the notes of every INPUT: JSON Lines, CSV, Parquet, a folder of .txt files, or - for stdin.

    PATH appears whole when all is done. Whatever stops the work before, the same command goes on where it stopped
    and ends with the same bytes: what is decided is kept in PATH.journal. Bad rows go to PATH.rejected.jsonl, and
    the exit code is 4. A note that stands in more than one near row is decided once. Workers, threads and the kind of
    processor may show in a score's last digits: a job goes on with those that it was begun with, or not at all.

    With --engine ray (pip install "r2d-edge[ray]") the cluster that RAY_ADDRESS names does the work, or one that is
    started here for it. INPUT and PATH are files and folders that all its machines reach, by path or URI (s3://...);
    each machine needs the same model, and --workers says how many processes load it, each for one thread unless
    --threads says more (and for a GPU of its own with --device cuda). PATH becomes a folder: parts in the input's
    order, and _SUCCESS when all is done. Bad rows go to the folder PATH.rejected, their lines counted in their own
    file as ever. Notes of a worker that dies are decided again, but there is no journal: a run that is stopped leaves
    nothing and begins anew, and --force removes what stands at PATH when it begins. Ray opens network sockets, and
    keeps notes in shared memory and, where that is full, on the disk.
    """
    delimiter = "\t" if delimiter == "tab" else delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        raise click.UsageError("--delimiter takes one sign, or 'tab'")
    if inputs.count("-") > 1:
        raise click.UsageError("stdin can be read only once")
    chosen = format_ or _SUFFIXES.get(Path(output).suffix.lower())
    if chosen is None:
        raise click.UsageError("the format is not told by the ending of --output: say it with --format")
    if check and not rationale:
        raise click.UsageError("--check needs the rationale: leave --no-rationale out")
    if excel_bom and chosen != "csv":
        raise click.UsageError("--excel-bom is for CSV")
    from r2d_edge.batch.job import JOURNAL, LABELS_AT_ONCE, NOTES_AT_ONCE, Job
    from r2d_edge.inputs import Columns
    from r2d_edge.tables import Reading, where_of

    try:
        wanted = where_of(where)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    reading = Reading(Columns(text_column, id_column), input_format, delimiter, wanted)
    batch_size = batch_size or (NOTES_AT_ONCE if rationale else LABELS_AT_ONCE)
    context.params["batch_size"] = batch_size
    if engine == "ray":
        from r2d_edge.cli.on_ray import decide_on_ray

        summary = decide_on_ray(context, reading, chosen)
        _close(summary, Path(output))
        if summary.rejected:
            say(f"{summary.rejected} rows could not be read: see {output.rstrip('/')}.rejected")
            context.exit(ROWS_FAILED)
        return
    # From here on the work is meant, and is worth its imports.
    from r2d_edge.batch.run import run_batch
    from r2d_edge.batch.stops import Stops
    from r2d_edge.decide import load
    from r2d_edge.engines import EngineOptions

    machine = EngineOptions(device, compute_type, threads, workers or 1)
    if workers is None and not threads:
        job = Job(inputs, Path(output))
        # Not for a run that will be refused in a moment.
        there = all(name == "-" or Path(name).exists() for name in inputs)
        tune = tune and there and (force or not job.output.exists())
        plan = _plan(inputs, job.beside(JOURNAL), model, machine, rationale=rationale, tune=tune)
        machine = replace(machine, workers=plan.workers, threads=plan.threads)
    job = Job(
        inputs=inputs,
        output=Path(output),
        format=chosen,
        reading=reading,
        rationale=rationale,
        check=check,
        batch_size=batch_size * machine.workers,
        excel_bom=excel_bom,
        strict=strict,
        force=force,
        options=(("workers", machine.workers), ("setting", setting), ("beam size", beam_size)),
        audit=Path(audit) if audit is not None else None,
    )

    def open_decider() -> Decider:
        decider = load(model, machine, setting=setting)
        if beam_size is not None:
            manifest = decider.bundle.manifest
            decider.bundle.manifest = replace(manifest, decoding=replace(manifest.decoding, beam_size=beam_size))
        return decider

    stops = Stops({signal.SIGINT: (KeyboardInterrupt, INTERRUPTED), signal.SIGTERM: (Terminated, TERMINATED)})
    with stops, _Bar(shown=sys.stderr.isatty()) as bar:
        summary = run_batch(job, open_decider, stops=stops, on_progress=bar.show)
    _close(summary, job.output)
    if summary.rejected:
        say(f"{summary.rejected} rows could not be read: see {job.beside('.rejected.jsonl')}")
        context.exit(ROWS_FAILED)


def _plan(
    inputs: tuple[str, ...], journal: Path, model: str | None, options: EngineOptions, *, rationale: bool, tune: bool
) -> Plan:
    """How many workers and threads: as the job was begun, as measured here, or by the rule; said where measured."""
    from r2d_edge.batch.tuning import Plan, choose_plan, input_bytes, plan_of_journal
    from r2d_edge.catalogue import open_model
    from r2d_edge.decide import load

    bundle = open_model(model)
    if begun := plan_of_journal(journal, bundle.digest):
        return begun
    plan = None
    if tune:
        plan = choose_plan(
            bundle,
            options,
            lambda trial: load(model, trial),
            rationale=rationale,
            size=input_bytes(inputs),
            tell=say,
        )
    if plan is None:
        return Plan()
    say(f"{plan}: {plan.why}")
    return plan


class _Bar:
    """Throughput, time left, label mix and abstentions on stderr; nothing where it is not shown."""

    def __init__(self, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(bar_width=20),
                progress.TextColumn("{task.fields[notes]:,} notes"),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[mix]}"),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, now: Progress) -> None:
        """Where the work stands; the bar appears with the first notes."""
        if self._bar is None:
            return
        from rich.markup import escape

        from r2d_edge.rendering import printable

        mix = ", ".join(f"{label} {count}" for label, count in now.labels.most_common(_SHOWN_LABELS))
        shown = {
            "notes": now.notes,
            "rate": f"{now.rate:,.0f}/s" if now.rate else "",
            "mix": escape(printable(f"{mix}; abstained {now.abstained}" if mix else "")),
        }
        if not self._bar.task_ids:
            self._bar.add_task("", total=None, **shown)
            self._bar.start()
        total = None if now.share is None else 1.0
        self._bar.update(self._bar.task_ids[0], total=total, completed=now.share or 0.0, **shown)


def _close(summary: Summary, output: Path) -> None:
    """The closing table on stderr."""
    from rich.console import Console
    from rich.table import Table

    from r2d_edge.rendering import printable

    if summary.torn:
        say(f"{summary.torn} bytes at the journal's end were torn or damaged; what they held was decided again")
    if summary.already_done:
        say(f"{output} was finished by an earlier run; nothing was left to do")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()

    def row(name: str, count: int, of: int = 0) -> None:
        table.add_row(printable(name), f"{count:,}", f"{100 * count / of:.1f} %" if of else "")

    row("notes", summary.notes)
    for label, count in summary.labels.most_common(None if len(summary.labels) < 20 else 20):
        row(f"  {label}", count, summary.notes)
    for reason, count in summary.abstained.most_common():
        row(f"abstained: {reason}", count, summary.notes)
    row("rows rejected", summary.rejected)
    if summary.kept:
        row("texts decided by earlier runs", summary.kept)
    if summary.decided_now:
        row("texts decided now", summary.decided_now)
        table.add_row("seconds", f"{summary.seconds:,.1f}", "")
        table.add_row("texts a second", f"{summary.decided_now / summary.seconds:,.1f}", "")
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(table)
