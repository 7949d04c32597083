"""The figures to reach, each with what was measured: reached, not reached, or not measured and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.models import FULL_SIZE, HALF_SIZE, INT8, PRODUCT, STUDENT, TRIMMED

Result = Mapping[str, Any]

SMALL = "t5-small"
NANO = "triage-nano"
SHALLOW = (f"{TRIMMED}, decoder of 2", f"{TRIMMED}, decoder of 1")
LEAST_SPEEDUP = 3.0
LEAST_TRIMMED = 4.5
LEAST_SHALLOW = 10.0
MOST_SIZE = 0.26
MOST_INFER_BYTES = 150e6
MOST_LABEL_MS = 15.0
MOST_NOTE_MS = 120.0
LEAST_OVER_TRANSFORMERS = 2.5
LEAST_OVER_ONE_CALL = 1.8
MOST_FLIPS = 0.01
MOST_UNDER_TRIAGE = 0.005
MOST_F1_LOST = 0.01
# Known reasons of figures that were missed on the machine this was written on.
WHY_MEMORY = (
    "Python with its libraries, the 32,000-piece vocabulary in the tokenizers library, the model and its work space; "
    "a trimmed vocabulary makes all but the first smaller, as the next row shows"
)
WHY_FLIPS = (
    "int8 rounds the activations of MiniLM's layers, whose outliers it forgives badly; learning under that rounding in "
    "the last third of training brought the flips down to this"
)
WHY_LOST_F1 = "one decoder layer, taught on 3,491 notes for three epochs; the interval over notes is wide"
WHY_LABEL = "it is the encoder's time, which goes with the note's length; a note of the corpus is half as long"
WHY_NOTE = "most of it is the rationale, whose length the model chooses"
_BF16 = "this processor multiplies bfloat16 in hardware, and in batches that is faster than float32"
_REVISION = "r2d-edge also writes sentences anew whose numbers the note does not hold"
WHY_MANY: Mapping[str, Mapping[str, str | None]] = {
    SMALL: {
        FULL_SIZE: None,
        HALF_SIZE: _BF16,
        INT8: (
            "labels are scored in batches of one length only, so that none depends on its neighbours, and the rest is "
            "decoding, which gains little from smaller batches"
        ),
    },
    NANO: {
        FULL_SIZE: f"{_REVISION}; transformers does not",
        HALF_SIZE: f"{_BF16}; and {_REVISION}",
        INT8: f"{_REVISION}; the engine call does not",
    },
}


def figures(
    models: Mapping[str, Result], report: Result | None = None, student_report: Result | None = None
) -> list[dict[str, Any]]:
    """Every figure to reach, in the order in which they were asked for.

    Args:
        models: what `speed.measure` gave, with `infer` beside the sides, by name.
        report: a report.json of the embedded model at full size against int8; None: there is none.
        student_report: the same of the full-size teacher against the student.

    Returns:
        For each: `name`, `target` (a limit with its sign), `value`, `reached` (null: not measured), `reason`.
    """
    small, nano = models.get(SMALL, {}), models.get(NANO, {})
    return [
        _speedup("int8 against transformers fp32, batch 1, T5-small shape", LEAST_SPEEDUP, small, (INT8,)),
        _speedup("the same with trimmed vocabulary", LEAST_TRIMMED, small, (TRIMMED,)),
        _speedup("trimmed, with a shallow decoder, T5-small shape", LEAST_SHALLOW, small, SHALLOW),
        _speedup("distilled student against its full-size teacher", LEAST_SHALLOW, nano, (STUDENT,)),
        _lost_f1(student_report),
        _size("size of the network, int8 of fp32, T5-small shape", small),
        _size("size of the network, int8 of fp32, triage-nano", nano),
        _parity("label log-probabilities, int8, T5-small shape", small),
        _parity("label log-probabilities, int8, triage-nano", nano),
        *_flips(report),
        _memory("T5-small shape, int8", INT8, small, why=WHY_MEMORY),
        _memory("T5-small shape, int8, trimmed vocabulary", TRIMMED, small),
        _latency("triage-nano, 150-token note: label, ms", "label", MOST_LABEL_MS, nano, WHY_LABEL),
        _latency("triage-nano, 150-token note: label and rationale, ms", "note", MOST_NOTE_MS, nano, WHY_NOTE),
        *(figure for name, model in ((SMALL, small), (NANO, nano)) for figure in _throughput(name, model)),
    ]


def _figure(
    name: str,
    limit: float,
    value: float | None,
    reason: str | None = None,
    *,
    least: bool = False,
    why: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One figure.

    Args:
        name: what was measured.
        limit: to reach.
        value: None: not measured.
        reason: why it was not measured.
        least: the value must be at least the limit, else at most.
        why: it is not reached, where that is so and known.
        more: said beside it.
    """
    reached = None if value is None else (value >= limit if least else value <= limit)
    if reached is None and reason is None:
        reason = "not measured in this run"
    elif reached is False:
        reason = why
    target = f"{'≥' if least else '≤'} {limit:g}"
    return {"name": name, "target": target, "value": value, "reached": reached, "reason": reason, **more}


def _side(model: Result, name: str) -> Result:
    found: Result = model.get("sides", {}).get(name, {})
    return found


def _why_not(model: Result, *names: str) -> str | None:
    """The reason of the first of these sides that has none of its figures."""
    reasons = (f"{name}: {reason}" for name in names if (reason := _side(model, name).get("reason")))
    return next(reasons, None)


def _speedup(name: str, limit: float, model: Result, sides: tuple[str, ...]) -> dict[str, Any]:
    """The fastest of some sides against the full-size model, one thread, equal work."""
    found = {side: _side(model, side).get("times_full_size", {}).get("equal") for side in sides}
    known = {side: times for side, times in found.items() if times is not None}
    if not known:
        return _figure(name, limit, None, _why_not(model, FULL_SIZE, *sides), least=True)
    best = max(known, key=lambda side: known[side]["value"])
    interval = [known[best]["low"], known[best]["high"]]
    return _figure(name, limit, known[best]["value"], least=True, interval=interval, side=best)


def _size(name: str, model: Result) -> dict[str, Any]:
    small, full = (_side(model, side).get("size_bytes") for side in (INT8, FULL_SIZE))
    if not small or not full:
        return _figure(name, MOST_SIZE, None, _why_not(model, FULL_SIZE, INT8))
    return _figure(name, MOST_SIZE, small / full)


def _parity(name: str, model: Result) -> dict[str, Any]:
    """The conversion's own proof, in nats, within the bound that it was held to."""
    proof = model.get("parity", {}).get(INT8)
    if not proof:
        return _figure(name, 1.0, None, "no proof is known of this model")
    return _figure(name, proof["bound"], proof["measured"])


def _flips(report: Result | None) -> list[dict[str, Any]]:
    names = ("label flips int8 against fp32, share of notes", "net under-triage by these flips, share of notes")
    limits = (MOST_FLIPS, MOST_UNDER_TRIAGE)
    if report is None:
        reason = "no report was given (--report)"
        return [_figure(name, limit, None, reason) for name, limit in zip(names, limits, strict=True)]
    flips = report["flips"]
    values = (flips["rate"], flips["ordered"]["net_under_rate"] if flips["ordered"] else None)
    rows = {"rows": report["compared"]["data"]["used"]}
    whys = (WHY_FLIPS, None)
    return [
        _figure(name, limit, value, why=why, **rows)
        for name, limit, value, why in zip(names, limits, values, whys, strict=True)
    ]


def _lost_f1(report: Result | None) -> dict[str, Any]:
    name = "macro-F1 that the student lost"
    if report is None:
        return _figure(name, MOST_F1_LOST, None, "no report of a student was given (--student-report)")
    found = report["quality"]["difference"]["macro_f1"]
    interval = [-found["high"], -found["low"]]
    return _figure(name, MOST_F1_LOST, -found["value"], why=WHY_LOST_F1, interval=interval)


def _memory(of: str, side: str, model: Result, why: str | None = None) -> dict[str, Any]:
    name = f"peak memory of `r2d-edge infer`, {of}, bytes"
    infer = model.get("infer", {}).get(side, {})
    return _figure(name, MOST_INFER_BYTES, infer.get("peak_bytes"), infer.get("reason"), why=why)


def _latency(name: str, part: str, limit: float, model: Result, why: str) -> dict[str, Any]:
    """Of the product, median over the fixed note's repetitions."""
    side = _side(model, PRODUCT)
    found = side.get("latency", {}).get("fixed note", {}).get("ms", {}).get(part, {})
    return _figure(name, limit, found.get("p50"), side.get("reason"), why=why, p95=found.get("p95"))


def _throughput(name: str, model: Result) -> list[dict[str, Any]]:
    """`decide_many` against transformers' best batch size and against CTranslate2 in one unsplit call."""
    product, full, half, one = (
        _side(model, side).get("throughput", {}).get("best", {}) for side in (PRODUCT, FULL_SIZE, HALF_SIZE, INT8)
    )
    found = []
    for title, limit, side, other in (
        (
            f"best batch size of transformers fp32 ({full.get('batch_size', '?')})",
            LEAST_OVER_TRANSFORMERS,
            FULL_SIZE,
            full,
        ),
        (f"transformers bf16 ({half.get('batch_size', '?')})", LEAST_OVER_TRANSFORMERS, HALF_SIZE, half),
        ("one unsplit engine call", LEAST_OVER_ONE_CALL, INT8, one),
    ):
        value = other["seconds"] / product["seconds"] if product and other else None
        reason = None if value is not None else _why_not(model, PRODUCT, side)
        why = WHY_MANY[name][side]
        found.append(_figure(f"mixed notes at once against {title}, {name}", limit, value, reason, least=True, why=why))
    return found
