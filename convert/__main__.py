"""`python -m convert`: thin commands over functions that can be called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from convert.errors import ParityError
from r2d_edge.errors import BundleError, R2DError

FAILED, REFUSED, GATE_FAILED = 1, 3, 5
# Each command with its line in `--help`, so that showing the list imports none of them.
COMMANDS = {
    "ctranslate2": "Export a checkpoint to CTranslate2 and prove the export.",
    "gguf": "Export a checkpoint to GGUF for llama.cpp and prove the export.",
    "merge-lora": "Fold a LoRA adapter into its base and prove the result.",
    "adapter": "Write what is shipped of a model in parts: its adapter, not its base.",
    "trim-vocabulary": "Cut a vocabulary to what a corpus uses and prove the result.",
    "shallow": "Make a student with fewer layers, for distillation to finish.",
    "calibrate": "Fit a bundle's temperatures on labelled rows.",
}


class LazyGroup(click.Group):
    """Finds the command `a-b` in the module `convert.commands.a_b`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"convert.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has gone; click knows what to do
        except (R2DError, OSError) as error:
            click.echo(f"error: {_in_words(error)}", err=True)
            ctx.exit(_exit_code(error))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _in_words(error: R2DError | OSError) -> str:
    if isinstance(error, R2DError):
        return str(error)
    # transformers raises OSErrors of its own, with a message in place of a number.
    reason = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{error.filename}: {reason}" if error.filename else reason


def _exit_code(error: R2DError | OSError) -> int:
    if isinstance(error, ParityError):
        return GATE_FAILED
    return REFUSED if isinstance(error, BundleError) else FAILED


@click.group(cls=LazyGroup)
def main() -> None:
    """Converts checkpoints to bundles."""


if __name__ == "__main__":
    main(prog_name="python -m convert")
