"""Golden inputs re-scored on this machine, held against what the converting machine got."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2d_edge.bundle import GOLDEN, Bundle
from r2d_edge.errors import BundleError

if TYPE_CHECKING:
    from r2d_edge.decide import Decider

DEFAULT_BOUND = 1e-2  # for a bundle whose manifest states none
# Times the bound that was kept on the converting machine: other processors round elsewhere. Kernels without VNNI
# moved the embedded model's scores by 1.2 nats, mostly those of improbable labels, and its probabilities by 0.10.
SLACK = 2.0
PROBABILITY_BOUND = 0.15  # the greatest difference of a calibrated probability that is accepted
MAX_BOUND = 100.0  # nats; what is larger bounds nothing


@dataclass(frozen=True)
class GoldenCheck:
    """The outcome of a re-scoring.

    Attributes:
        rows: golden rows scored.
        worst: the greatest difference of a label's log-probability (nats); None without rows or with a
            difference that is no number.
        bound: the greatest difference that is accepted.
        worst_probability: the greatest difference of a label's calibrated probability.
        nothing_to_compare: why no row was scored; None where some were.
    """

    rows: int
    worst: float | None
    bound: float
    worst_probability: float | None
    nothing_to_compare: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every row was scored and none differs by more than the bounds."""
        return (
            self.worst is not None
            and self.worst_probability is not None
            and self.worst <= self.bound
            and self.worst_probability <= PROBABILITY_BOUND
        )

    def to_json(self) -> dict[str, object]:
        """The outcome as JSON-ready data."""
        return {
            "rows": self.rows,
            "worst": self.worst,
            "bound": self.bound,
            "worst_probability": self.worst_probability,
            "probability_bound": PROBABILITY_BOUND,
            "nothing_to_compare": self.nothing_to_compare,
            "passed": self.passed,
        }


def golden_bound(bundle: Bundle) -> float:
    """The greatest difference that is accepted: what the bundle's proof allowed when it was made, and `SLACK`."""
    parity = bundle.manifest.extra.get("parity")
    bound = parity.get("bound") if isinstance(parity, dict) else None
    if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound <= MAX_BOUND:
        return DEFAULT_BOUND
    return SLACK * float(bound)


def check_golden(differences: Sequence[float], shifts: Sequence[float], bound: float) -> GoldenCheck:
    """Holds the rows' differences (see `Decider.golden_differences` and `golden_shifts`) against the bounds."""
    worst, shift = (max(values) if _all_finite(values) else None for values in (differences, shifts))
    return GoldenCheck(len(differences), worst, bound, shift)


def _all_finite(values: Sequence[float]) -> bool:
    return bool(values) and all(math.isfinite(value) for value in values)


def in_words(check: Mapping[str, Any]) -> str:
    """How far the scores are from the expected ones, and how far they may be; `check` is as `to_json` gives it."""
    if check["nothing_to_compare"]:
        return f"there is nothing to compare, since {check['nothing_to_compare']}"
    worst, shift = ("what is no number" if check[key] is None else check[key] for key in ("worst", "worst_probability"))
    return (
        f"golden label log-probabilities differ by {worst} (accepted: {check['bound']}), calibrated probabilities by "
        f"{shift} (accepted: {check['probability_bound']})"
    )


def rescore(decider: Decider) -> GoldenCheck:
    """Scores a loaded bundle's golden inputs here.

    Raises:
        BundleError: the golden rows are not what this bundle's labels need.
    """
    bound = golden_bound(decider.bundle)
    rows = decider.bundle.golden()
    if not decider.task.labels.labels:
        return GoldenCheck(0, None, bound, None, "its labels are free text, which has no scores")
    if not rows:
        return GoldenCheck(0, None, bound, None, f"its {GOLDEN} is empty")
    import numpy as np

    try:
        with np.errstate(all="ignore"):  # what is no number fails the check, without a warning
            return check_golden(decider.golden_differences(), decider.golden_shifts(), bound)
    except (KeyError, TypeError, ValueError, OverflowError) as error:  # a manifest may vouch for nonsense
        raise BundleError(f"{GOLDEN} cannot be scored ({type(error).__name__})") from None
