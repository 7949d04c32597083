"""The whole command line without a network: in a namespace that has no interface, and under a tracer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.bundles import NOTES

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "r2d_edge"]
INET = re.compile(r"AF_INET6?\b|AF_PACKET|AF_NETLINK")


def commands(bundle: Path) -> list[list[str]]:
    return [
        ["infer", NOTES[0], "--model", str(bundle)],
        ["infer", NOTES[0]],
        ["verify", str(bundle), "--rescore"],
        ["info", "--model", str(bundle)],
        ["doctor", "--model", str(bundle)],
    ]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The trial load in a child process is part of what must not ask for a network."""
    return {**os.environ, "R2D_EDGE_DATA": str(tmp_path / "data"), "R2D_EDGE_TRUST": "0"}


def works(tool: str | None, *probe: str) -> bool:
    return tool is not None and subprocess.run([tool, *probe, "true"], capture_output=True).returncode == 0


def test_every_command_runs_without_an_interface(bundle: Path, env: dict[str, str]) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or not works(unshare, "-rn"):
        pytest.skip("this system lends no network namespace")
    for arguments in commands(bundle):
        found = subprocess.run([unshare, "-rn", *PROGRAM, *arguments], cwd=ROOT, env=env, capture_output=True)
        assert found.returncode == 0, (arguments[0], found.stderr)
        assert json.loads(found.stdout)


def test_no_command_makes_an_internet_socket(bundle: Path, env: dict[str, str], tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or not works(strace, "-o", str(tmp_path / "probe")):
        pytest.skip("strace is not installed or may not trace here")
    trace = tmp_path / "trace"
    tracer = [strace, "-f", "-e", "trace=socket,connect,bind,sendto,sendmsg", "-o", str(trace)]
    probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()"
    subprocess.run([*tracer, sys.executable, "-c", probe], check=True)
    assert INET.search(trace.read_text(encoding="utf-8"))  # the tracer would see one
    for arguments in commands(bundle):
        found = subprocess.run([*tracer, *PROGRAM, *arguments], cwd=ROOT, env=env, capture_output=True)
        assert found.returncode == 0, (arguments[0], found.stderr)
        seen = trace.read_text(encoding="utf-8")
        assert "exited with 0" in seen
        assert not INET.search(seen), (arguments[0], INET.findall(seen))
