"""The quantization-accuracy report: does the candidate still decide as the reference does, and is it worse?

`make_report` compares two sides on labelled rows and gives one JSON-ready object, from which the page and the
terminal table are drawn. Its shape is schema 1 below; a figure that cannot be worked out is null.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge.engines import EngineOptions
from r2d_edge.errors import InputError
from r2d_edge.machine import describe_machine
from r2d_edge.metrics import jensen_shannon
from r2d_edge.report import gate as gates
from r2d_edge.report import sections
from r2d_edge.report.label_figures import macro_f1
from r2d_edge.report.labelled import LabelledRow, check_labels, choose_source, draw, read_labelled
from r2d_edge.report.rationales import compare_rationales
from r2d_edge.report.sides import (
    EXACT_FLOOR,
    WRITTEN_FLOOR,
    Answers,
    LiveSide,
    Side,
    common_labels,
    open_sides,
    sources_of,
)

SCHEMA = 1
RESAMPLES = 10_000
SEED = 13
WORST = 20

OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportOptions:
    """What may be chosen.

    Attributes:
        gate: the limits.
        source: whose rationales are the gold ones; None: what the model learned from, or the only one there is.
        rationales: whether rationales are written and compared.
        bertscore: the folder of BERTScore's encoder; None leaves it out.
        show_texts: whether the worst rows carry their notes and rationales.
        limit: compare only so many rows, drawn with the seed.
        resamples: of the bootstrap.
        seed: of everything that is drawn.
        setting: where the notes come from, as a bundle's calibration names it.
        labels: for two files of decisions, the labels, most severe first.
        worst: how many rows of the greatest drift are listed.
    """

    gate: gates.Gate = field(default_factory=gates.Gate)
    source: str | None = None
    rationales: bool = True
    bertscore: Path | None = None
    show_texts: bool = False
    limit: int | None = None
    resamples: int = RESAMPLES
    seed: int = SEED
    setting: str | None = None
    labels: tuple[str, ...] | None = None
    worst: int = WORST


def make_report(
    reference: str,
    candidate: str,
    data: Sequence[Path],
    options: ReportOptions | None = None,
    engine: EngineOptions | None = None,
    *,
    command: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Compares two sides.

    Args:
        reference: what is trusted: a bundle (name, folder or .zip), a checkpoint folder, or a .jsonl of decisions.
        candidate: what is to replace it, given as the reference is.
        data: files of labelled rows (see `labelled.read_labelled`).
        options: what may be chosen.
        engine: what the engines may use of this machine.
        command: the command line, to be kept in the report.
        on_step: called as rows are decided, with the side's name, the rows done and all rows.

    Returns:
        The report, JSON-ready.

    Raises:
        MismatchError: the sides have different label sets.
        InputError: rows or decisions cannot be read, or no row was answered by both sides.
        R2DError: a side cannot be opened or run.
    """
    options = options or ReportOptions()
    warnings: list[str] = []
    rows, files = read_labelled(data)
    sides = open_sides(reference, candidate, engine or EngineOptions(), setting=options.setting)
    labels = common_labels(*sides, options.labels)
    check_labels(rows, labels)
    source = choose_source(rows, options.source, [name for side in sides for name in sources_of(side)])
    rows = draw(rows, options.limit, options.seed)
    _warn_of_differences(*sides, warnings)
    first, second = (
        side.answer(rows, labels, rationales=options.rationales, on_row=_counter(on_step, name, len(rows)))
        for name, side in zip(("reference", "candidate"), sides, strict=True)
    )
    answered = [set(np.flatnonzero(side.labels >= 0).tolist()) for side in (first, second)]
    places = sorted(answered[0] & answered[1])
    if not places:
        raise InputError("no row was given a label by both sides: there is nothing to compare")
    said = sections.Labels(
        labels.labels,
        np.array([labels.index(rows[place].gold) for place in places], dtype=np.int64),
        first.labels[places],
        second.labels[places],
    )
    floor = EXACT_FLOOR if all(side.exact for side in sides) else WRITTEN_FLOOR
    one, other = (_floored(side.probabilities[places], floor) for side in (first, second))
    temperatures = (sides[0].description["temperature"], sides[1].description["temperature"])
    draws = sections.Draws(options.resamples, options.seed)
    ordered = labels.kind == "ordered"
    without = [place for place in places if source is not None and source not in rows[place].rationales]
    checks = [
        gates.check_answered(len(answered[0] - answered[1]), len(answered[1] - answered[0]), len(rows)),
        *_check_labels(said, options, ordered=ordered),
        gates.check_ece(
            *sections.ece_figures(said, one, other),
            options.gate.ece_increase,
            seed=options.seed,
            resamples=options.resamples,
        ),
    ]
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "compared": {
            "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command,
            "data": {
                "name": ", ".join(file.name for file in files),
                "sha256": files[0].sha256 if len(files) == 1 else _digest([file.sha256 for file in files]),
                "files": [asdict(file) for file in files],
                "rows": sum(file.rows for file in files),
                "asked": len(rows),
                "used": len(places),
                "source": source,
                "without_rationale": len(without) if source is not None else None,
            },
            "labels": list(labels.labels),
            "label_kind": labels.kind,
            **{
                name: {
                    **side.description,
                    "truncated": answers.truncated,
                    "abstained": answers.abstained,
                    "unanswered": int((answers.labels < 0).sum()),
                }
                for name, side, answers in zip(("reference", "candidate"), sides, (first, second), strict=True)
            },
            "machine": describe_machine(),
            "setting": options.setting,
            "resamples": options.resamples,
            "seed": options.seed,
            "warnings": warnings,
        },
        "quality": sections.quality(said, draws),
        "flips": sections.flips(said, draws, ordered=ordered),
        "drift": sections.drift(said, one, other, temperatures),
        "calibration": sections.calibrated(said, one, other, temperatures, options.seed),
        "rationales": compare_rationales(rows, first, second, places, source, options.bertscore, warnings)
        if options.rationales
        else None,
        "worst": _worst(rows, places, said, one, other, (first, second), options),
        "verdict": gates.verdict(options.gate, checks, ordered=ordered),
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def _counter(on_step: OnStep | None, name: str, total: int) -> Callable[[], None]:
    """What counts a side's rows."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(name, done, total)

    return count


def _check_labels(said: sections.Labels, options: ReportOptions, *, ordered: bool) -> list[gates.Check]:
    """The checks on flips and macro-F1."""
    limits, n = options.gate, len(said.gold)
    steps = said.candidate - said.reference
    checks = [gates.check_flips(int((steps != 0).sum()), n, limits.flips)]
    if ordered:
        under, over = int((steps > 0).sum()), int((steps < 0).sum())
        checks.append(gates.check_net_under_triage(under, over, n, limits.net_under_triage))
    k = len(said.names)
    support = {name: int((said.gold == place).sum()) for place, name in enumerate(said.names)}
    checks.append(
        gates.check_macro_f1(
            macro_f1(said.gold, said.reference, k),
            macro_f1(said.gold, said.candidate, k),
            support,
            limits.macro_f1_loss,
            seed=options.seed,
            resamples=options.resamples,
        )
    )
    return checks


def _warn_of_differences(reference: Side, candidate: Side, warnings: list[str]) -> None:
    """Says what else differs between the sides than their weights' types."""
    if isinstance(reference, LiveSide) and isinstance(candidate, LiveSide):
        for key, what in (("prompts", "the prompts"), ("decoding", "how rationales are decoded")):
            if reference.description[key] != candidate.description[key]:
                warnings.append(f"the sides differ in {what}: what is compared is more than a quantization")
        one, other = (side.decider.task.limits for side in (reference, candidate))
        if one != other:
            warnings.append("the sides differ in the task's token limits: what is cut off differs")
    if reference.description["temperature"] != candidate.description["temperature"]:
        known = None not in (reference.description["temperature"], candidate.description["temperature"])
        told = "; drift is given without them too" if known else " or one of them is not known"
        warnings.append(f"the sides' temperatures differ{told}: probabilities drift by that as well")
    if reference.description["digest"] == candidate.description["digest"]:
        warnings.append("both sides are the same: this report can find no difference")


def _floored(probabilities: sections.Floats, floor: float) -> sections.Floats:
    """Probabilities of which none is below the floor, rows summing to 1."""
    raised = np.maximum(probabilities, floor)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _worst(
    rows: Sequence[LabelledRow],
    places: Sequence[int],
    said: sections.Labels,
    reference: sections.Floats,
    candidate: sections.Floats,
    answers: tuple[Answers, Answers],
    options: ReportOptions,
) -> list[dict[str, Any]]:
    """The rows whose probabilities moved most."""
    moved = jensen_shannon(reference, candidate)
    found = []
    for number in np.argsort(-moved, kind="stable")[: options.worst].tolist():
        row = rows[places[number]]
        entry = {
            "id": row.id,
            "drift": float(moved[number]),
            "reference_label": said.names[said.reference[number]],
            "candidate_label": said.names[said.candidate[number]],
            "gold": row.gold,
            "reference_probability": float(reference[number, said.reference[number]]),
            "candidate_probability": float(candidate[number, said.candidate[number]]),
        }
        if options.show_texts:
            entry["text"] = row.text
            for name, side in zip(("reference", "candidate"), answers, strict=True):
                entry[f"{name}_rationale"] = side.rationales[places[number]]
        found.append(entry)
    return found


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("".join(parts).encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    """JSON-ready data: what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
