"""Reason2Decide-C's gate: whose predicted label is sure enough to stand in an explanation prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class ConfidenceGate:
    """The gate over the confidences of the model's own labels.

    Hasan et al., Computers 2026, 15(5), 279: where the schedule would take the predicted label with share p, an
    example takes it with p · sigmoid(slope · (confidence − τ)). τ is the mean confidence over the warm-up, and
    from then on, every `refresh` steps, the mean since the last time.

    Attributes:
        slope: steepness of the sigmoid.
        refresh: optimizer steps between two thresholds.
        threshold: τ; None while the warm-up lasts.
        since: the step at which τ was set.
        total: sum of the confidences observed since.
        count: their number.
    """

    slope: float = 10.0
    refresh: int = 1000
    threshold: float | None = None
    since: int = 0
    total: float = 0.0
    count: int = 0

    def observe(self, total: float, count: int) -> None:
        """Takes in `count` confidences whose sum is `total`."""
        self.total += total
        self.count += count

    def advance(self, step: int, warmup_end: float) -> None:
        """Sets the threshold anew where `step` calls for it; to be called before a step's first draw."""
        due = step > warmup_end if self.threshold is None else step - self.since >= self.refresh
        if due and self.count:
            self.threshold = self.total / self.count
            self.since, self.total, self.count = step, 0.0, 0

    def passes(self, confidence: float) -> float:
        """The factor on the scheduled share: 0.5 at the threshold, 0 while there is none."""
        if self.threshold is None:
            return 0.0
        return 1 / (1 + math.exp(-self.slope * (confidence - self.threshold)))
