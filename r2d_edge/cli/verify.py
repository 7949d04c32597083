"""`r2d-edge verify`: is a bundle what its manifest says, and does it still compute the same here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2d_edge.cli import GATE_FAILED, options, say

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle


@click.command(name="verify")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--rescore", is_flag=True, help="Also score the golden inputs and compare; exit code 5 if they differ.")
@click.option("--public-key", metavar="KEY", help="Also check who signed it: a minisign public key or its file.")
@click.option("--signature", metavar="FILE", help="Where the signature lies.  [default: BUNDLE.minisig]")
@options.output_format(("text", "json"), piped="json")
@options.engine
@click.pass_context
def command(
    context: click.Context,
    bundle: str,
    rescore: bool,
    public_key: str | None,
    signature: str | None,
    format_: str,
    device: str,
    compute_type: str,
    threads: int,
    workers: int,
) -> None:
    """Checks BUNDLE (a folder, a .zip, or an embedded model's name) before any engine opens a file of it."""
    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions
    from r2d_edge.integrity.golden import rescore as rescore_golden
    from r2d_edge.integrity.trial import try_loading

    if signature is not None and public_key is None:
        raise click.UsageError("--signature says nothing without --public-key")
    opened, path = open_named(bundle)
    report: dict[str, Any] = {
        "bundle": opened.label,
        "digest": opened.digest,
        "files": {name: dict(entry) for name, entry in sorted(opened.manifest.files.items())},
    }
    if public_key is not None:
        report["signature"] = _check_signature(opened, path, public_key, signature)
    passed = True
    if rescore:
        options_ = EngineOptions(device, compute_type, threads, workers)
        try_loading(opened, options_)
        check = rescore_golden(Decider(opened, options_))
        report["rescore"], passed = check.to_json(), check.passed
    if format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(report))
    else:
        _print(report)
    if not passed:
        from r2d_edge.integrity.golden import in_words

        advice = ": do not use this bundle here"
        if report["rescore"]["nothing_to_compare"]:
            advice = "; whether this bundle computes here what it should is not known"
        say(in_words(report["rescore"]) + advice)
        context.exit(GATE_FAILED)


def open_named(name: str) -> tuple[Bundle, Path]:
    """A checked bundle, and the folder or the .zip that its signature lies beside."""
    from r2d_edge.catalogue import SHORT_NAMES, model_names, open_model

    bundle = open_model(name)
    archive = Path(name)
    is_shipped = SHORT_NAMES.get(name, name) in model_names()
    return bundle, archive if archive.is_file() and not is_shipped else bundle.root


def _check_signature(opened: Bundle, path: Path, public_key: str, signature: str | None) -> dict[str, str]:
    from r2d_edge.integrity import signing
    from r2d_edge.integrity.minisign import key_name

    key = signing.public_key(public_key)
    found = signing.verify_bundle(opened, key, Path(signature) if signature else signing.signature_file(path))
    return {"key": key_name(key.id), "trusted_comment": found.trusted_comment}


def _print(report: dict[str, Any]) -> None:
    from r2d_edge.rendering import printable

    click.echo(printable(report["bundle"]))
    click.echo(f"sha256 of the manifest  {report['digest']}")
    width = max(len(str(entry["size"])) for entry in report["files"].values())
    for name, entry in report["files"].items():
        click.echo(f"  {entry['sha256']}  {entry['size']:>{width}}  {printable(name)}")
    if "rescore" in report:
        from r2d_edge.integrity.golden import in_words

        click.echo(f"{report['rescore']['rows']} golden inputs scored: {in_words(report['rescore'])}")
    if "signature" in report:
        found = report["signature"]
        click.echo(f"signed with key {found['key']}: {printable(found['trusted_comment'])}")
    click.echo("every file is as the manifest says")
