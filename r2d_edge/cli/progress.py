"""A bar on stderr for long work; rich is imported only where it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from r2d_edge.cli import say
from r2d_edge.rendering import printable


class Progress:
    """Counts notes and shows how much of a file has been read; nothing where it is not shown."""

    def __init__(self, stream: BinaryIO, *, shown: bool) -> None:
        self._stream = stream
        self._total = _size(stream)
        self._notes = 0
        self._bar: Any = None
        if shown:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.TextColumn("{task.fields[notes]} notes"),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=self._total, notes=0)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self) -> None:
        """One more note is decided."""
        self._notes += 1
        if self._bar:
            done = self._stream.tell() if self._total else 0
            self._bar.update(self._task, completed=done, notes=self._notes)

    def say(self, message: str) -> None:
        """A line on stderr, above the bar."""
        if self._bar:
            self._bar.console.print(f"r2d-edge: {printable(message)}", markup=False, highlight=False)
        else:
            say(message)


def _size(stream: BinaryIO) -> int | None:
    """The bytes of a plain file, or None for a pipe."""
    name = getattr(stream, "name", None)
    if not isinstance(name, str):
        return None
    path = Path(name)
    return path.stat().st_size if path.is_file() else None
