"""The rule from probabilities to a label and its set, on worked rows and by property."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.policy import LabelSetRule, Policy, apply, chosen, expected_costs, label_sets

ROW = np.array([[0.25, 0.3, 0.05, 0.4]])


def _row(weights: list[float]) -> np.ndarray:
    return np.array([weights]) / sum(weights)


WEIGHTS = st.lists(st.floats(0.01, 1), min_size=4, max_size=4)
THRESHOLDS = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def test_without_a_policy_the_label_is_the_most_probable_one() -> None:
    label, members = apply(ROW, Policy(), None, ordered=True)
    assert label.tolist() == [3]
    assert members is None


def test_expected_costs_by_hand() -> None:
    # Giving level 1: level 0 is 1 step too low, levels 2 and 3 are 1 and 2 steps too high.
    assert expected_costs(ROW, 5, 1)[0, 1] == pytest.approx(0.25 * 5 + 0.05 * 1 + 0.4 * 2)
    assert expected_costs(ROW, 5, 1)[0, 0] == pytest.approx(0.3 + 0.05 * 2 + 0.4 * 3)
    assert chosen(ROW, Policy(5, 1)).tolist() == [0]
    assert chosen(ROW, Policy(1, 1)).tolist() == [1]  # the median
    assert chosen(ROW, Policy(1, 9)).tolist() == [3]


def test_of_equal_costs_the_more_severe_label_is_given() -> None:
    assert chosen(np.array([[0.5, 0.5]]), Policy(2, 2)).tolist() == [0]
    assert chosen(np.array([[0.1] * 10]), Policy(1, 1)).tolist() == [4]


@given(WEIGHTS, st.floats(0.1, 20), st.floats(0.1, 20))
def test_the_label_of_least_cost_is_a_quantile(weights: list[float], under: float, over: float) -> None:
    """Costs that grow by the level are the check loss: its minimum is the over/(under+over) quantile of severity."""
    row = _row(weights)
    [label] = chosen(row, Policy(under, over))
    below = float(row[0, :label].sum())  # the truth is more severe than the label
    assert below <= over / (under + over) + 1e-9
    assert below + row[0, label] >= over / (under + over) - 1e-9


@given(WEIGHTS, THRESHOLDS, st.booleans())
def test_sets_of_ordered_labels_have_no_gap_and_hold_the_label(
    weights: list[float], thresholds: list[float], round_up: bool
) -> None:
    row, limits = _row(weights), np.array(thresholds)
    label, members = apply(row, Policy(round_up=round_up), limits, ordered=True)
    assert members is not None
    places = np.flatnonzero(members[0])
    assert places.tolist() == list(range(places[0], places[-1] + 1))
    assert members[0, label[0]]
    assert members[0, row[0].argmax()]
    plain = label_sets(row, limits, row.argmax(axis=1), ordered=False)
    assert not (plain & ~members).any()
    assert plain[0, 1 - row[0] <= limits].all()
    if round_up:
        assert label[0] == places[0]


def test_a_set_is_closed_between_its_members_where_there_is_an_order() -> None:
    limits = np.array([0.8, 0.0, 0.0, 0.7])
    assert label_sets(ROW, limits, np.array([3]), ordered=False).tolist() == [[True, False, False, True]]
    assert label_sets(ROW, limits, np.array([3]), ordered=True).tolist() == [[True, True, True, True]]
    assert apply(ROW, Policy(round_up=True), limits, ordered=True)[0].tolist() == [0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ordered"):
        apply(ROW, Policy(2, 1), None, ordered=False)
    with pytest.raises(ValueError, match="label sets"):
        apply(ROW, Policy(round_up=True), None, ordered=True)
    for wrong in ({"under_cost": 1.0}, {"under_cost": -1.0, "over_cost": 1.0}, {"round_up": 1}, {"loud": True}):
        with pytest.raises(ValueError, match=r"cost|round_up|loud"):
            Policy.from_json(wrong)
    for wrong in ({"coverage": 0.9}, {"coverage": 0.9, "thresholds": {"a": 2}}, {"coverage": 0.9, "thresholds": []}):
        with pytest.raises(ValueError, match=r"needs|0 to 1"):
            LabelSetRule.from_json(wrong)
    with pytest.raises(ValueError, match="not for"):
        LabelSetRule(0.9, {"a": 0.1}).of(["b"])


def test_both_are_read_as_they_were_written() -> None:
    policy = Policy(5, 1, round_up=True, check_rationale=True)
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    assert Policy().to_json() == {}
    rule = LabelSetRule(0.9, {"a": 0.25, "b": 1.0})
    assert LabelSetRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert LabelSetRule.from_json({}) is None
