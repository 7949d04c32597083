"""Export to CTranslate2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convert.commands.options import FOLDER, conversion_options, quiet_transformers, show, tell, told

QUANTIZATIONS = ("float32", "int8", "int8_float32", "int8_bfloat16", "bfloat16", "float16", "int8_float16")


@click.command(name="ctranslate2")
@click.argument("checkpoint", type=FOLDER)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="int8", show_default=True)
@told
@click.option("--zip", "as_zip", is_flag=True, help="Write one .zip file instead of a folder.")
@click.option("--force", is_flag=True, help="Replace the bundle that stands at the output.")
def command(checkpoint: Path, output: Path, **options: Any) -> None:
    """Exports CHECKPOINT (T5 family, BART-shaped, Llama, Qwen, Gemma) to CTranslate2 and proves the export."""
    from convert.bundling import convert_to_ctranslate2

    quiet_transformers()
    result = convert_to_ctranslate2(checkpoint, output, conversion_options(**options), progress=tell)
    show(result)
