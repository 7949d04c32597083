"""The schedule against values worked out by hand for 1,000 steps: warm-up 50, transition to 650."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import Schedule

SCHEDULE = Schedule(1000)


@pytest.mark.parametrize(
    ("step", "alpha", "share"),
    [
        (0, 0.0, 0.0),
        (10, 0.14, 0.0),  # 0.7 · 10/50
        (25, 0.35, 0.0),
        (49, 0.686, 0.0),
        (50, 0.7, 0.0),  # the end of the warm-up still holds gold labels only
        (51, 0.7, 0.0015),  # 0.9 · 1/600
        (350, 0.7, 0.45),  # half of the transition
        (649, 0.7, 0.8985),
        (650, 0.7, 0.9),
        (999, 0.7, 0.9),
    ],
)
def test_values(step: int, alpha: float, share: float) -> None:
    assert SCHEDULE.alpha(step) == pytest.approx(alpha)
    assert SCHEDULE.predicted_share(step) == pytest.approx(share)


def test_selection_begins_after_the_transition() -> None:
    assert not SCHEDULE.selects(649)
    assert SCHEDULE.selects(650)


def test_ablations() -> None:
    gold_only = Schedule(1000, cap=0.0)
    assert all(gold_only.predicted_share(step) == 0 for step in range(1000))
    own_from_the_start = Schedule(1000, warmup=0.0, transition=0.0, cap=1.0)
    assert own_from_the_start.predicted_share(0) == 0.0  # the very first step is still the warm-up's end
    assert own_from_the_start.predicted_share(1) == 1.0
    assert own_from_the_start.alpha(0) == 0.7


def test_sampling_ablations_keep_to_one_kind_of_label() -> None:
    gold, predicted = Schedule(1000, sampling="gold"), Schedule(1000, sampling="predicted")
    assert {gold.predicted_share(step) for step in (0, 50, 350, 999)} == {0.0}
    assert {predicted.predicted_share(step) for step in (0, 50, 350, 999)} == {1.0}
    assert not gold.selects(49)
    assert gold.selects(50)  # nothing to wait for after the warm-up


@pytest.mark.parametrize("wrong", [{"total": 0}, {"alpha_max": 1.1}, {"cap": -0.1}, {"warmup": 0.5, "transition": 0.6}])
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"step|must lie|exceed"):
        Schedule(**{"total": 10, **wrong})  # type: ignore[arg-type]


@given(st.integers(1, 5000), st.floats(0, 0.4), st.floats(0, 0.6), st.floats(0, 1))
def test_monotone_and_bounded(total: int, warmup: float, transition: float, cap: float) -> None:
    schedule = Schedule(total, warmup=warmup, transition=transition, cap=cap)
    steps = range(0, total, max(1, total // 50))
    for values in ([schedule.alpha(s) for s in steps], [schedule.predicted_share(s) for s in steps]):
        assert values == sorted(values)
    assert all(0 <= schedule.alpha(s) <= 0.7 and 0 <= schedule.predicted_share(s) <= cap for s in steps)
