"""A student with fewer layers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convert.commands.options import FILE, FOLDER, quiet_transformers, tell


def _numbers(ctx: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    """Numbers parted by commas."""
    if value is None:
        return None
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,5") from None


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--decoder-layers", type=int, help="How many; of a decoder-only model: its layers.  [default: all]")
@click.option("--encoder-layers", type=int, help="How many of the encoder's.  [default: all]")
@click.option(
    "--keep", callback=_numbers, metavar="0,5", help="Which decoder layers.  [default: evenly spread, first and last]"
)
@click.option("--keep-encoder", callback=_numbers, metavar="0,5", help="The same of the encoder.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--task", type=FILE, help="Labels, prompts and limits.  [default: the checkpoint's r2d_task.json]")
@click.option("--force", is_flag=True, help="Replace the checkpoint that stands at the output.")
def command(
    checkpoint: Path,
    decoder_layers: int | None,
    encoder_layers: int | None,
    keep: list[int] | None,
    keep_encoder: list[int] | None,
    output: Path,
    task: Path | None,
    force: bool,
) -> None:
    """Makes a student of CHECKPOINT with fewer layers, each begun as one of its teacher's.

    The student is of no use before it was trained: distil its teacher into it.
    """
    if all(choice is None for choice in (decoder_layers, encoder_layers, keep, keep_encoder)):
        raise click.UsageError("say how many layers to keep (--decoder-layers, --encoder-layers) or which (--keep)")
    from convert.shallow import make_shallow

    quiet_transformers()
    result = make_shallow(
        checkpoint,
        output,
        decoder_layers=decoder_layers,
        encoder_layers=encoder_layers,
        decoder_kept=keep,
        encoder_kept=keep_encoder,
        task=task,
        force=force,
        progress=tell,
    )
    before, after = result.parameters
    tell(
        f"{before / 1e6:.1f} -> {after / 1e6:.1f} million parameters ({1 - after / before:.1%} saved). "
        "It must be trained before it is of use: distil its teacher into it"
    )
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))
