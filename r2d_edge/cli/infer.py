"""`r2d-edge infer`: notes in, decisions out."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import click

from r2d_edge.cli import ROWS_FAILED, options, say

if TYPE_CHECKING:
    from r2d_edge.audit import AuditLog
    from r2d_edge.decide import Decider
    from r2d_edge.decision import Decision
    from r2d_edge.inputs import BadRow, Note
    from r2d_edge.rendering import DecisionWriter

Format = Literal["text", "json", "jsonl", "csv"]


@click.command(name="infer")
@click.argument("note", nargs=-1)
@click.option("--file", "file", metavar="PATH", help="Read from a file instead; - is stdin.")
@click.option(
    "--input-format",
    type=click.Choice(("text", "jsonl", "csv")),
    default="text",
    show_default=True,
    help="One note as text, or a note a row.",
)
@click.option("--text-column", default="text", show_default=True, metavar="NAME", help="Where a row's note stands.")
@click.option("--id-column", default="id", show_default=True, metavar="NAME", help="Where a row's id stands.")
@options.model
@options.output_format(("text", "json", "jsonl", "csv"), piped="jsonl")
@click.option("--rationale/--no-rationale", default=True, help="Whether to write a rationale.  [default: yes]")
@click.option("--check", is_flag=True, help="Say whether the rationale alone leads to the same label.")
@options.engine
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Notes at a time.")
@click.option(
    "--setting", metavar="NAME", help="Where the notes come from, as the bundle's calibration names it (see `info`)."
)
@click.option(
    "--audit", metavar="FILE", help="Append what was decided to a hash-chained log, without the notes (see `audit`)."
)
@click.option("--beam-size", type=click.IntRange(1, 1000), help="For rationales; default: the bundle's own.")
@click.pass_context
def command(
    context: click.Context,
    note: tuple[str, ...],
    file: str | None,
    input_format: str,
    text_column: str,
    id_column: str,
    model: str | None,
    format_: Format,
    rationale: bool,
    check: bool,
    device: str,
    compute_type: str,
    threads: int,
    workers: int,
    batch_size: int,
    setting: str | None,
    audit: str | None,
    beam_size: int | None,
) -> None:
    """Decides NOTE, or the notes of a file or of stdin.

    NOTE is the text itself, in quotation marks. Without NOTE and --file, stdin is read. An abstention
    is a result, not an error. Decision support for clinicians, not a medical device.
    """
    _check_usage(note, file, input_format)
    if check and not rationale:
        raise click.UsageError("--check needs the rationale: leave --no-rationale out")
    # From here on the work is meant, and is worth its imports.
    from r2d_edge.decide import load
    from r2d_edge.delimited import read_csv
    from r2d_edge.engines import EngineOptions
    from r2d_edge.errors import InputError
    from r2d_edge.inputs import Columns, open_notes, read_jsonl, read_text

    with ExitStack() as resources:
        stream: BinaryIO = io.BytesIO()
        name = "stdin"
        if file not in (None, "-"):
            name = str(file)
            stream = resources.enter_context(open_notes(name))
        elif not note:
            stream = sys.stdin.buffer
        # A note that cannot be read is known before a model is loaded.
        text = (note[0] if note else read_text(stream, name)) if input_format == "text" else None

        decider = load(model, EngineOptions(device, compute_type, threads, workers), setting=setting)
        if beam_size is not None:
            manifest = decider.bundle.manifest
            decider.bundle.manifest = replace(manifest, decoding=replace(manifest.decoding, beam_size=beam_size))
        if check and not decider.task.explains:
            raise InputError(f"--check needs rationales, and {decider.bundle.label} writes none")
        rationale = rationale and decider.task.explains
        log = None
        if audit is not None:
            from r2d_edge.audit import AuditLog

            log = AuditLog(audit, decider.bundle.digest)

        if text is not None:
            _decide_one(decider, text, format_, rationale=rationale, check=check, log=log)
            return
        read = read_jsonl if input_format == "jsonl" else read_csv
        rows = read(stream, name, Columns(text_column, id_column))
        size = batch_size * workers
        failed = _decide_rows(
            decider, rows, stream, format_, rationale=rationale, check=check, batch_size=size, log=log
        )
    if failed:
        say(f"{failed} of the rows could not be read; the others are decided")
        context.exit(ROWS_FAILED)


def _check_usage(note: tuple[str, ...], file: str | None, input_format: str) -> None:
    if len(note) > 1:
        raise click.UsageError(f"one note at a time, in quotation marks ({len(note)} arguments given)")
    if note and file is not None:
        raise click.UsageError("give either NOTE or --file, not both")
    if note and input_format != "text":
        raise click.UsageError(f"--input-format {input_format} reads rows from --file or stdin, not from NOTE")
    if note and _is_file(note[0]):
        raise click.UsageError("NOTE is the text itself, and a file has this name; use --file to read it")
    if not note and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("no note: give one in quotation marks, or --file PATH, or pipe one in")


def _is_file(note: str) -> bool:
    try:
        return not re.search(r"\s", note) and Path(note).is_file()
    except (OSError, ValueError):  # too long for a name, or characters that no name has
        return False


def _decide_one(
    decider: Decider, text: str, format_: Format, *, rationale: bool, check: bool, log: AuditLog | None
) -> None:
    if format_ != "text":
        writer = _writer(decider, format_, single=True, rationale=rationale)
        decision = decider.decide(text, rationale=rationale, check=check)
        if log is not None:
            log.record([(text, decision)])
        writer.write(decision)
        writer.close()
        return
    from r2d_edge.cli.terminal import NoteView

    view = NoteView(decider.bundle.manifest.task.labels.labels, rationale=rationale)
    try:
        decision = decider.decide(text, rationale=rationale, check=check, on_label=view.label, on_token=view.token)
        if log is not None:
            log.record([(text, decision)])
    except BaseException:
        view.break_off()
        raise
    view.close(decision)


def _decide_rows(
    decider: Decider,
    rows: Iterable[Note | BadRow],
    stream: BinaryIO,
    format_: Format,
    *,
    rationale: bool,
    check: bool,
    batch_size: int,
    log: AuditLog | None,
) -> int:
    """Decides rows in their order, a batch at a time, and gives the number of those that are bad.

    With a log, a batch is in it before any of its decisions is shown.
    """
    from r2d_edge.cli.progress import Progress

    writer = _writer(decider, format_, single=False, rationale=rationale)
    failed = 0
    with Progress(stream, shown=sys.stderr.isatty() and (format_ == "text" or not sys.stdout.isatty())) as progress:
        try:
            for notes, bad in _batches(rows, batch_size):
                for row in bad:
                    progress.say(f"line {row.line}: {row.reason}")
                failed += len(bad)
                texts, ids = [note.text for note in notes], [note.id for note in notes]
                decided: Iterable[Decision] = decider.decide_many(
                    texts, ids=ids, rationale=rationale, check=check, batch_size=batch_size
                )
                if log is not None:
                    decided = list(decided)
                    log.record(zip(texts, decided, strict=True))
                for decision in decided:
                    writer.write(decision)
                    progress.advance()
        except BrokenPipeError:
            raise
        except BaseException:
            writer.close()  # what is decided stays valid output, whatever stopped the rest
            raise
    writer.close()
    return failed


def _batches(rows: Iterable[Note | BadRow], size: int) -> Iterator[tuple[list[Note], list[BadRow]]]:
    from r2d_edge.inputs import BadRow

    notes: list[Note] = []
    bad: list[BadRow] = []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            notes.append(row)
        if len(notes) + len(bad) == size:
            yield notes, bad
            notes, bad = [], []
    if notes or bad:
        yield notes, bad


def _writer(decider: Decider, format_: Format, *, single: bool, rationale: bool) -> DecisionWriter:
    from r2d_edge.rendering import CsvWriter, JsonLinesWriter, JsonWriter

    if format_ == "json":
        return JsonWriter(sys.stdout, single=single)
    if format_ == "csv":
        return CsvWriter(sys.stdout, decider.bundle.manifest.task.labels.labels, terminal=sys.stdout.isatty())
    if format_ == "text":
        from r2d_edge.cli.terminal import TableWriter

        return TableWriter(rationale=rationale)
    return JsonLinesWriter(sys.stdout)
