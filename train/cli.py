"""`python -m train`: one command a step of the line from text to checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from train.recipe import RecipeError

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
    """Grow a BART-shaped base model out of the packaged MiniLM; no hub needed.

    All pieces that the --required files (datasets or text) use are kept; the most frequent pieces of the
    --wanted files fill the vocabulary up.
    """
    from r2d_edge.task import CTAS_LEVELS, Prompts
    from train import warmstart as room
    from train.pretrain import read_documents

    words = [*(labels or CTAS_LEVELS), *vars(Prompts()).values()]
    room.warmstart(
        output,
        required_texts=[*words, *(text for path in required for text in read_documents(path))],
        wanted_texts=(text for path in wanted for text in read_documents(path)),
        vocabulary_size=vocabulary_size,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
    )
    click.echo(output)


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def pretrain(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Denoising pre-training on plain text (span infilling); resumes what was cut."""
    from train import pretrain as room
    from train.recipe import load_recipe

    recipe = load_recipe(room.PretrainRecipe, config, overrides)
    click.echo(room.pretrain(recipe, resume=resume))


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def stage1(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Stage 1: learn to write rationales."""
    from train.recipe import Stage1Recipe, load_recipe
    from train.stage1 import train_stage1

    click.echo(train_stage1(load_recipe(Stage1Recipe, config, overrides), resume=resume))


@main.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path))
@click.option("--set", "overrides", multiple=True, help=HELP)
@click.option("--resume/--no-resume", default=True, show_default=True)
def stage2(config: Path | None, overrides: tuple[str, ...], resume: bool) -> None:
    """Stage 2: learn label and rationale together, with scheduled sampling."""
    from train.recipe import Stage2Recipe, load_recipe
    from train.stage2 import train_stage2

    click.echo(train_stage2(load_recipe(Stage2Recipe, config, overrides), resume=resume))


def run() -> None:
    """Runs a command; what it says on purpose is shown without a traceback."""
    from train.data import DatasetError

    try:
        main(standalone_mode=True)
    except (RecipeError, DatasetError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
