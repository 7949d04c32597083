"""A crash of a command leaves no core file, which would hold the notes in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r2d_edge.integrity.cores import CORE_LIMIT

ROOT = Path(__file__).parents[2]
if sys.platform != "win32":
    import resource

# A command of our own in the place of one of the program's, so that what holds within any of them is seen.
CRASHING = """
import os, resource, sys, types
import click
from r2d_edge import cli

@click.command()
def command():
    print(*resource.getrlimit(resource.RLIMIT_CORE), flush=True)
    os.abort()

sys.modules["r2d_edge.cli.info"] = types.SimpleNamespace(command=command)
sys.argv = ["r2d-edge", "info"]
cli.main()
"""


def crash(code: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs code that ends in an abort, allowed to leave a core; gives what it left."""
    folder.mkdir()

    def allow() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, preexec_fn=allow
    )
    assert found.returncode == -signal.SIGABRT, found.stderr
    return found, [path.name for path in folder.iterdir()]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows writes no cores and has no such limit")
def test_a_command_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    found, left = crash(CRASHING, tmp_path / "ours")
    assert found.stdout.split() == [str(CORE_LIMIT)] * 2
    assert left == []
    # Where this system writes cores into the folder (not all do), the same crash without our program leaves one.
    _, control = crash("import os; os.abort()", tmp_path / "control")
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    pattern = Path("/proc/sys/kernel/core_pattern")
    if most != 0 and pattern.exists() and pattern.read_text(encoding="utf-8").strip() == "core":
        assert control
