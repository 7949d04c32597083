"""`python -m train study`: what the command does, step by step."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from train.study import parallel, run
from train.study.estimate import plan
from train.study.own_data import prepare
from train.study.spec import Study, chosen, read_study
from train.study.tables import differences_table, results_table


def study(
    file: Path | None,
    *,
    train: bool,
    retrain: bool,
    only: Sequence[str],
    limit_cells: int | None,
    jobs: int | None,
    dry_run: bool,
    plots: bool,
    data: Path | None,
    output: Path | None,
    seeds: str,
    labels: str | None,
    **own: Any,
) -> int:
    """Trains what was asked for, then shows the tables of what there is; returns the exit code.

    Raises:
        click.UsageError: neither or both of a study file and data.
    """
    if (file is None) == (data is None):
        raise click.UsageError("give a study file, or --data for a study of your own data")
    with tempfile.TemporaryDirectory() as scratch:  # a dry run of one's own data leaves nothing behind
        if data is not None:
            folder = output or Path("runs/studies") / data.stem
            names = [name.strip() for name in labels.split(",")] if labels else []
            draft = Path(scratch) if dry_run else None
            file = prepare(data, folder, labels=names, seeds=_seeds(seeds), draft=draft, **own)
            if not dry_run:
                click.echo(f"the study is in {file}", err=True)
            train = train or not dry_run
        assert file is not None
        found = read_study(file)
        cells = chosen(found.cells, only)
        if limit_cells is not None:
            cells = [cell for cell in cells if retrain or not run.is_finished(found, cell)][:limit_cells]
        if dry_run:
            click.echo("\n".join(plan(found, cells, run.load_results(found))))
            # What a draft of one's own data names is made when it is trained.
            missing = run.missing_files(cells) if data is None else []
            if missing:
                click.echo(f"not here, and needed for training: {', '.join(missing)}", err=True)
            return 0
    failed: list[str] = []
    if retrain:
        run.forget(found, cells)
    if train or retrain:
        places = parallel.slots(jobs)
        with contextlib.redirect_stdout(sys.stderr):  # the tables alone are this command's output
            # Which GPU a training sees cannot be changed in this process.
            if len(places) > 1 or "CUDA_VISIBLE_DEVICES" in places[0]:
                failed = parallel.run_in_processes(file, found, cells, places, _say)
            else:
                failed = run.run_cells(found, cells, run.real_work(), _say)
    show(found, plots=plots)
    if failed:
        click.echo(f"{len(failed)} cells failed: {', '.join(failed)}", err=True)
    return 1 if failed else 0


def show(found: Study, *, plots: bool) -> None:
    """Prints the study's tables, and draws its plots beside its results."""
    results = run.load_results(found)
    finished = sum(result.error is None for result in results.values())
    click.echo(f"{finished} of {len(found.cells)} cells are finished", err=True)
    click.echo(results_table(found, results))
    if not finished:
        return
    click.echo(differences_table(found, results))
    if not plots:
        return
    try:
        from train.study.plots import draw

        drawn = draw(found, results, found.plots)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        click.echo("no plots: matplotlib is not installed (pip install 'r2d-edge[train]')", err=True)
        return
    for path, words in drawn.items():
        click.echo(f"![{words}]({path.as_posix()})", err=True)


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--seeds are whole numbers with commas between them, not {text!r}") from None


def _say(text: str) -> None:
    click.echo(text, err=True)
