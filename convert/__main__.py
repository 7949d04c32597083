"""`python -m convert`: thin commands over functions that can be called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from convert.errors import ParityError
from r2d_edge.errors import BundleError, R2DError

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_bfloat16", "bfloat16")
EXIT_FAILED = 1
EXIT_REFUSED = 3
EXIT_GATE = 5
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def main() -> None:
    """Converts checkpoints to bundles."""


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="int8", show_default=True)
@click.option("--name", help="The bundle's name.  [default: the checkpoint folder's]")
@click.option("--version", default="0.1.0", show_default=True, help="The bundle's version.")
@click.option("--task", type=_FILE, help="Labels, prompts and limits.  [default: the checkpoint's r2d_task.json]")
@click.option(
    "--golden",
    type=_FILE,
    help="JSON Lines with `text`: the rows of the proof. They become part of the bundle: no patients' notes. "
    "[default: the checkpoint's golden.jsonl, else built-in notes]",
)
@click.option("--bound", type=float, help="Allowed difference of label log-probabilities, in nats.  [default: by type]")
@click.option("--token-bound", type=float, help="The same of next-token log-probabilities.  [default: by type]")
@click.option("--calibration", type=_FILE, help="JSON with temperature, abstain_below and source.")
@click.option("--metrics", type=_FILE, help="JSON with measured figures, for the manifest.")
@click.option("--card", type=_FILE, help="The model card.  [default: a plain one is generated]")
@click.option("--licence", help="The model's licence, as an SPDX expression.")
@click.option("--beam-size", type=click.IntRange(1), default=1, show_default=True, help="For rationales.")
@click.option("--repetition-penalty", type=click.FloatRange(1.0), default=1.0, show_default=True)
@click.option("--no-repeat-ngram", type=click.IntRange(0), default=0, show_default=True)
@click.option("--zip", "as_zip", is_flag=True, help="Write one .zip file instead of a folder.")
@click.option("--force", is_flag=True, help="Replace the bundle that stands at the output.")
def ctranslate2(
    checkpoint: Path,
    output: Path,
    quantization: str,
    name: str | None,
    version: str,
    task: Path | None,
    golden: Path | None,
    bound: float | None,
    token_bound: float | None,
    calibration: Path | None,
    metrics: Path | None,
    card: Path | None,
    licence: str | None,
    beam_size: int,
    repetition_penalty: float,
    no_repeat_ngram: int,
    as_zip: bool,
    force: bool,
) -> None:
    """Exports CHECKPOINT (T5 family or BART-shaped) to CTranslate2 and proves the export."""
    from rich.console import Console

    from convert.bundling import ConversionOptions, convert_to_ctranslate2
    from r2d_edge.bundle import Decoding

    errors = Console(stderr=True)
    _quiet_transformers()
    options = ConversionOptions(
        quantization=quantization,
        name=name,
        version=version,
        task=task,
        golden=golden,
        bound=bound,
        token_bound=token_bound,
        calibration=calibration,
        metrics=metrics,
        card=card,
        licence=licence,
        decoding=Decoding(beam_size, repetition_penalty, no_repeat_ngram),
        as_zip=as_zip,
        force=force,
    )
    try:
        result = convert_to_ctranslate2(
            checkpoint, output, options, progress=lambda step: errors.print(step, style="dim", highlight=False)
        )
    except R2DError as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(EXIT_GATE if isinstance(error, ParityError) else EXIT_FAILED)
    if not sys.stdout.isatty():
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    parity = result.parity
    for key, value in (
        ("bundle", f"{result.output}  ({result.name} {result.version})"),
        ("size", f"{result.size / 1e6:.1f} MB"),
        ("compute type", result.compute_type),
        (
            "parity",
            f"labels {parity.labels.value:.2g} nats (allowed {parity.bound.labels:g}), "
            f"tokens {parity.tokens.value:.2g} "
            f"(allowed {parity.bound.tokens:g}), same label on {parity.same_label} of {parity.rows} rows",
        ),
        ("sha256", result.digest),
    ):
        table.add_row(f"[bold]{key}[/]", value)
    Console().print(table)


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--data", "files", type=_FILE, multiple=True, required=True, help="JSON Lines with `text` and `label`.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="For `--calibration`.")
def calibrate(bundle: Path, files: tuple[Path, ...], output: Path) -> None:
    """Fits BUNDLE's temperature on labelled rows, on its own quantized scores."""
    from convert.calibrate import fit
    from r2d_edge.decide import load

    try:
        found = fit(load(bundle), files)
    except R2DError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_REFUSED if isinstance(error, BundleError) else EXIT_FAILED)
    output.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps(found, ensure_ascii=False))


def _quiet_transformers() -> None:
    """Keeps transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    main(prog_name="python -m convert")
