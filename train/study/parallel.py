"""Several cells at once: each in a process of its own, with its share of the cores or a GPU to itself."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from train.study.run import Say, check_files, is_finished, needs_stage1
from train.study.spec import Cell, Study

Slot = Mapping[str, str]


def slots(jobs: int | None) -> list[Slot]:
    """The environment of each process that may run at a time.

    Args:
        jobs: how many; None is one a GPU where there are several, else one.
    """
    gpus = _gpus()
    count = jobs or max(1, len(gpus))
    threads = str(max(1, (os.cpu_count() or 1) // count))
    found: list[Slot] = []
    for index in range(count):
        slot: dict[str, str] = {"OMP_NUM_THREADS": threads}
        if len(gpus) > 1:
            slot["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        found.append(slot)
    return found


def run_in_processes(file: Path, study: Study, cells: Sequence[Cell], places: Sequence[Slot], say: Say) -> list[str]:
    """Runs the unfinished ones of `cells`, each as a `python -m train study` of its own, one at a time in each place.

    Cells that share a stage 1 wait for the first of them, which trains it.

    Returns:
        The names of the cells that failed.

    Raises:
        FileNotFoundError: a data file or a base model that is needed is missing.
    """
    left = [cell for cell in cells if not is_finished(study, cell)]
    check_files(left)
    say(f"{len(cells) - len(left)} of {len(cells)} cells were finished before")
    first: list[Cell] = []
    then: list[Cell] = []
    begun: set[Path] = set()
    for cell in left:
        shared = cell.stage1.output if cell.stage1 is not None else None
        (then if shared in begun else first).append(cell)
        if shared is not None and needs_stage1(cell):
            begun.add(shared)
    free: queue.Queue[Slot] = queue.Queue()
    for place in places:
        free.put(place)

    def run(cell: Cell) -> bool:
        if cell in then and needs_stage1(cell):
            say(f"{cell.name}: not begun, as its stage 1 failed")
            return False
        place = free.get()
        try:
            say(f"{cell.name}: begun")
            command = [sys.executable, "-m", "train", "study", str(file), "--train", "--only", f"name={cell.name}"]
            # The children share this terminal's stderr; their tables and plots are not asked for.
            subprocess.run(
                [*command, "--jobs", "1", "--no-plots"],
                env={**os.environ, **place},
                stdout=subprocess.DEVNULL,
                check=False,
            )
            # Its result tells, not the exit code: a child may have trained and then failed to show a table.
            finished = is_finished(study, cell)
            say(f"{cell.name}: {'finished' if finished else 'failed'}")
            return finished
        finally:
            free.put(place)

    failed = []
    with ThreadPoolExecutor(len(places)) as pool:
        for group in (first, then):
            failed += [cell.name for cell, well in zip(group, pool.map(run, group), strict=True) if not well]
    return failed


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]
