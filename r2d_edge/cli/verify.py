"""`r2d-edge verify`: is a bundle what its manifest says, and does it still compute the same here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from r2d_edge.cli import GATE_FAILED, options, say

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle

DEFAULT_BOUND = 1e-2  # for a bundle whose manifest states none


@click.command(name="verify")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--rescore", is_flag=True, help="Also score the golden inputs and compare; exit code 5 if they differ.")
@options.output_format(("text", "json"), piped="json")
@options.engine
@click.pass_context
def command(
    context: click.Context,
    bundle: str,
    rescore: bool,
    format_: str,
    device: str,
    compute_type: str,
    threads: int,
    workers: int,
) -> None:
    """Checks BUNDLE (a folder, a .zip, or an embedded model's name) before any engine opens a file of it."""
    from r2d_edge.bundle import open_bundle
    from r2d_edge.decide import Decider, find_model
    from r2d_edge.engines import EngineOptions

    opened = open_bundle(find_model(bundle))
    report: dict[str, Any] = {
        "bundle": opened.label,
        "digest": opened.digest,
        "files": {name: dict(entry) for name, entry in sorted(opened.manifest.files.items())},
    }
    passed = True
    if rescore:
        options_ = EngineOptions(device, compute_type, threads, workers)
        report["rescore"] = _rescore(Decider(opened, options_).golden_differences(), _bound(opened))
        passed = report["rescore"]["passed"]
    if format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(report))
    else:
        _print(report)
    if not passed:
        worst, bound = report["rescore"]["worst"], report["rescore"]["bound"]
        say(f"golden label log-probabilities differ by {worst}, more than {bound}: do not use this bundle here")
        context.exit(GATE_FAILED)


def _bound(bundle: Bundle) -> float:
    """The greatest difference that the bundle was accepted with when it was made."""
    parity = bundle.manifest.extra.get("parity")
    bound = parity.get("bound") if isinstance(parity, dict) else None
    return float(bound) if isinstance(bound, (int, float)) and bound > 0 else DEFAULT_BOUND


def _rescore(differences: list[float], bound: float) -> dict[str, Any]:
    import math

    finite = [value for value in differences if math.isfinite(value)]
    whole = bool(differences) and len(finite) == len(differences)
    worst = max(finite) if whole else None
    return {
        "rows": len(differences),
        "worst": worst,
        "bound": bound,
        "passed": worst is not None and worst <= bound,
    }


def _print(report: dict[str, Any]) -> None:
    from r2d_edge.rendering import printable

    click.echo(printable(report["bundle"]))
    click.echo(f"sha256 of the manifest  {report['digest']}")
    width = max(len(str(entry["size"])) for entry in report["files"].values())
    for name, entry in report["files"].items():
        click.echo(f"  {entry['sha256']}  {entry['size']:>{width}}  {printable(name)}")
    if "rescore" in report:
        found = report["rescore"]
        click.echo(
            f"golden inputs: {found['rows']} scored, greatest difference {found['worst']}, bound {found['bound']}"
        )
    click.echo("every file is as the manifest says")
