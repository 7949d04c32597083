"""`r2d-edge doctor`: can this machine be trusted with this model."""

from __future__ import annotations

from typing import Any

import click

from r2d_edge.cli import FAILED, GATE_FAILED, REFUSED, options, say


@click.command(name="doctor")
@options.model
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@options.output_format(("text", "json"), piped="json")
@options.engine
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    as_json: bool,
    format_: str,
    device: str,
    compute_type: str,
    threads: int,
    workers: int,
) -> None:
    """Examines this machine and a model on it.

    Shows the processor, its instruction sets, engines and versions, checks the model's files, and scores its golden
    inputs: kernels differ between processors, and a model whose scores differ by more than it was accepted with is
    not to be used here (exit code 5). A refused bundle is exit code 3.
    """
    from r2d_edge.engines import EngineOptions
    from r2d_edge.errors import BundleError
    from r2d_edge.integrity.doctor import examine

    findings = examine(model, EngineOptions(device, compute_type, threads, workers))
    report = findings.to_json()
    if as_json or format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(report))
    else:
        _print(report)
    if findings.refusal is not None:
        say(str(findings.refusal))
        context.exit(REFUSED if isinstance(findings.refusal, BundleError) else FAILED)
    if not findings.golden_passed:
        from r2d_edge.integrity.golden import in_words

        advice = ": do not use this model here; another --compute-type may compute what it should"
        if report["golden"]["nothing_to_compare"]:
            advice = "; whether this model computes here what it should is not known"
        say(in_words(report["golden"]) + advice)
        context.exit(GATE_FAILED)


def _print(report: dict[str, Any]) -> None:
    from r2d_edge.rendering import printable

    for section, entries in report.items():
        if not isinstance(entries, dict):
            click.echo(f"{section}: {printable(in_words(entries))}")
            continue
        click.echo(section)
        width = max(map(len, entries))
        for name, value in entries.items():
            click.echo(f"  {name:<{width}}  {printable(in_words(value))}")


def in_words(value: Any) -> str:
    """A JSON-ready value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(in_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
