"""Temperatures fitted on a bundle's own scores."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convert.commands.options import FILE


@click.command(name="calibrate")
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--data", "files", type=FILE, multiple=True, help="JSON Lines with `text` and `label`.")
@click.option(
    "--setting",
    "settings",
    type=(str, FILE),
    multiple=True,
    metavar="NAME FILE",
    help="The same, from a setting that gets a temperature of its own if that helps on held-out rows.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="For `--calibration`.")
@click.option("--force", is_flag=True, help="Replace the calibration that stands at the output.")
def command(
    bundle: Path, files: tuple[Path, ...], settings: tuple[tuple[str, Path], ...], output: Path, force: bool
) -> None:
    """Fits BUNDLE's temperatures on labelled rows, on its own quantized scores."""
    if not files and not settings:
        raise click.UsageError("give labelled rows with --data or --setting")
    from convert.errors import ConversionError
    from convert.extras import is_calibration
    from convert.output import check_output, put_in_place, workspace
    from r2d_edge.decide import load
    from r2d_edge.fitting import fit

    data = [*files, *(file for _, file in settings)]
    reasons = check_output(output, [bundle, *data], what="calibration", replaceable=is_calibration, force=force)
    if reasons:
        raise ConversionError(reasons, "the calibration cannot be written")
    found = fit(load(bundle), data, [*(None for _ in files), *(name for name, _ in settings)])
    fitted = vars(found.calibration)
    with workspace(output) as work:
        draft = work / "calibration.json"
        draft.write_text(json.dumps(fitted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        put_in_place(draft, output, work)
    click.echo(json.dumps({**fitted, "held_out": found.held_out}, ensure_ascii=False))
