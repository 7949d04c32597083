"""`python -m benchmarks`: what a decision costs, beside the full-size model and other engines."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks import infer, machine, models, plot, speed, targets
from benchmarks.machine import MachineBusyError
from benchmarks.making import Tell
from benchmarks.process import SideError, run_tool
from benchmarks.shapes import SHAPES
from benchmarks.show import show, wide_console

SCHEMA = 1
PARTS = ("latency", "throughput", "memory", "coldstart")
FULL_SHAPE = "small"  # the one with all sides; larger ones with PyTorch and CTranslate2 alone
EQUAL_WORK = (
    "Under `equal` every side reads the same two prompts of each note (label, then rationale of the gold label) and "
    "writes exactly the same number of tokens: transformers, optimum and CTranslate2 by a minimum length equal to the "
    "maximum, llama.cpp by not being told the end token. Under `natural` each stops where its model does, with the "
    "bundle's rules against repetition; r2d-edge there also explains its own label and checks the rationale's numbers."
)
CLOCKS = (
    "Wall time by time.perf_counter, processor time by time.process_time (all threads of the side's process). One "
    "warm-up note before; sides take turns. p95 of 30 notes is the second slowest, p99 of fewer than 100 the slowest. "
    "Peak memory is the process's own, after one whole note, nothing subtracted."
)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command may be told."""
    for option in reversed(
        (
            click.option(
                "--shapes", default=FULL_SHAPE, show_default=True, help="T5 shapes: small, base, large; or none."
            ),
            click.option("--embedded/--no-embedded", default=True, show_default=True, help="The embedded model."),
            click.option("--checkpoint", type=FOLDER, help="The embedded model's full-size checkpoint."),
            click.option("--student", type=FOLDER, help="A bundle distilled from that checkpoint."),
            click.option(
                "--onnx-python",
                envvar="ONNX_PYTHON",
                help="A Python with optimum-onnx, for ONNX Runtime.  [env: ONNX_PYTHON]",
            ),
            click.option("--report", type=FILE, help="report.json, checkpoint against int8: flips."),
            click.option("--student-report", type=FILE, help="report.json, checkpoint against student: macro-F1 lost."),
            click.option("--notes", default=30, show_default=True, type=click.IntRange(1, 400), help="For latency."),
            click.option("--many", default=64, show_default=True, type=click.IntRange(1, 400), help="For throughput."),
            click.option(
                "--tokens", default=48, show_default=True, type=click.IntRange(2, 127), help="Of a rationale."
            ),
            click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Sides take turns."),
            click.option("--budget", default=60.0, show_default=True, help="Seconds a side and kind of measurement."),
            click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Cold starts."),
            click.option(
                "--cache", default=models.DEFAULT_CACHE, type=click.Path(path_type=Path), help="For what is made."
            ),
            click.option("--busy-ok", is_flag=True, help="Measure although something else uses the processor."),
            click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write."),
            click.option(
                "--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="SVG file to write."
            ),
        )
    ):
        command = option(command)
    return command


@click.group(help="What a decision costs: r2d-edge beside the full-size model and other engines.")
def main() -> None:
    """The command line of this room."""


def _command(name: str, parts: tuple[str, ...], text: str) -> None:
    @main.command(name, help=text)
    @_options
    def command(**options: Any) -> None:
        run(frozenset(parts), **options)


_command("all", PARTS, "All of the below, in one run.")
_command("latency", ("latency",), "Label, first token, whole rationale, tokens a second, processor time.")
_command("throughput", ("throughput",), "Many notes of mixed lengths at once.")
_command("memory", ("memory",), "Peak memory of every side and of `r2d-edge infer`.")
_command("coldstart", ("coldstart",), "From process start to the first label.")


@main.command("figures")
@click.argument("result", type=FILE)
@click.option("--report", type=FILE, help="report.json, checkpoint against int8: flips.")
@click.option("--student-report", type=FILE, help="report.json, checkpoint against student: macro-F1 lost.")
def judge(result: Path, report: Path | None, student_report: Path | None) -> None:
    """Holds what a run of `all` measured against the figures to reach again, with reports made since.

    RESULT is its JSON file, whose `figures` are replaced.
    """
    data = _read(result) or {}
    data["figures"] = _rounded(targets.figures(data["models"], _read(report), _read(student_report)))
    show({**data, "models": {}}, wide_console())
    _write(data, result, None, lambda what: None)
    click.echo(json.dumps(data, ensure_ascii=False))


def run(
    parts: frozenset[str],
    *,
    shapes: str,
    embedded: bool,
    checkpoint: Path | None,
    student: Path | None,
    onnx_python: str | None,
    report: Path | None,
    student_report: Path | None,
    notes: int,
    many: int,
    tokens: int,
    rounds: int,
    budget: float,
    runs: int,
    cache: Path,
    busy_ok: bool,
    output: Path | None,
    picture: Path | None,
) -> None:
    """Measures, shows, and writes what was asked for; the last line of standard output is the JSON."""
    wanted = _shapes(shapes)
    console = wide_console()

    def tell(what: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {what}", highlight=False)

    started = time.perf_counter()
    reports = _read(report), _read(student_report)
    _refuse_if_busy(busy_ok)  # before the minutes that making things takes
    choice = models.Choice(cache, tokens, checkpoint, student, onnx_python, gpu=_has_gpu())
    makers = [partial(models.embedded, choice, tell)] if embedded else []
    makers += [partial(models.shaped, f"t5-{name}", choice, tell, lean=name != FULL_SHAPE) for name in wanted]
    with ThreadPoolExecutor() as pool:  # what is made for one model does not wait for the other's
        chosen = list(pool.map(lambda make: make(), makers))
    busy = _refuse_if_busy(busy_ok)
    effort = speed.Effort(notes, rounds, many, budget, parts)
    found: dict[str, Any] = {}
    for model in chosen:
        found[model.name] = speed.measure(model, effort, tell)
        found[model.name]["infer"] = _infer(model, runs, parts, tell)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": "speed",
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "parts": sorted(parts),
        "machine": machine.describe(),
        "load": {"busy_cores_before": busy, "allowed": machine.MAX_BUSY_CORES, "busy_ok": busy_ok},
        "effort": {"notes": notes, "many": many, "rounds": rounds, "seconds": budget, "runs": runs},
        "equal_work": EQUAL_WORK,
        "clocks": CLOCKS,
        "models": found,
        "figures": targets.figures(found, *reports) if parts == frozenset(PARTS) else [],
        "seconds": time.perf_counter() - started,
    }
    result["load"]["busy_cores_after"] = machine.busy_cores()
    result = _rounded(result)
    show(result, console)
    _write(result, output, picture, tell)
    click.echo(json.dumps(result, ensure_ascii=False))


def _refuse_if_busy(busy_ok: bool) -> float:
    try:
        return machine.refuse_if_busy(busy_ok)
    except MachineBusyError as error:
        raise click.ClickException(str(error)) from None


def _infer(model: models.Model, runs: int, parts: frozenset[str], tell: Tell) -> dict[str, Any]:
    """The product's own process with each bundle; a failure is a reason."""
    found: dict[str, Any] = {}
    for side, path in model.bundles.items():
        tell(f"{model.name}: r2d-edge infer, {side}")
        try:
            found[side] = infer.measure(path, runs, parts)
        except (SideError, RuntimeError) as error:
            found[side] = {"reason": str(error)}
    return found


def _write(result: dict[str, Any], output: Path | None, picture: Path | None, tell: Tell) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        output.write_text(text, encoding="utf-8", newline="\n")
        tell(f"wrote {output}")
    if picture is not None:
        try:
            plot.draw(result, picture)
        except (ImportError, ValueError) as error:
            raise click.ClickException(f"no plot was drawn: {error}") from None
        tell(f"wrote {picture}")


def _shapes(text: str) -> list[str]:
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    known = [name.removeprefix("t5-") for name in SHAPES]
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(known)}", param_hint="--shapes")
    return names


def _has_gpu() -> bool:
    """Asked in a process of its own: this one stays free of CUDA."""
    code = "import ctranslate2, torch; print(ctranslate2.get_cuda_device_count() and torch.cuda.is_available())"
    try:
        return run_tool([sys.executable, "-c", code], threads=1).strip() == "True"
    except SideError:
        return False


def _read(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read as JSON: {type(error).__name__}") from None
    return data


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [_rounded(item) for item in value]
    return value


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
