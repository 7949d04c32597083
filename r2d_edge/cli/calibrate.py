"""`r2d-edge calibrate`: probabilities, label sets and abstention that hold for this bundle and these notes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r2d_edge.cli import GATE_FAILED, options, say

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle
    from r2d_edge.fitting import Calibrated, Goal

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _share(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < 1:
        raise click.BadParameter(f"must lie between 0 and 1, not {value:g}")
    return value


def _costs(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float]:
    if value is None:
        return 0.0, 0.0
    try:
        under, over = (float(part) for part in value.split(":"))
    except ValueError:
        raise click.BadParameter("must be two numbers, such as 5:1") from None
    if not (0 < under < 1e6 and 0 < over < 1e6):
        raise click.BadParameter("both costs must be above 0")
    return under, over


@click.command(name="calibrate")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--data", "files", type=_FILE, multiple=True, metavar="FILE", help="JSON Lines with `text` and `label`.")
@click.option(
    "--setting",
    "settings",
    type=(str, _FILE),
    multiple=True,
    metavar="NAME FILE",
    help="The same, from a setting that gets its own calibration if that helps on held-out rows.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="NEW", help="The new bundle, folder or .zip.")
@click.option("--in-place", is_flag=True, help="Change BUNDLE itself.")
@click.option(
    "--risk", type=float, default=0.10, show_default=True, callback=_share, help="Of the decided notes, at most."
)
@click.option(
    "--risk-of",
    type=click.Choice(("under-triage", "error")),
    help="What the risk counts.  [default: under-triage of ordered labels, else error]",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, callback=_share, help="Of that bound.")
@click.option("--no-threshold", is_flag=True, help="Fit no threshold: nothing is abstained on for low confidence.")
@click.option(
    "--coverage", type=float, default=0.9, show_default=True, callback=_share, help="Of the label sets, for each label."
)
@click.option(
    "--cost",
    "costs",
    callback=_costs,
    metavar="UNDER:OVER",
    help="Give the label of least expected cost, a level too low costing UNDER and one too high OVER.",
)
@click.option("--round-up", is_flag=True, help="When in doubt, give the most severe label of the label set.")
@click.option("--check-rationale", is_flag=True, help="Abstain where the rationale alone leads to another label.")
@click.option(
    "--keep-temperature",
    is_flag=True,
    help="Keep BUNDLE's temperatures; they must have been fitted on other rows than these.",
)
@click.option("--seed", type=click.IntRange(min=0), default=13, show_default=True, help="Of dealing out the rows.")
@options.output_format(("text", "json"), piped="json")
@options.engine
@click.pass_context
def command(
    context: click.Context,
    bundle: str,
    files: tuple[Path, ...],
    settings: tuple[tuple[str, Path], ...],
    output: Path | None,
    in_place: bool,
    risk: float,
    risk_of: Any,
    confidence: float,
    no_threshold: bool,
    coverage: float,
    costs: tuple[float, float],
    round_up: bool,
    check_rationale: bool,
    keep_temperature: bool,
    seed: int,
    format_: str,
    device: str,
    compute_type: str,
    threads: int,
    workers: int,
) -> None:
    """Calibrates BUNDLE on labelled notes that it was not trained on, and seals it anew.

    A third of the rows fits the temperature, the others the label sets and the threshold below which a note is
    abstained on. Where no threshold keeps the risk with that confidence, or the rows are too few to show it,
    nothing is written (exit code 5). A setting that no rows come from is unknown to the new bundle.
    """
    if not files and not settings:
        raise click.UsageError("give labelled rows with --data or --setting")
    if (output is None) is not in_place:
        raise click.UsageError("give either -o NEW or --in-place")
    from r2d_edge.assembly import is_parts
    from r2d_edge.catalogue import SHORT_NAMES, model_names
    from r2d_edge.decide import load
    from r2d_edge.engines import EngineOptions
    from r2d_edge.errors import InputError
    from r2d_edge.fitting import Goal, calibrate, read_rows
    from r2d_edge.policy import Policy
    from r2d_edge.resealing import calibrate_in_place, write_calibrated

    # Told by its name: opening a model that comes in parts would assemble it first.
    if in_place and (SHORT_NAMES.get(bundle, bundle) in model_names() or is_parts(Path(bundle))):
        raise InputError(f"{bundle} comes with this package or in parts and is not changed in place: give -o NEW")
    if output is not None and output.exists():
        raise InputError(f"{output} exists: give another name, or --in-place to calibrate a bundle where it is")
    decider = load(bundle, EngineOptions(device, compute_type, threads, workers))
    goal = Goal(
        risk=risk,
        risk_of=risk_of,
        confidence=confidence,
        coverage=coverage,
        policy=Policy(*costs, round_up=round_up, check_rationale=check_rationale),
        threshold=not no_threshold,
        keep_temperature=keep_temperature,
        seed=seed,
    )
    rows = read_rows(
        decider,
        [*files, *(file for _, file in settings)],
        [*(None for _ in files), *(name for name, _ in settings)],
    )
    found = calibrate(decider, rows, goal)
    written = None
    if not found.failed:
        if output is not None:
            written = write_calibrated(decider.bundle, found.calibration, output)
        else:
            written = calibrate_in_place(decider.bundle, found.calibration, Path(bundle))
            _tell_of_signature(decider.bundle, written, Path(bundle))
        _tell_of_dropped(found, written)
    if format_ == "json":
        from r2d_edge.rendering import json_text

        click.echo(json_text(_record(found, goal, written)))
    else:
        _print(found, goal, written)
    for setting in found.failed:
        say(_why_none(found, goal, setting))
    if found.failed:
        context.exit(GATE_FAILED)


def _tell_of_signature(before: Bundle, after: Bundle, path: Path) -> None:
    """Says that a signature beside a bundle is not one of the new manifest."""
    from r2d_edge.integrity.signing import signature_file

    signature = signature_file(path)
    if signature.exists() and after.digest != before.digest:
        say(
            f"{signature} no longer matches: it was made before this calibration. Let who holds the key sign anew "
            "(`r2d-edge sign`); until then `r2d-edge verify --public-key` refuses the bundle"
        )


def _tell_of_dropped(found: Calibrated, written: Bundle) -> None:
    """Says which of the old bundle's settings the new one does not know."""
    if found.dropped:
        names = ", ".join(repr(name) for name in found.dropped)
        say(
            f"{written.label} does not know setting {names}: nothing was fitted there, so no bound would hold; "
            "who asks for it with --setting is refused"
        )


def _record(found: Calibrated, goal: Goal, written: Bundle | None) -> dict[str, Any]:
    return {
        "bundle": written.label if written is not None else None,
        "calibration": vars(found.calibration),
        "risk": {"of": found.risk_of, "at_most": goal.risk, "confidence": goal.confidence},
        "abstention": {setting or "": vars(one) for setting, one in found.abstentions.items()},
        "label_rows": {setting or "": rows for setting, rows in found.label_rows.items()},
        "held_out": found.held_out,
    }


def _print(found: Calibrated, goal: Goal, written: Bundle | None) -> None:
    from r2d_edge.rendering import printable

    for setting, rows in found.label_rows.items():
        here = found.calibration.in_setting(setting)
        click.echo(f"{'all notes' if setting is None else 'setting ' + printable(setting)}")
        click.echo(f"  temperature {here.temperature:g}")
        one = found.abstentions.get(setting)
        if one is not None and one.threshold is not None:
            click.echo(
                f"  abstain below {one.threshold:g}: {one.decided} of {one.rows} rows decided, {one.errors} of them "
                f"{found.risk_of}; at most {100 * goal.risk:g} % with {100 * goal.confidence:g} % confidence"
            )
        click.echo(f"  label sets of coverage {here.label_set['coverage']:g} for each label:")
        for name, threshold in here.label_set["thresholds"].items():
            kept = "in every set: too few rows" if threshold >= 1 else f"from a probability of {1 - threshold:.3f}"
            click.echo(f"    {printable(name)}: {kept} ({rows[name]} rows)")
    if written is not None:
        click.echo(f"{printable(written.label)} at {written.root}")


def _why_none(found: Calibrated, goal: Goal, setting: str | None) -> str:
    one = found.abstentions[setting]
    where = "" if setting is None else f" in setting {setting!r}"
    if one.rows < one.needed:
        why = f"the rows are too few: {one.rows}, and {one.needed} would be needed even if none were an error"
    else:
        why = (
            f"no threshold qualifies: the least that {found.risk_of} among the decided was shown to be at most is "
            f"{one.bound:.3f}"
        )
    return (
        f"risk {goal.risk:g} at confidence {goal.confidence:g}{where}: {why}; nothing was written. Give more rows, "
        "another --risk, or --no-threshold"
    )
