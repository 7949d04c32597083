import json
import math

import numpy as np
import pytest
from scipy import stats

from r2d_edge import metrics
from r2d_edge.errors import InputError
from r2d_edge.report import gate as gates
from r2d_edge.report.gate import Gate, check_answered, check_ece, check_flips, check_macro_f1, check_net_under_triage
from r2d_edge.report.label_figures import calibration_error, macro_f1


def upper(count, rows, level=0.95):
    return stats.beta.ppf(level, count + 1, rows - count)


def test_no_flip_in_too_few_rows_is_no_green_tick():
    found = check_flips(0, 100, 0.01)
    assert (found.passed, found.value) == (None, 0)
    assert found.bound == pytest.approx(upper(0, 100))
    # (1 - 0.01)^n <= 0.05; the rule of three says 3 / 0.01 = 300
    assert found.rows_needed == math.ceil(math.log(0.05) / math.log(0.99)) == 299
    assert "0 of 100 rows flip" in found.said
    assert "about 299 rows without a flip (rule of three)" in found.said
    assert check_flips(0, 298, 0.01).passed is None
    assert check_flips(0, 299, 0.01).passed is True


def test_flips_are_certified_by_the_bound_and_failed_by_the_value():
    assert check_flips(1, 495, 0.01).passed is True
    found = check_flips(2, 495, 0.01)
    assert found.passed is None
    assert found.bound == pytest.approx(upper(2, 495))
    assert found.rows_needed is not None
    assert found.rows_needed > 495
    # The number is enough, and a tenth less is not, for so many flips at the same rate.
    for rows, enough in ((found.rows_needed, True), (int(found.rows_needed * 0.9), False)):
        assert bool(upper(math.ceil(2 * rows / 495 - 1e-9), rows) <= 0.01) is enough
    assert check_flips(5, 495, 0.01).passed is False
    assert "the limit is 1.00 %" in check_flips(5, 495, 0.01).said


def test_a_rate_at_the_limit_is_never_certified():
    found = check_flips(10, 1000, 0.01)
    assert (found.passed, found.rows_needed) == (None, None)
    assert "would show it" not in found.said


def test_net_under_triage():
    found = check_net_under_triage(3, 9, 2000, 0.005)
    assert found.value == pytest.approx(-6 / 2000)
    assert found.bound == metrics.net_share_at_most(3, 9, 2000)
    assert found.passed is True
    one_way = check_net_under_triage(2, 0, 2000, 0.005)
    assert one_way.bound == pytest.approx(upper(2, 2000))
    close = check_net_under_triage(5, 3, 495, 0.005)
    # by the normal approximation: 1.645 standard errors of sqrt(8) / 495 a row must fit into 0.1 points
    assert close.rows_needed == pytest.approx((1.645 / (0.005 - 2 / 495)) ** 2 * 8 / 495, rel=0.1)
    none = check_net_under_triage(0, 0, 495, 0.005)
    assert none.passed is None
    assert none.rows_needed == math.ceil(math.log(0.05) / math.log(0.995)) == 598
    assert check_net_under_triage(0, 0, 598, 0.005).passed is True
    assert check_net_under_triage(4, 1, 495, 0.005).passed is False


def test_the_bound_of_net_under_triage_covers():
    """Over draws at a true net rate, the bound lies above it in about 95 % of them, and in no more than needed."""
    rng = np.random.default_rng(4)
    n, under, over = 500, 0.02, 0.01
    draws = rng.multinomial(n, [under, over, 1 - under - over], size=2000)
    bounds = [check_net_under_triage(int(a), int(b), n, 1.0).bound for a, b, _ in draws]
    assert 0.94 <= np.mean(np.array(bounds) >= under - over) <= 0.97


def test_macro_f1_without_any_flip_is_bounded_by_the_rarest_class():
    gold = np.repeat([0, 1, 2], [200, 150, 40])
    figure = macro_f1(gold, gold, 3)
    support = {"a": 200, "b": 150, "c": 40}
    found = check_macro_f1(figure, figure, support, 0.01, seed=1, resamples=500)
    assert found.bound == pytest.approx(upper(0, 40) / 3)
    assert found.passed is None
    more = {name: 10 * count for name, count in support.items()}
    assert check_macro_f1(figure, figure, more, 0.01, seed=1, resamples=500).passed is True
    assert found.rows_needed == pytest.approx(390 / 40 * math.log(0.05) / math.log(0.97), rel=0.02)


def test_macro_f1_by_the_paired_bootstrap():
    rng = np.random.default_rng(6)
    gold = rng.integers(0, 3, size=3000)
    first = np.where(rng.random(3000) < 0.8, gold, rng.integers(0, 3, size=3000))
    worse = np.where(rng.random(3000) < 0.9, first, rng.integers(0, 3, size=3000))
    support = {str(place): int((gold == place).sum()) for place in range(3)}
    figures = macro_f1(gold, first, 3), macro_f1(gold, worse, 3)
    found = check_macro_f1(*figures, support, 0.01, seed=1, resamples=2000)
    assert found.passed is False
    assert found.value == pytest.approx(figures[0].value() - figures[1].value())
    assert found.value < found.bound < 2 * found.value
    better = check_macro_f1(figures[1], figures[0], support, 0.01, seed=1, resamples=2000)
    assert better.passed is True
    assert better.bound < 0
    assert "macro-F1 changes by +" in better.said


def test_a_label_without_rows_cannot_be_certified():
    gold = np.zeros(5000, dtype=int)
    figure = macro_f1(gold, gold, 2)
    found = check_macro_f1(figure, figure, {"a": 5000, "b": 0}, 0.01, seed=1, resamples=100)
    assert (found.passed, found.bound, found.rows_needed) == (None, None, None)
    assert "no row is labelled 'b'" in found.said


def test_ece_by_the_paired_bootstrap_and_never_below_the_rule_of_three():
    rng = np.random.default_rng(7)
    probabilities = rng.dirichlet(np.ones(3), size=60)
    gold = rng.integers(0, 3, size=60)
    same = calibration_error(probabilities.argmax(axis=1) == gold, probabilities.max(axis=1))
    found = check_ece(same, same, 0.02, seed=1, resamples=300)
    assert found.bound == pytest.approx(upper(0, 60))
    assert (found.passed, found.rows_needed) == (None, math.ceil(math.log(0.05) / math.log(0.98)))
    sharp = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    sharper = calibration_error(sharp.argmax(axis=1) == gold, sharp.max(axis=1))
    assert check_ece(same, sharper, 0.02, seed=1, resamples=300).passed is False


def test_rows_that_one_side_alone_answered_fail():
    assert check_answered(0, 0, 10).passed is True
    found = check_answered(2, 1, 10)
    assert (found.passed, found.value) == (False, 0.3)
    assert "3 of 10 rows" in found.said


def test_the_verdict():
    good, unsure, bad = check_flips(0, 5000, 0.01), check_flips(0, 9, 0.01), check_flips(9, 9, 0.01)
    assert gates.verdict(Gate(), [good], ordered=True)["passed"] is True
    found = gates.verdict(Gate(), [good, unsure], ordered=True)
    assert found["passed"] is None
    assert found["summary"] == "Not enough rows to certify: flips. About 299 rows like these are needed."
    found = gates.verdict(Gate(), [unsure, bad], ordered=False)
    assert (found["passed"], found["summary"]) == (False, "Failed: flips.")
    assert set(found["gate"]) == {"flips", "macro_f1_loss", "ece_increase"}
    assert [check["name"] for check in found["checks"]] == ["flips", "flips"]


@pytest.mark.parametrize("kind", ["json", "toml"])
def test_a_gate_from_a_file(tmp_path, kind):
    path = tmp_path / f"gate.{kind}"
    path.write_text('{"flips": 0.05}' if kind == "json" else "flips = 0.05\n", encoding="utf-8")
    assert gates.read_gate(path) == Gate(flips=0.05)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gate.json", '{"flip": 0.1}', "not known: flip; known: flips, net_under_triage"),
        ("gate.json", '{"flips": true}', "flips must be a share above 0 and up to 1, not True"),
        ("gate.json", '{"flips": 0}', "not 0"),
        ("gate.json", '{"flips": 1.5}', "not 1.5"),
        ("gate.json", '{"flips": NaN}', "not nan"),
        ("gate.json", "[]", "must hold limits by name"),
        ("gate.json", "{", "is not JSON"),
        ("gate.toml", "flips = ", "is not TOML"),
        ("gate.yaml", "flips: 1", r"must be a \.json or a \.toml file"),
        ("absent.json", None, "cannot be read"),
    ],
)
def test_a_gate_that_is_none_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        gates.read_gate(tmp_path / name)


def test_toml_without_a_reader_says_so(tmp_path, monkeypatch):
    (tmp_path / "gate.toml").write_text("flips = 0.5", encoding="utf-8")
    monkeypatch.setitem(__import__("sys").modules, "tomllib", None)
    monkeypatch.setitem(__import__("sys").modules, "tomli", None)
    with pytest.raises(InputError, match=r"from Python 3\.11 on; write the same limits as \.json"):
        gates.read_gate(tmp_path / "gate.toml")


def test_the_default_gate_is_the_documented_one():
    assert json.dumps(vars(Gate())) == (
        '{"flips": 0.01, "net_under_triage": 0.005, "macro_f1_loss": 0.01, "ece_increase": 0.02}'
    )
