"""`r2d-edge info`: versions, the model, and how it runs on this machine."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from r2d_edge import __version__
from r2d_edge.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from r2d_edge.bundle import Bundle
    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions

TUNE_NOTES = 4


@click.command(name="info")
@options.model
@click.option(
    "--tune", is_flag=True, help="Measure which number of threads is fastest here, and what `batch` needs; remember it."
)
@options.output_format(("text", "json"), piped="json")
@options.engine
def command(
    model: str | None, tune: bool, format_: str, device: str, compute_type: str, threads: int, workers: int
) -> None:
    """Shows versions, the model (what it is for, its labels and limits), and the engine with its threads."""
    from r2d_edge.decide import load
    from r2d_edge.engines import EngineOptions

    chosen = EngineOptions(device, compute_type, threads, workers)
    decider = load(model, chosen)
    report: dict[str, Any] = {"versions": versions(), "bundle": describe_bundle(decider.bundle)}
    if tune:
        report["tuning"] = _tune(decider, model, chosen)
        report["batch_tuning"] = _tune_batch(decider, model, chosen)
        decider = load(model, chosen)
    report["engine"] = decider.engine.describe()
    report["batch"] = _batch(decider, chosen)
    if format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(report))
    else:
        _print(report)


def versions() -> dict[str, str]:
    """What a fault report must state."""
    import ctranslate2
    import numpy as np
    import tokenizers

    return {
        "r2d-edge": __version__,
        "ctranslate2": ctranslate2.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """What a person must know of a model before using it."""
    manifest = bundle.manifest
    return {
        "name": bundle.label,
        "digest": bundle.digest,
        "bytes": sum(entry["size"] for entry in manifest.files.values()),
        "engine": f"{manifest.engine} {manifest.compute_type}",
        "labels": list(manifest.task.labels.labels),
        "label_kind": manifest.task.labels.kind,
        "limits": asdict(manifest.task.limits),
        "calibration": asdict(manifest.calibration),
        "decoding": asdict(manifest.decoding),
        **{key: manifest.extra[key] for key in ("licence", "intended_use") if key in manifest.extra},
    }


def _tune(decider: Decider, model: str | None, chosen: EngineOptions) -> dict[str, float]:
    """Times the decision of golden notes for each number of threads; milliseconds a note."""
    from dataclasses import replace

    from r2d_edge.decide import load
    from r2d_edge.threads import tune

    texts = [row["text"] for row in decider.bundle.golden()[:TUNE_NOTES]]

    def work(threads: int) -> Callable[[], object]:
        trial = load(model, replace(chosen, threads=threads))
        return lambda: [trial.decide(text) for text in texts]

    return {str(count): 1000 * seconds / len(texts) for count, seconds in tune(decider.bundle, work).items()}


def _works(decider: Decider) -> dict[str, bool]:
    """What a batch may have to write, and whether rationales are among it."""
    return {"labels": False, "rationales": True} if decider.task.explains else {"labels": False}


def _tune_batch(decider: Decider, model: str | None, chosen: EngineOptions) -> dict[str, dict[str, float]]:
    """Measures every number of workers and threads that `batch` might take; notes a second."""
    from r2d_edge.batch.tuning import Plan, is_tunable, tuned_plan
    from r2d_edge.decide import load

    if not is_tunable(decider.bundle, chosen):
        return {}
    found = {}
    for work, rationale in _works(decider).items():
        _, rates = tuned_plan(decider.bundle, chosen, lambda trial: load(model, trial), rationale=rationale)
        found[work] = {str(Plan(*choice)): round(rate, 1) for choice, rate in rates.items()}
    return found


def _batch(decider: Decider, chosen: EngineOptions) -> dict[str, str]:
    """What `batch` takes here if it is not told."""
    from r2d_edge.batch.tuning import remembered_plan

    plans = {
        work: remembered_plan(decider.bundle, chosen, rationale=rationale)
        for work, rationale in _works(decider).items()
    }
    unknown = "1 worker; measured when there is much to decide, or by `r2d-edge info --tune`"
    return {work: f"{plan}, {plan.why}" if plan else unknown for work, plan in plans.items()}


def _print(report: dict[str, Any]) -> None:
    from r2d_edge.rendering import printable

    for section, entries in report.items():
        if section == "tuning":
            entries = {f"{count} threads": f"{ms:.1f} ms a note" for count, ms in entries.items()}
        elif section == "batch_tuning":
            entries = {
                f"{work}, {plan}": f"{rate:.1f} notes a second"
                for work, rates in entries.items()
                for plan, rate in rates.items()
            }
        click.echo(section)
        width = max(map(len, entries), default=0)
        for name, value in entries.items():
            click.echo(f"  {name:<{width}}  {printable(_in_words(value))}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    return str(value)
