"""What the runtime says about a note: schema 1 of the decision record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Decision:
    """One note's outcome.

    Attributes:
        label: the most probable one, unless the bundle's costs or rounding up chose another; None where nothing
            could be scored (an empty note).
        probabilities: calibrated, over the whole label set, summing to 1; empty where not scored. For an
            open label set, the one label that was written with its (uncalibrated) sequence probability.
        label_set: the conformal set, or None for a bundle that has none.
        abstained: True if the label must not be used without a person; `reason` says why.
        rationale: None where not asked for or not made.
        consistent: whether the rationale alone leads to the same label; None where not asked.
        truncated: True if part of the note did not fit and was not read.
        model: name, version and digest of the bundle.
        ms: milliseconds spent, by step (`label`, `rationale`).
    """

    id: str
    label: str | None
    probabilities: Mapping[str, float]
    model: str
    label_set: tuple[str, ...] | None = None
    abstained: bool = False
    reason: str | None = None
    rationale: str | None = None
    consistent: bool | None = None
    truncated: bool = False
    ms: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready data, in the order of the schema."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "label": self.label,
            "probabilities": {label: round(p, 6) for label, p in self.probabilities.items()},
            "label_set": list(self.label_set) if self.label_set is not None else None,
            "abstained": self.abstained,
            "reason": self.reason,
            "rationale": self.rationale,
            "consistent": self.consistent,
            "truncated": self.truncated,
            "model": self.model,
            "ms": {step: round(value, 2) for step, value in self.ms.items()},
        }
