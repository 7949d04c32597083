"""`r2d-edge batch --engine ray`: the same command, its work handed out by Ray."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from r2d_edge.errors import EngineError

if TYPE_CHECKING:
    from r2d_edge.batch.job import Summary
    from r2d_edge.tables import Reading

# What `batch` is asked on the way to a cluster; all else belongs to a run on this machine.
_KNOWN = {
    "inputs", "output", "format_", "input_format", "text_column", "id_column", "delimiter", "where", "model",
    "rationale", "check", "strict", "force", "engine", "device", "compute_type", "threads", "workers", "batch_size",
    "setting", "beam_size",
}  # fmt: skip


def decide_on_ray(context: click.Context, reading: Reading, format_: str) -> Summary:
    """Does what `batch` was asked on a cluster.

    Raises:
        click.UsageError: an option has no meaning there, or one that it needs is missing.
        EngineError: Ray is not installed.
        R2DError: as `run_on_ray`.
    """
    given = context.params
    _refuse(context)
    try:
        from r2d_edge.batch.cluster import ClusterJob, run_on_ray
    except ImportError as error:
        raise EngineError(
            f'--engine ray needs a library that is not installed: {error}; run: pip install "r2d-edge[ray]"'
        ) from None
    from r2d_edge.engines import EngineOptions

    job = ClusterJob(
        inputs=given["inputs"],
        output=given["output"],
        format=format_,
        reading=reading,
        model=given["model"],
        engine=EngineOptions(given["device"], given["compute_type"], given["threads"], given["workers"]),
        setting=given["setting"],
        beam_size=given["beam_size"],
        rationale=given["rationale"],
        check=given["check"],
        batch_size=given["batch_size"],
        strict=given["strict"],
        force=given["force"],
    )
    return run_on_ray(job, shown=sys.stderr.isatty())


def _refuse(context: click.Context) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _KNOWN and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} is for --engine local")
    if "-" in context.params["inputs"]:
        raise click.UsageError("stdin is for --engine local: a cluster reads files")
    if context.params["input_format"] == "text":
        raise click.UsageError("--input-format text is for --engine local: a cluster reads tables")
    if context.params["workers"] is None:
        raise click.UsageError("--engine ray needs --workers: how many processes load the model")
