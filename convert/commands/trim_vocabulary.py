"""A vocabulary cut down to what a corpus uses."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convert.commands.options import FILE, FOLDER, quiet_transformers, tell


@click.command(name="trim-vocabulary")
@click.argument("checkpoint", type=FOLDER)
@click.option(
    "--corpus",
    "corpora",
    required=True,
    multiple=True,
    type=FILE,
    help="What the model reads and writes: a data set in JSON Lines, or .txt with a note a line. May be repeated.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option(
    "--unseen",
    type=FILE,
    help="Notes that are not counted, for the proof.  [default: the last tenth of each corpus, which is not counted]",
)
@click.option("--keep-sentinels", is_flag=True, help="Keep T5's <extra_id_N>, which further pre-training needs.")
@click.option("--task", type=FILE, help="Labels, prompts and limits.  [default: the checkpoint's r2d_task.json]")
@click.option("--force", is_flag=True, help="Replace the checkpoint that stands at the output.")
def command(
    checkpoint: Path,
    corpora: tuple[Path, ...],
    output: Path,
    unseen: Path | None,
    keep_sentinels: bool,
    task: Path | None,
    force: bool,
) -> None:
    """Cuts the vocabulary of CHECKPOINT to the tokens that a corpus uses and proves that the model stays the same.

    Special tokens, single characters and bytes stay too: any text can still be written.
    """
    from convert.vocabulary import trim_vocabulary

    quiet_transformers()
    result = trim_vocabulary(
        checkpoint,
        corpora,
        output,
        task=task,
        unseen=unseen,
        keep_sentinels=keep_sentinels,
        force=force,
        progress=tell,
    )
    reading, computing = result.reading, result.computing
    tell(
        f"tokens {result.ids[0]:,} -> {result.ids[1]:,}, {result.size[0] / 1e6:.1f} -> {result.size[1] / 1e6:.1f} MB, "
        f"{1 - result.parameters[1] / result.parameters[0]:.1%} of the parameters saved"
    )
    tell(
        f"notes that were not counted: {reading.same} of {reading.notes} are read the same, "
        f"{reading.tokens_before:.1f} -> {reading.tokens_after:.1f} tokens on average; kept tokens' logits are equal "
        f"within {computing.logits:.2g}"
    )
    if computing.labels is not None:
        tell(
            f"of {computing.labels.other_rows} compared notes that are read otherwise, "
            f"{computing.labels.other_same_label} have the same label"
        )
    click.echo(json.dumps(result.to_json(), ensure_ascii=False))
