"""`python -m convert`: thin commands over functions that can be called."""

from __future__ import annotations

import importlib

import click

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
def main() -> None:
    """Converts checkpoints to bundles."""


if __name__ == "__main__":
    main(prog_name="python -m convert")
