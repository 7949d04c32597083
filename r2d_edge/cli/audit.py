"""`r2d-edge audit`: is an audit log what was written."""

from __future__ import annotations

from typing import Any

import click

from r2d_edge.cli import GATE_FAILED, options, say

SHOWN_FAULTS = 20


@click.group(name="audit")
def command() -> None:
    """Works on the log that `infer --audit FILE` writes."""


@command.command(name="verify")
@click.argument("file", metavar="FILE")
@click.option("--head", metavar="HASH", help="A head hash noted earlier: the log must still hold that line.")
@options.output_format(("text", "json"), piped="json")
@click.pass_context
def verify(context: click.Context, file: str, head: str | None, format_: str) -> None:
    """Checks FILE line by line; exit code 5 if it is not what was written.

    Found: lines that were edited, dropped, put in or moved, a torn end; lines cut off at the end if FILE.head or
    --head knows of them. Not found without --head: a log that was rewritten whole together with its head file. So
    note the head hash that this prints, where who can write the log cannot.
    """
    from r2d_edge.audit import verify_log

    check = verify_log(file, head)
    report: dict[str, Any] = {
        "lines": check.head.lines,
        "head": check.head.hash,
        "anchored_by": check.anchored_by,
        "faults": [vars(fault) for fault in check.faults],
        "sound": not check.faults,
    }
    if format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(report))
    else:
        click.echo(f"{check.head.lines} lines, head {check.head.hash}")
        click.echo(f"end held against: {', '.join(check.anchored_by) or 'nothing, so a cut end would not be seen'}")
    for fault in check.faults[:SHOWN_FAULTS]:
        say(f"line {fault.line}: {fault.what}")
    if len(check.faults) > SHOWN_FAULTS:
        say(f"and {len(check.faults) - SHOWN_FAULTS} more faults; --format json lists all")
    if check.faults:
        context.exit(GATE_FAILED)
