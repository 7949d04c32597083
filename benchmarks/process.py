"""Sides' processes, from the outside: started alike, asked in turn, a failure kept as a reason."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
TIMEOUT_SECONDS = 600.0


class SideError(RuntimeError):
    """A side cannot do what it was asked; the message says why."""


def environment(threads: int) -> dict[str, str]:
    """What every side's process is started with: the same threads for every library, no network, no progress bars."""
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }


class SideProcess:
    """A `benchmarks.worker` with its side. Ends with its `with` block, or by `close`."""

    def __init__(self, threads: int, python: str | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", "benchmarks.worker"],
                cwd=ROOT,
                env=environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise SideError(f"{python} cannot be started: {error}") from None
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, do: str, *, timeout: float = TIMEOUT_SECONDS, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            SideError: the side failed, ended or did not answer in time; it is of no use afterwards but to close.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except OSError:
            line = ""
        except queue.Empty:
            self._process.kill()
            raise SideError(f"no answer within {timeout:.0f} s") from None
        if not line:
            raise SideError(f"its process ended with code {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self) -> None:
        """Reads answers as they come, so that waiting for one can be given up on every system; "" is the end."""
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except ValueError:  # closed while reading
            pass
        self._answers.put("")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def run_tool(command: list[str], *, threads: int, timeout: float = TIMEOUT_SECONDS) -> str:
    """Runs a command of this repository to its end and gives its standard output.

    Raises:
        SideError: it failed, with the last line it wrote.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(threads),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SideError(f"{Path(command[0]).name} cannot be run: {type(error).__name__}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SideError(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def last_json(text: str) -> Mapping[str, Any]:
    """The JSON object that a command wrote as its last line."""
    found: Mapping[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
