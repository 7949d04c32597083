"""`python -m train`: one command a step of the line from text to checkpoint."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from train.recipe import RecipeError

if TYPE_CHECKING:
    from r2d_edge.bundle import Decoding

HELP = "key=value, over the recipe's; values as in TOML"


@click.group()
def main() -> None:
    """Train Reason2Decide models. Decision support for clinicians, not a medical device."""


@main.command()
@click.option("--required", "required", multiple=True, type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--wanted", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--label", "labels", multiple=True, help="a label whose pieces must be kept; repeatable")
@click.option("--vocabulary-size", default=14_000, show_default=True)
@click.option("--encoder-layers", type=int, help="default: all")
@click.option("--decoder-layers", default=3, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def warmstart(
    required: tuple[Path, ...],
    wanted: tuple[Path, ...],
    labels: tuple[str, ...],
    vocabulary_size: int,
    encoder_layers: int | None,
    decoder_layers: int,
    output: Path,
) -> None:
    """Grow a BART-shaped base model out of the packaged MiniLM.

    No hub is needed. All pieces that the --required files (datasets or text) use are kept; the most frequent
    pieces of the --wanted files fill the vocabulary up.
    """
    from r2d_edge.task import CTAS_LEVELS, Prompts
    from train import warmstart as room
    from train.pretrain import read_documents

    words = [*(labels or CTAS_LEVELS), *vars(Prompts()).values()]
    try:
        room.warmstart(
            output,
            required_texts=[*words, *(text for path in required for text in read_documents(path))],
            wanted_texts=(text for path in wanted for text in read_documents(path)),
            vocabulary_size=vocabulary_size,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(output)


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def pretrain(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Pre-train by denoising plain text (span infilling).

    Resumes what was cut.
    """
    from train import pretrain as room
    from train.recipe import load_recipe

    try:
        recipe = load_recipe(room.PretrainRecipe, config, overrides)
        click.echo(room.pretrain(recipe, resume=resume))
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def stage1(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Stage 1: learn to write rationales.

    Resumes what was cut.
    """
    from train.recipe import Stage1Recipe, load_recipe
    from train.stage1 import train_stage1

    click.echo(train_stage1(load_recipe(Stage1Recipe, config, overrides), resume=resume))


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--method", type=click.Choice(["sft", "dss", "r2d", "r2d-c"]), help="over the recipe's")
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def fit(config: Path | None, method: str | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Train a method whole, from base to the model that decides.

    Resumes what was cut.

    sft: labels alone. dss: distilling step-by-step. r2d: Reason2Decide (stage 1, then labels and rationales with
    scheduled sampling). r2d-c: Reason2Decide-C (the same, gated by confidence, with a cycle loss).
    """
    from train import methods
    from train.recipe import FitRecipe, load_recipe

    chosen = [*overrides, f'method="{method}"'] if method else overrides
    click.echo(methods.fit(load_recipe(FitRecipe, config, chosen), resume=resume))


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def classify(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Fine-tune an encoder on labels alone, as a teacher.

    Resumes what was cut. `evaluate` scores it like any model.
    """
    from train.classifier import ClassifierRecipe, train_classifier
    from train.recipe import load_recipe

    click.echo(train_classifier(load_recipe(ClassifierRecipe, config, overrides), resume=resume))


@main.command()
@click.option(
    "--variants-of",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Training rows: each note gives one with sentences left out or another's second half; repeatable.",
)
@click.option(
    "--notes-in",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Clinical text, a document a line (.txt, .txt.xz): its notes that name an age; repeatable.",
)
@click.option("--seed", default=13, show_default=True, help="Of the variants.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="FILE.jsonl")
def unlabelled(variants_of: tuple[Path, ...], notes_in: tuple[Path, ...], seed: int, output: Path) -> None:
    """Write note-like texts without labels for a teacher.

    `teach --unlabelled` takes them.
    """
    from train.unlabelled import write_unlabelled

    if output.suffix != ".jsonl":
        raise click.UsageError(f"the output is JSON Lines: call it .jsonl, not {output.suffix or 'without a suffix'}")
    click.echo(f"{write_unlabelled(output, variants_of=variants_of, notes_in=notes_in, seed=seed)} texts", err=True)
    click.echo(output)


@main.command()
@click.argument("teacher")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Training rows, with or without labels; repeatable.",
)
@click.option(
    "--unlabelled",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="The same, but its labels, if any, are not read; repeatable.",
)
@click.option("--also", multiple=True, metavar="TEACHER", help="Average its label distributions in; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="FILE.jsonl")
@click.option("--beam-size", type=int, help="Decoding of rationales; these three replace the teacher's own together.")
@click.option("--repetition-penalty", type=float)
@click.option("--no-repeat-ngram", type=int)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--bf16", is_flag=True, help="Compute a checkpoint in bfloat16.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def teach(
    teacher: str,
    data: tuple[Path, ...],
    unlabelled: tuple[Path, ...],
    also: tuple[str, ...],
    output: Path,
    **options: Any,
) -> None:
    """Let TEACHER write what a smaller model can learn from.

    That is rationales and label distributions. TEACHER is a checkpoint folder, a bundle, or an embedded model's
    name. Every row of the files is written to FILE.jsonl with the source `teacher` among its rationales and
    `teacher_probabilities`; gold labels are kept. `fit` learns from them with sources = ["teacher"] and soft_labels
    above 0. A checkpoint has no decoding of its own: give it the options against repetition that its bundle will
    have.
    """
    from r2d_edge.errors import R2DError
    from train import teach as room
    from train.answering import open_model

    if not data and not unlabelled:
        raise click.UsageError("give --data or --unlabelled")
    if output.suffix != ".jsonl":
        raise click.UsageError(f"the output is JSON Lines: call it .jsonl, not {output.suffix or 'without a suffix'}")
    try:
        decoding = _decoding(options)
        model, *others = (open_model(name, decoding=decoding, **options) for name in (teacher, *also))
        taught = room.teach(model, data, output, unlabelled=unlabelled, others=others)
    except (ValueError, FileNotFoundError, R2DError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{taught.rows} rows, {taught.rows - taught.labelled} of them without a label: the teacher explains "
        f"{taught.explained}, disagrees with the gold label of {taught.disagreed}, would not read {taught.unread}",
        err=True,
    )
    click.echo(output)


@main.command()
@click.argument("model")
@click.option("--data", multiple=True, required=True, metavar="[NAME=]FILE", help="A labelled set; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--source", help="Whose rationales are the references.  [default: what the model learned from]")
@click.option(
    "--train",
    multiple=True,
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Training file, for the words that state facts; repeatable.",
)
@click.option(
    "--rationales/--no-rationales", default=None, help="Score rationales too.  [default: yes, but for method sft]"
)
@click.option("--bertscore/--no-bertscore", default=True, show_default=True)
@click.option("--bertscore-model", help="Its encoder: a folder or a hub name.  [default: the packaged MiniLM]")
@click.option("--bertscore-layer", type=int, help="[default: the one tuned for the hub name, else the last]")
@click.option("--limit", type=click.IntRange(min=1), help="Score only so many rows of each set, drawn with the seed.")
@click.option("--beam-size", type=int, help="Decoding of rationales; these three replace the model's own together.")
@click.option("--repetition-penalty", type=float)
@click.option("--no-repeat-ngram", type=int)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--bf16", is_flag=True, help="Compute a checkpoint in bfloat16.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", default=13, show_default=True, help="Of the limit and of the bootstrap.")
def evaluate(model: str, data: tuple[str, ...], output: Path, train: tuple[Path, ...], **options: Any) -> None:
    """Score MODEL's labels and rationales on labelled sets.

    Most figures have 95 % bootstrap intervals. MODEL is a checkpoint folder, a bundle, or an embedded model's name.
    What it said about each row is written to OUTPUT, with the figures in evaluation.json.
    """
    from r2d_edge.errors import R2DError
    from train import evaluate as room
    from train.comparison import EVALUATION

    try:
        decoding = _decoding(options)
        report = room.evaluate(model, room.named_files(data), output, train=train, decoding=decoding, **options)
    except (ValueError, FileNotFoundError, R2DError) as error:
        raise click.ClickException(str(error)) from None
    room.show(report)
    click.echo(output / EVALUATION)


@main.command()
@click.argument("first", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.argument("second", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--resamples", default=10_000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=13, show_default=True, help="Of the bootstrap.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file.  [default: stdout]")
def compare(first: Path, second: Path, resamples: int, seed: int, output: Path | None) -> None:
    """Compare two folders that `evaluate` wrote, row by row.

    The differences are the figures of FIRST minus those of SECOND, with paired 95 % bootstrap intervals.
    """
    import json

    from train import comparison
    from train import evaluate as room

    try:
        report = room.rounded(comparison.compare(first, second, seed=seed, resamples=resamples))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    room.show_comparison(report)
    if output is None:
        click.echo(json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        room.write_report(report, output)
        click.echo(output)


@main.command()
@click.option("--score", type=click.Path(exists=True, path_type=Path, dir_okay=False), help="Records to score.")
@click.option(
    "--pair", nargs=2, type=click.Path(exists=True, path_type=Path, dir_okay=False), help="Two files of the same rows."
)
@click.option("--data", type=click.Path(exists=True, path_type=Path, dir_okay=False), required=True, help="The notes.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON file.")
@click.option("--endpoint", metavar="URL", help="The judge: a service that speaks OpenAI's chat format, with --model.")
@click.option("--model", help="Its name there.")
@click.option("--api-key-env", metavar="NAME", help="The environment variable that holds the service's key.")
@click.option("--i-may-send-notes", is_flag=True, help="Consent: the notes go to a host that is not this machine.")
@click.option("--allow-http", is_flag=True, help="... and unencrypted.")
@click.option("--body", metavar="JSON", help="Fields over the request's own; null removes one (see above).")
@click.option(
    "--parallel", default=1, show_default=True, type=click.IntRange(1, 64), help="Requests under way at once."
)
@click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait for an answer of the service.")
@click.option("--gguf", metavar="PATH", help="The judge: a .gguf file (or package:NAME) through llama-cpp-python.")
@click.option("--context", default=4096, show_default=True, type=click.IntRange(min=256), help="Its tokens.")
@click.option("--transformers", metavar="PATH", help="The judge: a folder, .gguf file or package:NAME by transformers.")
@click.option("--constrain/--no-constrain", default=True, show_default=True, help="Hold it to the allowed answers.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Raise it for thinkers.")
@click.option("--billions", type=float, help="The judge's parameters, where they cannot be read.")
@click.option("--limit", type=click.IntRange(min=1), help="Judge only so many rows, drawn with the seed.")
@click.option("--seed", default=13, show_default=True, help="Of sample, marks, intervals and request.")
@click.option("--cache", type=click.Path(path_type=Path, dir_okay=False), help="[default: beside OUTPUT]")
def judge(score: Path | None, pair: tuple[Path, Path] | None, data: Path, output: Path, **options: Any) -> None:
    """Let a language model judge rationales.

    They are in record files that `evaluate` wrote. --score gives marks from 1 to 5 for being correct, supported by
    the note, complete and free of invented facts.
    --pair asks which of two rationales is better, in both orders; a win counts only where both answers agree.

    The judge reads note, gold label and rationale, never who wrote it. Its answers are kept word for word in the
    cache (they may quote notes), so that a run that was cut goes on. Texts can still sway a judge by what they
    say; models under about 7 billion parameters are weak judges.

    --body is for services that differ: '{"max_tokens": null, "max_completion_tokens": 2000, "temperature": null}'.
    """
    from r2d_edge.errors import R2DError
    from train.judging import command

    try:
        command.run(score, pair, data, output, **options)
    except (ValueError, FileNotFoundError, R2DError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(output)


@main.command()
@click.argument("file", metavar="[STUDY.toml]", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--train", is_flag=True, help="Train the cells that have no result yet, then show the tables.")
@click.option("--retrain", is_flag=True, help="Throw the chosen cells' results away and train them anew.")
@click.option(
    "--only", multiple=True, metavar="KEY=VALUE", help="Train these cells: method=r2d, seed=13, ...; repeatable."
)
@click.option("--limit-cells", type=click.IntRange(min=1), help="Train at most so many.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Cells at a time.  [default: one, or one for each of several GPUs]"
)
@click.option(
    "--dry-run", is_flag=True, help="List the cells, with an estimate of what is left to do; nothing is written."
)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw into the results' folder.")
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="Your own file: text, label, rationale.",
)
@click.option(
    "--validation", type=click.Path(exists=True, path_type=Path, dir_okay=False), help="[default: a share of --data]"
)
@click.option("--labels", metavar="A,B,C", help="[default: those in the data]")
@click.option("--ordered", is_flag=True, help="--labels run from the most to the least severe.")
@click.option("--base", metavar="CHECKPOINT", help="[default: MiniLM, warm-started on the data]")
@click.option("--seeds", default="13", show_default=True, metavar="13,14,15")
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="[default: runs/studies/NAME]")
def study(file: Path | None, **options: Any) -> None:
    """Compare methods over rationale sources, sizes and seeds.

    They make a grid over data sets; a cell of it is one training: one method, rationale sources, size, data set and
    seed. STUDY.toml alone prints the tables of the results there are and draws the plots; nothing is trained. --train
    trains the cells that are missing, one after the other, and goes on where it was cut.

    Your own data need no study file: --data trains sft, dss, r2d and r2d-c on it and prints the comparison. The
    options from --data to --output belong to that.

    Exit code 1: a cell failed; the others were trained.
    """
    from train.study import command

    try:
        code = command.study(file, **options)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    raise SystemExit(code)


def _decoding(options: dict[str, Any]) -> Decoding | None:
    """Takes the three decoding options out of a command's; None where none was given."""
    from r2d_edge.bundle import Decoding

    asked = {name: options.pop(name) for name in ("beam_size", "repetition_penalty", "no_repeat_ngram")}
    asked = {name: value for name, value in asked.items() if value is not None}
    return Decoding(**asked) if asked else None


def run() -> None:
    """Runs a command; what it says on purpose is shown without a traceback."""
    from r2d_edge.errors import R2DError
    from train.data import DatasetError

    for stream in (sys.stdout, sys.stderr):
        # As in r2d_edge.cli: Windows would write a file or pipe in its own code page, which lacks arrows and the minus.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        main(standalone_mode=True)
    except (RecipeError, DatasetError, R2DError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
