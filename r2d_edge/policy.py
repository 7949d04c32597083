"""From calibrated probabilities to a decision: which labels a note may have, and which one is given.

The rule, in its order:

1. The label is the most probable one or, where under- and over-triage have costs, the one of least expected cost
   (of equal ones the more severe).
2. The label set is the conformal set joined by that label; of an ordered set every label between two members is
   one too, so a set never says "emergent or non-urgent, but nothing between". Both only add labels, so the set's
   coverage is at least what the conformal set promises.
3. With `round_up` the label becomes the most severe one of that set.

Whether the decision is abstained on is decided apart (see `r2d_edge.decide`): the confidence is always the best
probability, whatever rule gave the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_COST = 1e9


@dataclass(frozen=True)
class Policy:
    """How a label is chosen, and what is abstained on beside low confidence.

    Attributes:
        under_cost: of each level that a label is less severe than the truth; 0 with `over_cost` 0: no costs.
        over_cost: of each level that it is more severe.
        round_up: when in doubt, the most severe label of the label set.
        check_rationale: abstain where the rationale alone leads to another label.
    """

    under_cost: float = 0.0
    over_cost: float = 0.0
    round_up: bool = False
    check_rationale: bool = False

    def __post_init__(self) -> None:
        for name, cost in (("under_cost", self.under_cost), ("over_cost", self.over_cost)):
            if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost <= MAX_COST:
                raise ValueError(f"{name} must be a number of 0 to {MAX_COST:g}, not {cost!r}")
        if (self.under_cost > 0) is not (self.over_cost > 0):
            # With one of them free the outermost label would always be the cheapest.
            raise ValueError(f"both costs must be above 0, not {self.under_cost} and {self.over_cost}")
        for name, flag in (("round_up", self.round_up), ("check_rationale", self.check_rationale)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be true or false, not {flag!r}")

    @property
    def costs(self) -> bool:
        """Whether errors have costs."""
        return self.under_cost > 0

    @property
    def needs_order(self) -> bool:
        """Whether it means something for ordered labels alone."""
        return self.costs or self.round_up

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Reads what `to_json` wrote; nothing is the default policy.

        Raises:
            ValueError: a field is unknown or out of range.
        """
        _known(data, {field.name for field in fields(cls)}, "policy")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """What differs from the default, JSON-ready."""
        default = asdict(Policy())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


@dataclass(frozen=True)
class LabelSetRule:
    """Class-conditional conformal sets: a label belongs where 1 - its probability is at most its threshold.

    Attributes:
        coverage: of the notes of each label the share whose set holds it, at least.
        thresholds: by label, 0 to 1; 1 lets the label into every set.
    """

    coverage: float
    thresholds: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in (("coverage", self.coverage), *self.thresholds.items()):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"label set: {name!r} must have a number of 0 to 1, not {value!r}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSetRule | None:
        """Reads what `to_json` wrote; None for nothing.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        _known(data, {"coverage", "thresholds"}, "label set")
        if not data:
            return None
        if set(data) != {"coverage", "thresholds"} or not isinstance(data["thresholds"], Mapping):
            raise ValueError("a label set needs a coverage and thresholds by label")
        return cls(data["coverage"], dict(data["thresholds"]))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"coverage": self.coverage, "thresholds": dict(self.thresholds)}

    def of(self, labels: Sequence[str]) -> FloatArray:
        """The thresholds in the order of `labels`, [k].

        Raises:
            ValueError: they are those of other labels.
        """
        if set(labels) != set(self.thresholds):
            raise ValueError(f"the label set has thresholds for {list(self.thresholds)}, not for {list(labels)}")
        return np.array([self.thresholds[label] for label in labels], dtype=np.float64)


def expected_costs(probabilities: FloatArray, under_cost: float, over_cost: float) -> FloatArray:
    """Expected cost of giving each label, [n, k], where a cost grows with the number of levels.

    Args:
        probabilities: [n, k], index 0 the most severe.
        under_cost: of each level that the given label is less severe than the true one.
        over_cost: of each level that it is more severe.
    """
    levels = np.arange(probabilities.shape[1])
    steps = levels[:, None] - levels[None, :]  # given less true: above 0 is under-triage
    costs = np.where(steps > 0, under_cost * steps, -over_cost * steps)
    return np.asarray(probabilities @ costs.T)


def chosen(probabilities: FloatArray, policy: Policy) -> IntArray:
    """Step 1 of the rule: the label of each row, [n], of probabilities [n, k]."""
    if not policy.costs:
        return np.asarray(probabilities.argmax(axis=1))
    costs = expected_costs(probabilities, policy.under_cost, policy.over_cost)
    # Rounding must not decide between equal costs.
    return np.asarray((costs <= costs.min(axis=1, keepdims=True) + 1e-12).argmax(axis=1))


def label_sets(
    probabilities: FloatArray, thresholds: FloatArray, given: IntArray, *, ordered: bool
) -> npt.NDArray[np.bool_]:
    """Step 2 of the rule: which labels are in each row's set, [n, k].

    Args:
        probabilities: [n, k].
        thresholds: as `LabelSetRule.of` gives them, [k].
        given: the label that is in the set in any case, [n].
        ordered: whether sets are made contiguous.
    """
    members = np.asarray(1 - probabilities <= thresholds)
    members[np.arange(len(given)), given] = True
    if ordered:
        reached = np.logical_or.accumulate(members, axis=1)
        left = np.logical_or.accumulate(members[:, ::-1], axis=1)[:, ::-1]
        members = reached & left
    return members


def apply(
    probabilities: FloatArray, policy: Policy, thresholds: FloatArray | None, *, ordered: bool
) -> tuple[IntArray, npt.NDArray[np.bool_] | None]:
    """The whole rule: the label of each row [n], and its label set [n, k] where there are thresholds.

    Raises:
        ValueError: the policy needs an order or label sets that are not there.
    """
    if policy.needs_order and not ordered:
        raise ValueError("costs and rounding up need labels that are ordered by severity")
    given = chosen(probabilities, policy)
    if thresholds is None:
        if policy.round_up:
            raise ValueError("rounding up needs label sets, and there are none")
        return given, None
    members = label_sets(probabilities, thresholds, given, ordered=ordered)
    return (np.asarray(members.argmax(axis=1)) if policy.round_up else given), members


def _known(data: Any, names: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"the {what} must be an object, not {type(data).__name__}")
    if unknown := set(data) - names:
        raise ValueError(f"the {what} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
