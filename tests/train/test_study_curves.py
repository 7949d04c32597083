"""Learning curves: what of a history or a result is training, and what is the chosen checkpoint once more."""

import json
from pathlib import Path

import pytest

from train.study.curves import curve_of, training_curve
from train.study.results import Result


def write_history(path: Path, *evaluations: tuple[int, float]) -> Path:
    log = [{"step": step, "eval_ward_macro_f1": f1} for step, f1 in evaluations]
    path.write_text(json.dumps({"log": [{"step": 5, "loss": 1.0}, *log]}), encoding="utf-8")
    return path


def test_a_history_gives_the_evaluations_during_training(tmp_path: Path) -> None:
    path = write_history(tmp_path / "history.json", (20, 0.4), (10, 0.3), (30, 0.351239))
    assert curve_of(path, ["ward"]) == {"step": [10, 20, 30], "ward": [0.3, 0.4, 0.3512]}
    assert curve_of(tmp_path / "none.json", ["ward"]) == {}
    assert curve_of(path, ["ward", "icu"]) == {"step": [], "ward": [], "icu": []}


@pytest.mark.parametrize("last", [30, 33])
def test_the_chosen_checkpoint_at_the_end_of_a_history_is_no_step_of_training(last: int, tmp_path: Path) -> None:
    """At step 20 it was best, and its weights were scored once more at the end, on the last step or one of its own."""
    path = write_history(tmp_path / "history.json", (10, 0.3), (20, 0.4), (30, 0.35), (last, 0.4))
    assert curve_of(path, ["ward"]) == {"step": [10, 20, 30], "ward": [0.3, 0.4, 0.35]}


@pytest.mark.parametrize(
    ("curve", "best", "kept"),
    [
        ({"step": [10, 20, 30], "ward": [0.3, 0.4, 0.35]}, 20, 3),
        ({"step": [10, 20, 30], "ward": [0.3, 0.4, 0.45]}, 30, 3),
        ({"step": [10, 20, 30, 33], "ward": [0.3, 0.4, 0.35, 0.4]}, 20, 3),
        ({"step": [10, 20, 30], "ward": [0.3, 0.4, 0.4]}, 20, 2),  # in the place of the last evaluation
        ({"step": [10, 20, 30], "ward": [0.3, 0.4, 0.4], "icu": [0.1, 0.2, 0.3]}, 20, 3),
        ({"step": [10, 20], "ward": [0.3, 0.4]}, None, 2),
        ({"step": [10], "ward": [0.3]}, 10, 1),
    ],
)
def test_results_are_read_without_the_chosen_checkpoints_point(
    curve: dict[str, list[float]], best: int | None, kept: int
) -> None:
    result = Result("x", curve=curve, context={} if best is None else {"best_step": best})
    assert training_curve(result) == {name: values[:kept] for name, values in curve.items()}
    assert len(curve["step"]) >= kept  # the result itself stays as it was


def test_a_result_without_a_curve_has_none() -> None:
    assert training_curve(Result("x")) == {}
