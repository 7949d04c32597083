"""The lists of commands, as who is new reads them first."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from convert.__main__ import main as convert
from r2d_edge.cli import cli
from train.cli import main as train

GROUPS = {"r2d-edge": cli, "python -m train": train, "python -m convert": convert}


def with_inner_groups() -> dict[str, click.Group]:
    """The three groups and the groups among their commands."""
    found: dict[str, click.Group] = dict(GROUPS)
    for name, group in GROUPS.items():
        context = click.Context(group)
        for command in group.list_commands(context):
            inner = group.get_command(context, command)
            if isinstance(inner, click.Group):
                found[f"{name} {command}"] = inner
    return found


@pytest.mark.parametrize("name", with_inner_groups())
def test_no_line_of_a_list_of_commands_is_cut(name: str) -> None:
    group = with_inner_groups()[name]
    shown = CliRunner().invoke(group, ["--help"], prog_name=name, terminal_width=80)
    assert shown.exit_code == 0
    listing = shown.stdout.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listing if line[2] != " "] == group.list_commands(click.Context(group))
    assert [line for line in listing if line.endswith("...") or len(line) > 80] == []
