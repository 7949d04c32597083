"""Export to GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convert.commands.options import FOLDER, conversion_options, quiet_transformers, show, tell, told

QUANTIZATIONS = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "as-is")


@click.command(name="gguf")
@click.argument("checkpoint", type=FOLDER)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    default="Q8_0",
    show_default=True,
    help="as-is: with --keep-adapter, the base's own .gguf file.",
)
@click.option("--keep-adapter", is_flag=True, help="Export the base and CHECKPOINT/adapter beside it, not merged.")
@click.option(
    "--base",
    help="With --keep-adapter: a checkpoint folder, a .gguf file, or package:NAME.  [default: what the adapter names]",
)
@told
@click.option("--zip", "as_zip", is_flag=True, help="Write one .zip file instead of a folder.")
@click.option("--force", is_flag=True, help="Replace the bundle that stands at the output.")
def command(checkpoint: Path, output: Path, keep_adapter: bool, base: str | None, **options: Any) -> None:
    """Exports CHECKPOINT (T5 family, Llama, Qwen2, Qwen3) to GGUF for llama.cpp and proves the export.

    Says how many bits a weight really takes and which tensors could not get the wanted type.
    """
    from convert.bundling import convert_to_gguf

    quiet_transformers()
    told_of = conversion_options(**options)
    result = convert_to_gguf(checkpoint, output, told_of, keep_adapter=keep_adapter, base=base, progress=tell)
    show(result)
