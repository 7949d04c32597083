"""Golden inputs re-scored on this machine, held against what the converting machine got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r2d_edge.bundle import GOLDEN, Bundle
from r2d_edge.errors import BundleError

if TYPE_CHECKING:
    from r2d_edge.decide import Decider

DEFAULT_BOUND = 1e-2  # for a bundle whose manifest states none


@dataclass(frozen=True)
class GoldenCheck:
    """The outcome of a re-scoring.

    Attributes:
        rows: golden rows scored.
        worst: the greatest difference of a label's log-probability (nats); None without rows or with a
            difference that is no number.
        bound: the greatest difference that is accepted.
    """

    rows: int
    worst: float | None
    bound: float

    @property
    def passed(self) -> bool:
        """Whether every row was scored and none differs by more than the bound."""
        return self.worst is not None and self.worst <= self.bound

    def to_json(self) -> dict[str, object]:
        """The outcome as JSON-ready data."""
        return {"rows": self.rows, "worst": self.worst, "bound": self.bound, "passed": self.passed}


def golden_bound(bundle: Bundle) -> float:
    """The greatest difference that the bundle was accepted with when it was made."""
    parity = bundle.manifest.extra.get("parity")
    bound = parity.get("bound") if isinstance(parity, dict) else None
    usable = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound) and bound > 0
    return float(bound) if usable and bound is not None else DEFAULT_BOUND


def check_golden(differences: Sequence[float], bound: float) -> GoldenCheck:
    """Holds the rows' differences (see `Decider.golden_differences`) against a bound."""
    whole = bool(differences) and all(math.isfinite(value) for value in differences)
    return GoldenCheck(len(differences), max(differences) if whole else None, bound)


def rescore(decider: Decider) -> GoldenCheck:
    """Scores a loaded bundle's golden inputs here.

    Raises:
        BundleError: the golden rows are not what this bundle's labels need.
    """
    bound = golden_bound(decider.bundle)
    if not decider.bundle.golden():
        return GoldenCheck(0, None, bound)
    import numpy as np

    try:
        with np.errstate(all="ignore"):  # what is no number fails the check, without a warning
            return check_golden(decider.golden_differences(), bound)
    except (KeyError, TypeError, ValueError) as error:  # what a manifest vouches for may still be nonsense
        raise BundleError(f"{GOLDEN} cannot be scored ({type(error).__name__})") from None
