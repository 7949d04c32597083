"""The command line as a process of its own: what it loads, how it ends, that it needs no network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.bundles import NOTES

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "r2d_edge"]
HEAVY = ("torch", "transformers", "ctranslate2", "tokenizers", "rich", "numpy")
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")


def start(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    "code",
    [
        "import r2d_edge.cli",
        "from r2d_edge.cli import cli; cli.main(['--help'], standalone_mode=False)",
        "from r2d_edge.cli import cli; cli.main(['infer', '--help'], standalone_mode=False)",
    ],
)
def test_the_face_loads_nothing_heavy(code: str) -> None:
    code += f"; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_decision_loads_neither_torch_nor_rich(bundle: Path) -> None:
    code = (
        "import sys; from r2d_edge.cli import cli; "
        f"cli.main(['infer', {NOTES[0]!r}, '--format', 'text', '--model', {str(bundle)!r}], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers', 'rich') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_help_says_what_it_is_and_is_not() -> None:
    found = subprocess.run([*PROGRAM, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "not a medical device" in found.stdout
    for name in ("infer", "verify", "info"):
        found = subprocess.run([*PROGRAM, name, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert name in found.stdout.splitlines()[0]


def test_streams_are_utf8_whatever_the_locale(bundle: Path) -> None:
    process = start("infer", "--model", bundle, "--input-format", "jsonl", env={"PYTHONIOENCODING": "cp1252"})
    out, err = process.communicate(json.dumps({"id": "Łódź ☃", "text": "fièvre"}, ensure_ascii=False).encode("utf-8"))
    assert process.returncode == 0, err
    assert json.loads(out.decode("utf-8"))["id"] == "Łódź ☃"


def test_no_network_is_opened(bundle: Path, tmp_path: Path) -> None:
    guard = tmp_path / "sitecustomize.py"
    guard.write_text(
        "import socket\n"
        "def refuse(*_, **__):\n"
        "    raise RuntimeError('a socket was asked for')\n"
        "socket.socket.__init__ = refuse\n"
        "socket.create_connection = socket.getaddrinfo = refuse\n",
        encoding="utf-8",
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    probe = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], env=env, capture_output=True)
    assert b"a socket was asked for" in probe.stderr
    for arguments in (
        ["infer", NOTES[0], "--model", bundle],
        ["info", "--model", bundle],
        ["verify", bundle, "--rescore"],
    ):
        found = subprocess.run([*PROGRAM, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)


@posix
def test_it_decides_in_a_namespace_without_interfaces(bundle: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this system lends no network namespace; the test with sockets refused stands in")
    probe = [sys.executable, "-c", "import socket; print([name for _, name in socket.if_nameindex()])"]
    interfaces = subprocess.run([unshare, "-rn", *probe], capture_output=True, text=True, check=True).stdout
    assert interfaces.strip() in ("['lo']", "[]")
    found = subprocess.run(
        [unshare, "-rn", *PROGRAM, "infer", NOTES[0], "--model", str(bundle)], cwd=ROOT, capture_output=True
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["rationale"]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A background job of a shell ignores SIGINT and hands that on; a handler of ours is not handed on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_leaves_whole_lines_and_no_traceback(bundle: Path, number: str, code: int) -> None:
    process = start("infer", "--model", bundle, "--input-format", "jsonl", "--batch-size", "1", "--no-rationale")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"text": "Chest pain."}\n')
    process.stdin.flush()
    first = process.stdout.readline()  # it is decided, and the process waits for more
    process.send_signal(getattr(signal, number))
    process.stdin.flush()
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert json.loads(first)["label"]
    assert out == b""
    assert len(err.splitlines()) == 1
    assert b"Traceback" not in err


@posix
def test_a_reader_that_leaves_is_no_drama(bundle: Path) -> None:
    process = start("infer", "--model", bundle, "--input-format", "jsonl", "--batch-size", "1", "--no-rationale")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b'{"text": "Chest pain."}\n')
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(b'{"text": "Sprained ankle."}\n')
    process.stdin.close()
    assert process.wait(timeout=30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@posix
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_gets_text_in_colour_unless_declined(bundle: Path, no_color: str) -> None:
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "infer", NOTES[0], "--model", str(bundle)],
        stdin=follower, stdout=follower, stderr=follower, cwd=ROOT,
        env={**os.environ, "NO_COLOR": no_color, "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # Linux says the end of a terminal so
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(timeout=30) == 0, shown
    text = shown.decode("utf-8")
    assert "█" in text
    assert "resuscitation" in text
    assert ("\x1b[" in text) is (no_color == "")


@posix
def test_a_terminal_without_a_note_gets_told(bundle: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    found = subprocess.run([*PROGRAM, "infer"], stdin=follower, cwd=ROOT, capture_output=True, timeout=30)
    os.close(leader)
    os.close(follower)
    assert found.returncode == 2
    assert b"no note" in found.stderr
