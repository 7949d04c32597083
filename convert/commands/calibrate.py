"""Temperatures fitted on a bundle's own scores."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convert.commands.options import FILE, fail
from r2d_edge.errors import R2DError


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
def command(bundle: Path, files: tuple[Path, ...], settings: tuple[tuple[str, Path], ...], output: Path) -> None:
    """Fits BUNDLE's temperatures on labelled rows, on its own quantized scores."""
    from r2d_edge.decide import load
    from r2d_edge.fitting import fit

    if not files and not settings:
        raise click.UsageError("give labelled rows with --data or --setting")
    try:
        found = fit(
            load(bundle),
            [*files, *(file for _, file in settings)],
            [*(None for _ in files), *(name for name, _ in settings)],
        )
    except R2DError as error:
        fail(error)
    fitted = vars(found.calibration)
    output.write_text(json.dumps(fitted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps({**fitted, "held_out": found.held_out}, ensure_ascii=False))
