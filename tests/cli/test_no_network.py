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
from tests.r2d_edge.test_minisign import PUBLIC, SECRET

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "r2d_edge"]
INET = re.compile(r"AF_INET6?\b|AF_PACKET|AF_NETLINK")
COMMANDS = ("infer", "infer embedded", "batch", "report", "calibrate", "verify", "sign", "doctor", "audit", "info")


def runs(command: str, bundle: Path, folder: Path) -> list[list[str]]:
    """The arguments of each run that exercises a command, in their order; each writes below `folder`."""
    model = ["--model", str(bundle)]
    data = folder / "rows.jsonl"
    labels = ("emergent", "urgent", "non-urgent")
    rows = [{"id": f"n{n}", "text": f"{NOTES[n % 4]} {n}", "label": labels[n % 3]} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if command == "infer":
        return [["infer", NOTES[0], *model]]
    if command == "infer embedded":
        return [["infer", NOTES[0]]]
    if command == "batch":
        return [["batch", str(data), "-o", str(folder / "out.csv"), *model, "--no-rationale"]]
    if command == "report":
        sides = ["--reference", str(bundle), "--candidate", str(bundle), "--data", str(data)]
        return [["report", *sides, "-o", str(folder / "out"), "--resamples", "100"]]
    if command == "calibrate":
        return [["calibrate", str(bundle), "--data", str(data), "-o", str(folder / "new"), "--no-threshold"]]
    if command == "verify":
        return [["verify", str(bundle), "--rescore"]]
    if command == "sign":
        pytest.importorskip("cryptography", reason="signatures are the extra `sign`")
        (folder / "it.key").write_text(SECRET, encoding="utf-8")
        signature = str(folder / "it.minisig")
        sign = ["sign", str(bundle), "--secret-key", str(folder / "it.key"), "-o", signature]
        key = PUBLIC.splitlines()[1]
        return [sign, ["verify", str(bundle), "--public-key", key, "--signature", signature]]
    if command == "audit":
        log = str(folder / "audit.jsonl")
        return [["infer", NOTES[0], *model, "--audit", log], ["audit", "verify", log]]
    return [[command, *model]]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The trial load in a child process is part of what must not ask for a network."""
    return {**os.environ, "R2D_EDGE_DATA": str(tmp_path / "data"), "R2D_EDGE_TRUST": "0"}


def works(tool: str | None, *probe: str) -> bool:
    return tool is not None and subprocess.run([tool, *probe, "true"], capture_output=True).returncode == 0


def test_every_command_is_tried() -> None:
    from r2d_edge.cli import COMMANDS as THERE

    assert {command.partition(" ")[0] for command in COMMANDS} == set(THERE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_without_an_interface(command: str, bundle: Path, env: dict[str, str], tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or not works(unshare, "-rn"):
        pytest.skip("this system lends no network namespace")
    for arguments in runs(command, bundle, tmp_path):
        found = subprocess.run([unshare, "-rn", *PROGRAM, *arguments], cwd=ROOT, env=env, capture_output=True)
        assert found.returncode == 0, (arguments[0], found.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_makes_no_internet_socket(command: str, bundle: Path, env: dict[str, str], tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or not works(strace, "-o", str(tmp_path / "probe")):
        pytest.skip("strace is not installed or may not trace here")
    trace = tmp_path / "trace"
    tracer = [strace, "-f", "-e", "trace=socket,connect,bind,sendto,sendmsg", "-o", str(trace)]
    for arguments in runs(command, bundle, tmp_path):
        found = subprocess.run([*tracer, *PROGRAM, *arguments], cwd=ROOT, env=env, capture_output=True)
        assert found.returncode == 0, (arguments[0], found.stderr)
        seen = trace.read_text(encoding="utf-8")
        assert "exited with 0" in seen
        assert not INET.search(seen), (arguments[0], INET.findall(seen))


def test_the_tracer_would_see_an_internet_socket(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or not works(strace, "-o", str(tmp_path / "probe")):
        pytest.skip("strace is not installed or may not trace here")
    trace = tmp_path / "trace"
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()"
    subprocess.run([strace, "-f", "-e", "trace=socket", "-o", str(trace), sys.executable, "-c", code], check=True)
    assert INET.search(trace.read_text(encoding="utf-8"))
