"""The process that one side lives in: `python -m benchmarks.worker`, spoken to in lines of JSON.

Requests come on standard input, one answer to each goes to the standard output that the process was started
with; whatever libraries print goes to standard error instead. It may run under another Python than the
benchmark's own, so only the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TextIO

from benchmarks.peak import peak_bytes
from benchmarks.sides import Row, Side, Wish, open_side


class Worker:
    """One side and what can be asked of it."""

    def __init__(self) -> None:
        self._side: Side | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Does what a request's `do` says.

        Raises:
            ValueError: it is none of `open`, `notes`, `many`.
        """
        if request["do"] == "open":
            return self._open(request["kind"], request["settings"])
        if self._side is None:
            raise ValueError("nothing was opened")
        rows = [Row(**row) for row in request["rows"]]
        wish = Wish(**request["wish"])
        if request["do"] == "notes":
            return self._notes(self._side, rows, wish)
        if request["do"] == "many":
            return self._many(self._side, rows, wish, request["batch_size"])
        raise ValueError(f"{request['do']!r} is not something to ask for")

    def _open(self, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        self._side = open_side(kind, settings)
        seconds = time.perf_counter() - start
        return {"about": {**self._side.describe(), "python": sys.version.split()[0]}, "seconds": seconds}

    def _notes(self, side: Side, rows: list[Row], wish: Wish) -> dict[str, Any]:
        laps = []
        for row in rows:
            used = time.process_time()
            lap = side.note(row, wish)
            laps.append({**asdict(lap), "cpu": time.process_time() - used})
        return {"laps": laps, "peak_bytes": peak_bytes()}

    def _many(self, side: Side, rows: list[Row], wish: Wish, batch_size: int) -> dict[str, Any]:
        start, used = time.perf_counter(), time.process_time()
        tokens = side.many(rows, wish, batch_size)
        wall, cpu = time.perf_counter() - start, time.process_time() - used
        return {"seconds": wall, "cpu": cpu, "tokens": tokens, "peak_bytes": peak_bytes()}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until the requests end. What goes wrong is an answer, too."""
    worker = Worker()
    for line in requests:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # a library may raise anything; the run goes on without this side
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Keeps the answers' line for itself and serves."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
