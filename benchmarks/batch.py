"""`python -m benchmarks.batch`: that `r2d-edge batch` loses nothing, and what it costs beside the engine alone."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from benchmarks import batch_figures, batch_kills, machine
from benchmarks.batch_notes import corpus, repeated, write_notes
from benchmarks.process import SideError
from r2d_edge.bundle import Bundle
from r2d_edge.catalogue import open_model

SCHEMA = 1
OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.group(help="That `r2d-edge batch` loses nothing, and what it costs beside the engine alone.")
def main() -> None:
    """The command line of this module."""


@main.command()
@click.option("--kills", default=20, show_default=True, type=click.IntRange(1), help="Of a living process.")
@click.option("--notes", default=5000, show_default=True, type=click.IntRange(1), help="Rows, each with its own id.")
@click.option("--texts", default=640, show_default=True, type=click.IntRange(1), help="Different notes among them.")
@click.option("--rationale/--no-rationale", default=True, help="Whether to write rationales.  [default: yes]")
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1, 1024), help="Notes at a time.")
@click.option("--seed", default=5, show_default=True)
@click.option("--model", metavar="MODEL", help="As for `r2d-edge batch`.")
@click.option("-o", "--output", type=OUTPUT, help="JSON file to write.")
def kills(
    kills: int,
    notes: int,
    texts: int,
    rationale: bool,
    batch_size: int,
    seed: int,
    model: str | None,
    output: Path | None,
) -> None:
    """Kills a run again and again and compares its output with an uninterrupted run's; exit code 1 if it differs.

    Every other kill (SIGKILL) comes at a random moment, the others within a random write, fsync or rename.
    """
    texts = min(texts, notes, len(corpus()))
    options = ["--threads", "1", "--batch-size", str(batch_size), *([] if rationale else ["--no-rationale"])]
    options += ["--model", model] if model else []
    bundle = open_model(model)
    with tempfile.TemporaryDirectory(prefix="r2d-edge-") as folder:
        source = Path(folder) / "notes.jsonl"
        write_notes(source, repeated(notes, texts))
        try:
            proof = batch_kills.prove(source, Path(folder), kills, seed, options, _tell)
        except SideError as error:
            raise click.ClickException(str(error)) from None
    result = {
        **_head("batch kills", bundle),
        "notes": notes,
        "texts": texts,
        "rationale": rationale,
        "batch_size": batch_size,
        "seed": seed,
        **batch_kills.report(proof),
    }
    _write(result, output)
    rows, audit = (", ".join(f"{count} {what}" for what, count in result[of].items()) for of in ("rows", "audit_log"))
    verdict = "byte-identical to" if proof.identical else "NOT the same as"
    click.echo(
        f"{proof.kills} kills of a run over {notes:,} notes ({proof.moments} at random moments, {proof.steps} within "
        f"steps on the disk): the output is {verdict} an uninterrupted run's; rows: {rows}; audit log: {audit}"
    )
    if not proof.holds:
        sys.exit(1)


@main.command()
@click.option("--notes", default=5000, show_default=True, type=click.IntRange(16), help="Of the file, labels alone.")
@click.option("--sample", default=256, show_default=True, type=click.IntRange(16), help="Of the file with rationales.")
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(20_000), help="For memory.")
@click.option("--finished", default=200_000, show_default=True, type=click.IntRange(5_000), help="For resuming.")
@click.option("--model", metavar="MODEL", help="As for `r2d-edge batch`.")
@click.option("--busy-ok", is_flag=True, help="Measure although something else uses the processor.")
@click.option("-o", "--output", type=OUTPUT, help="JSON file to write.")
def figures(
    notes: int, sample: int, rows: int, finished: int, model: str | None, busy_ok: bool, output: Path | None
) -> None:
    """Throughput beside the engine's own, memory at 10,000 rows and at many, and what resuming costs."""
    from r2d_edge.decide import load
    from r2d_edge.engines import EngineOptions

    try:
        busy = machine.refuse_if_busy(busy_ok)
    except machine.MachineBusyError as error:
        raise click.ClickException(str(error)) from None
    started = time.perf_counter()
    decider = load(model, EngineOptions(device="cpu", threads=1))
    with tempfile.TemporaryDirectory(prefix="r2d-edge-") as name:
        folder = Path(name)
        _tell(f"resume after {finished:,} rows")
        resumed = batch_figures.resume(decider, folder, finished)
        speeds = []
        for count, rationale in ((notes, False), (sample, True)):
            if decider.task.explains or not rationale:
                _tell(f"throughput, {count:,} notes{' with rationales' if rationale else ''}")
                speeds.append(batch_figures.throughput(decider, folder, count, rationale=rationale, tell=_tell))
        memory = []
        for count in (10_000, rows):
            _tell(f"memory, {count:,} rows")
            try:
                memory.append(batch_figures.peak_bytes(folder, count, ["--model", model] if model else []))
            except SideError as error:
                raise click.ClickException(str(error)) from None
    result = {
        **_head("batch", decider.bundle),
        "load": {"busy_cores_before": busy, "busy_ok": busy_ok},
        "throughput": speeds,
        "memory": memory,
        "resume": resumed,
    }
    result["figures"] = batch_figures.figures(result)
    result["seconds"] = time.perf_counter() - started
    result = batch_figures.rounded(result)
    for figure in result["figures"]:
        click.echo(
            f"{figure['name']}: {figure['value']:.3g} (to reach: {figure['target']}), "
            f"{'yes' if figure['reached'] else 'NO'}"
        )
    _write(result, output)


def _head(name: str, bundle: Bundle) -> dict[str, Any]:
    """What every result says of its origin."""
    return {
        "schema": SCHEMA,
        "benchmark": name,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": bundle.label,
        "machine": machine.describe(),
    }


def _tell(what: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {what}", err=True)


def _write(result: dict[str, Any], output: Path | None) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        output.write_text(text, encoding="utf-8", newline="\n")
        _tell(f"wrote {output}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.batch")
