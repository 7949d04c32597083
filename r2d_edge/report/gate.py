"""The gate: the limits that a candidate must keep, and whether these rows can show that it does.

A limit is certified only by a bound: what the true figure is at most, with 95 % confidence (one-sided), given
the rows there are. A figure within its limit on too few rows is neither passed nor failed. Of flips that were
not seen at all the bound is about 3/n, the rule of three (Hanley and Lippman-Hand 1983, JAMA 249:1743).
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.bootstrap import Figure, difference
from r2d_edge.errors import InputError
from r2d_edge.metrics import net_share_at_most, share_at_most

LEVEL = 0.95
MAX_ROWS_NEEDED = 10_000_000

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gate:
    """Limits as shares (0.01 is one in a hundred).

    Attributes:
        flips: share of rows on which the candidate's label is another than the reference's.
        net_under_triage: share of rows that flip to a less severe label, less the share that flip to a more
            severe one; for ordered labels only.
        macro_f1_loss: macro-F1 of the reference less that of the candidate.
        ece_increase: expected calibration error of the candidate less that of the reference.
    """

    flips: float = 0.01
    net_under_triage: float = 0.005
    macro_f1_loss: float = 0.01
    ece_increase: float = 0.02

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{name} must be a share above 0 and up to 1, not {value!r}")


@dataclass(frozen=True)
class Check:
    """One limit, held against the rows.

    Attributes:
        value: what was measured.
        bound: what the figure is at most, with 95 % confidence (one-sided); None where nothing bounds it.
        limit: what is allowed.
        passed: None where the value is within the limit and the bound is not.
        said: the same in a sentence.
        rows_needed: about how many rows would bring the bound below the limit at the same rates; None where that
            is not the question or they would be more than ten million.
    """

    name: str
    value: float
    bound: float | None
    limit: float
    passed: bool | None
    said: str
    rows_needed: int | None = None


def read_gate(path: Path) -> Gate:
    """Reads a gate from a .json or .toml file: limits by name, those left out as in the default gate.

    Raises:
        InputError: the file cannot be read, or a key or a value is none of a gate.
    """
    if path.suffix.lower() not in (".json", ".toml"):
        raise InputError(f"gate {path} must be a .json or a .toml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = _toml(path)(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise InputError(f"gate {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"gate {path} is not {path.suffix[1:].upper()}: {error}") from None
    known = [limit.name for limit in fields(Gate)]
    if not isinstance(data, dict):
        raise InputError(f"gate {path} must hold limits by name: {', '.join(known)}")
    if unknown := sorted(set(data) - set(known)):
        raise InputError(f"gate {path} has limits that are not known: {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        return Gate(**data)
    except ValueError as error:
        raise InputError(f"gate {path}: {error}") from None


def check_answered(reference_only: int, candidate_only: int, rows: int) -> Check:
    """Rows that one side alone gave a label for: they would be missing from every figure."""
    count = reference_only + candidate_only
    said = "both sides gave a label on the same rows"
    if count:
        said = f"{count} of {rows} rows have a label of one side alone (candidate without one: {reference_only})"
    return Check("answered by both", count / rows, count / rows, 0.0, count == 0, said)


def check_flips(count: int, rows: int, limit: float) -> Check:
    """The share of flipped labels, by the exact upper bound of a share."""

    def bound(scale: float) -> float:
        return share_at_most(math.ceil(count * scale - 1e-9), max(1, round(rows * scale)), LEVEL)

    said = f"{count} of {rows} rows flip ({_percent(count / rows)})"
    return _decide("flips", count / rows, bound, limit, rows, said, "the share is at most", _percent, unseen=count == 0)


def check_net_under_triage(under: int, over: int, rows: int, limit: float) -> Check:
    """Flips to a less severe label less those to a more severe one, as a difference of paired shares.

    Where no flip went the other way the bound is the exact one of a single share, so that the rule of three
    holds where there was no flip at all.
    """

    def bound(scale: float) -> float:
        n = max(1, round(rows * scale))
        if not over:
            return share_at_most(math.ceil(under * scale - 1e-9), n, LEVEL)
        return net_share_at_most(under * scale, over * scale, n, LEVEL)

    said = f"{under} flips to a less severe and {over} to a more severe label, net {_points((under - over) / rows)}"
    net = (under - over) / rows
    return _decide("net under-triage", net, bound, limit, rows, said, "net it is at most", unseen=under + over == 0)


def check_macro_f1(
    reference: Figure, candidate: Figure, support: Mapping[str, int], limit: float, *, seed: int, resamples: int
) -> Check:
    """The loss of macro-F1, by the paired bootstrap, with no less room than unseen flips may need.

    A bootstrap over rows that all agree knows no spread at all. So the bound lies above the loss by what the
    rule of three leaves open in the rarest class at least: 3 flips of its n rows, one class of k.

    Args:
        reference: macro-F1 of the reference, as a figure of rows.
        candidate: the same of the candidate.
        support: gold rows of each label.
        limit: the greatest loss.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    loss = difference(reference, candidate, seed=seed, resamples=resamples, level=2 * LEVEL - 1)
    rows, rarest = sum(support.values()), min(support.values())
    said = f"macro-F1 changes by {_points(-loss.value, signed=True)}"
    if not rarest:
        absent = ", ".join(repr(label) for label, count in support.items() if not count)
        passed = False if loss.value > limit else None
        said += f"; no row is labelled {absent}, so what happens to such notes is not known"
        return Check("macro-F1", loss.value, None, limit, passed, said)

    def bound(scale: float) -> float:
        unseen = share_at_most(0, max(1, round(rarest * scale)), LEVEL) / len(support)
        return loss.value + max((loss.high - loss.value) / math.sqrt(scale), unseen)

    return _decide("macro-F1", loss.value, bound, limit, rows, said, "the loss is at most")


def check_ece(reference: Figure, candidate: Figure, limit: float, *, seed: int, resamples: int) -> Check:
    """The rise of the expected calibration error, by the paired bootstrap and the rule of three."""
    rise = difference(candidate, reference, seed=seed, resamples=resamples, level=2 * LEVEL - 1)
    rows = len(reference.rows)

    def bound(scale: float) -> float:
        unseen = share_at_most(0, max(1, round(rows * scale)), LEVEL)
        return rise.value + max((rise.high - rise.value) / math.sqrt(scale), unseen)

    said = f"ECE changes by {_points(rise.value, signed=True)}"
    return _decide("ECE", rise.value, bound, limit, rows, said, "the rise is at most")


def verdict(gate: Gate, checks: list[Check], *, ordered: bool) -> dict[str, Any]:
    """The report's verdict: false if a check failed, else null if one could not be certified, else true."""
    failed = [check.name for check in checks if check.passed is False]
    open_ = [check for check in checks if check.passed is None]
    passed: bool | None = True
    summary = "Passed: every limit of the gate is kept, with 95 % confidence."
    if failed:
        passed, summary = False, f"Failed: {', '.join(failed)}."
    elif open_:
        passed = None
        needed = [check.rows_needed for check in open_]
        summary = f"Not enough rows to certify: {', '.join(check.name for check in open_)}."
        counts = [count for count in needed if count is not None]
        if counts and len(counts) == len(needed):
            summary += f" About {max(counts):,} rows like these are needed."
    limits = asdict(gate)
    if not ordered:
        del limits["net_under_triage"]
    return {"passed": passed, "gate": limits, "checks": [asdict(check) for check in checks], "summary": summary}


def _decide(
    name: str,
    value: float,
    bound: Callable[[float], float],
    limit: float,
    rows: int,
    said: str,
    bounded: str,
    shown: Callable[[float], str] | None = None,
    *,
    unseen: bool = False,
) -> Check:
    """Holds a value and its bound against a limit.

    Args:
        name: of the check.
        value: what was measured.
        bound: the bound that s times the rows would give, for s of 1 and more.
        limit: what is allowed.
        rows: how many there are.
        said: the measurement in words.
        bounded: what the bound is a bound of, in words.
        shown: how shares are written; None: in points.
        unseen: whether there was no flip at all, so that the rule of three says how many rows are needed.
    """
    shown = shown or _points
    here = bound(1.0)
    if value > limit:
        return Check(name, value, here, limit, False, f"{said}; the limit is {shown(limit)}")
    said += f"; with 95 % confidence {bounded} {shown(here)}, the limit is {shown(limit)}"
    if here <= limit:
        return Check(name, value, here, limit, True, said)
    needed = _rows_needed(bound, limit, rows)
    if needed is not None:
        said += f": about {needed:,} rows {'without a flip (rule of three) ' if unseen else ''}would show it"
    return Check(name, value, here, limit, None, said, needed)


def _rows_needed(bound: Callable[[float], float], limit: float, rows: int) -> int | None:
    """The least number of rows at the same rates whose bound is within the limit; None beyond ten million."""
    low, high = rows, 2 * rows
    while bound(high / rows) > limit:
        low, high = high, 2 * high
        if high > MAX_ROWS_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if bound(middle / rows) > limit:
            low = middle
        else:
            high = middle
    return high


def _toml(path: Path) -> Callable[[str], Any]:
    for name in ("tomllib", "tomli"):
        try:
            loads: Callable[[str], Any] = importlib.import_module(name).loads
        except ImportError:
            continue
        return loads
    raise InputError(f"gate {path}: TOML is read from Python 3.11 on; write the same limits as .json")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float, *, signed: bool = False) -> str:
    return f"{100 * share + 0.0:{'+' if signed else ''}.2f} points"
