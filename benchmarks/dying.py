"""A batch run that dies at a given step on the disk, as by a loss of power in the middle of it.

    python -m benchmarks.dying STEP FILE batch INPUT … -o OUTPUT …

runs `r2d-edge batch …` and kills its own process at the STEP-th creation, write (half of it done), sync, rename or
removal, counted from 0. A run that ends before writes the number of its steps to FILE.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from r2d_edge.batch import run
from r2d_edge.batch.files import Files


class DyingFiles(Files):
    """Files whose process dies at a step."""

    def __init__(self, step: int) -> None:
        self.steps = 0
        self._step = step

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def append(self, path: Path, size: int) -> int:
        self._count()
        return super().append(path, size)

    def write(self, handle: int, data: bytes) -> None:
        if self.steps == self._step:
            super().write(handle, data[: len(data) // 2])
        self._count()
        super().write(handle, data)

    def sync(self, handle: int) -> None:
        self._count()
        super().sync(handle)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def _count(self) -> None:
        self.steps += 1
        if self.steps > self._step:
            die()


def die() -> None:
    """Ends this process at once: nothing is flushed, no handler runs."""
    # Windows has no SIGKILL; there SIGTERM ends a process in the same way.
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def main() -> None:
    """Command line of this module."""
    if len(sys.argv) < 4:
        raise SystemExit("python -m benchmarks.dying STEP FILE batch INPUT … -o OUTPUT …")
    files = DyingFiles(int(sys.argv[1]))
    target = Path(sys.argv[2])
    sys.argv = ["r2d-edge", *sys.argv[3:]]
    run.Files = lambda: files  # type: ignore[assignment,attr-defined]
    from r2d_edge.cli import main as command

    try:
        command()
    finally:
        target.write_text(str(files.steps), encoding="ascii")


if __name__ == "__main__":
    main()
