"""The command line: a group whose commands are imported when they are called."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Any

import click

from r2d_edge import __version__
from r2d_edge.errors import BundleError, R2DError
from r2d_edge.integrity.cores import leave_no_core

FAILED, WRONG_USAGE, REFUSED, ROWS_FAILED, GATE_FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 5, 130, 143
PROGRAM = "r2d-edge"
_OPTION = re.compile(r"--?[a-z][a-z-]*")

# Each command with its line in `--help`, so that showing the list imports none of them.
COMMANDS = {
    "infer": "Decide notes: a label with its probabilities, and a rationale.",
    "batch": "Decide files of notes; what stops the work loses nothing.",
    "report": "Compare a model with its reference on labelled notes; exit code 5 if a gate fails.",
    "calibrate": "Fit probabilities, label sets and abstention to labelled notes, and seal the bundle anew.",
    "verify": "Check a model bundle whole; exit code 3 if it is refused.",
    "sign": "Sign a model bundle, so that others can tell who made it.",
    "doctor": "Examine this machine and a model on it; exit code 5 if its scores differ here.",
    "audit": "Check an audit log of decisions; exit code 5 if it is not what was written.",
    "info": "Show versions, the model and how it runs on this machine.",
}


class Terminated(BaseException):
    """The process was asked to end (SIGTERM)."""


class LazyGroup(click.Group):
    """Finds commands in modules of their own and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(WRONG_USAGE)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _wrong_usage(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            # What is no command may be a note, so it is not repeated.
            ctx.fail(f'no such command; there are {", ".join(COMMANDS)} (a note goes to `r2d-edge infer "..."`)')
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"r2d_edge.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise _wrong_usage(error) from None
        except click.exceptions.Exit:
            raise
        except BaseException as error:
            code = _report(error, debug=bool(ctx.params.get("debug")))
            ctx.exit(code)


def _wrong_usage(error: click.UsageError) -> click.exceptions.Exit:
    """Says in one line what is wrong with the arguments; a note among them is not repeated."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and not _OPTION.fullmatch(error.option_name):
        message = "what begins with '-' is taken for an option; put -- before a note that does, or use --file"
    if message.startswith("Got unexpected extra argument"):
        message = "too many arguments"
    path = error.ctx.command_path if error.ctx else PROGRAM
    say(f"{message.rstrip('.')}; see `{path} --help`")
    return click.exceptions.Exit(WRONG_USAGE)


def _report(error: BaseException, *, debug: bool) -> int:
    """Says on stderr what went wrong, in one line without a note's text, and gives the exit code."""
    if isinstance(error, BrokenPipeError):
        # The reader has gone, which is its right; what Python would still flush at exit goes nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if debug:
        traceback.print_exception(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        say("interrupted")
        return INTERRUPTED
    if isinstance(error, Terminated):
        say("terminated")
        return TERMINATED
    if isinstance(error, R2DError):
        say(str(error))
        return REFUSED if isinstance(error, BundleError) else FAILED
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        say(f"{name}{error.strerror or type(error).__name__}")
        return FAILED
    if isinstance(error, Exception):
        # Its message may quote anything, a note too: only its kind is safe to show.
        say(f"failed unexpectedly ({type(error).__name__}); `r2d-edge --debug ...` shows where")
        return FAILED
    raise error


def say(message: str) -> None:
    """One line on stderr."""
    from r2d_edge.rendering import printable

    click.echo(f"{PROGRAM}: {printable(message)}", err=True)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bundle refused, 4 some rows failed, "
    "5 a gate failed, 130 or 143 interrupted.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.version_option(__version__, prog_name=PROGRAM)
def cli(debug: bool) -> None:
    """A label and its rationale for a clinical note, offline.

    Decision support for clinicians, not a medical device: a person who may decide without it reads
    each result and answers for what is done.
    """


def main() -> None:
    """Runs the command line in this process and exits."""
    leave_no_core()
    for stream in (sys.stdout, sys.stderr):
        # Windows would write its own code page; what UTF-8 cannot say is escaped, never a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name=PROGRAM)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
