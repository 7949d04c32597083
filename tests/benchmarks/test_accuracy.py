"""The accuracy benchmark on a tiny bundle: its report holds what the tables and the committed results hold."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import calibration_figures, measure
from benchmarks.figures import write_report
from r2d_edge.decide import load
from tests.cli.bundles import make_bundle

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "train" / "corpora" / "ctas_notes"
COUNT = 20


def first_rows(part, folder):
    lines = (CORPUS / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    path = folder / f"{part}.jsonl"
    path.write_text("".join(line + "\n" for line in lines[:COUNT]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def decider(tmp_path_factory):
    import torch

    torch.set_num_threads(1)
    return load(make_bundle(tmp_path_factory.mktemp("accuracy")))


@pytest.fixture(scope="module")
def report(decider, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    files = {part: {"ctas": first_rows(part, folder)} for part in ("validation", "train")}
    write_report(measure(decider, files["validation"], files["train"]), folder / "out.json")
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


def test_the_report_has_the_keys_of_the_committed_results(report):
    committed = json.loads((ROOT / "benchmarks" / "results" / "triage-nano.json").read_text(encoding="utf-8"))
    assert set(committed) <= set(report)
    (expected,), (found,) = (data["results"]["ctas"].values() for data in (committed, report))
    assert set(expected) == set(found)
    # BERTScore is not asked for here, and there is no contrast pair among the first rows.
    left_out = {"bertscore_f1", "bertscore_f1_interval", "pairs_both_right"}
    for part in ("label", "rationale"):
        assert set(expected[part]) - left_out <= set(found[part])


def test_the_figures_are_those_of_the_runtimes_decisions(report, decider):
    rows = [json.loads(line) for line in (CORPUS / "validation.jsonl").open(encoding="utf-8")][:COUNT]
    decisions = list(decider.decide_many([row["text"] for row in rows]))
    found = report["results"]["ctas"]["tiny"]
    right = sum(decision.label == row["label"] for decision, row in zip(decisions, rows, strict=True))
    assert found["label"]["accuracy"] == round(right / COUNT, 4)
    assert found["rationale"]["rows"] == COUNT
    assert found["abstained"] == sum(decision.abstained for decision in decisions)
    # A temperature of 1 is no calibration.
    assert found["label"]["ece"] == found["label"]["ece_uncalibrated"]
    low, high = found["label"]["macro_f1_interval"]
    assert low <= found["label"]["macro_f1"] <= high
    assert 0 <= found["rationale"]["consistency"] <= 1


def test_settings_that_differ_gain_by_temperatures_of_their_own():
    import numpy as np

    rng = np.random.default_rng(1)
    scored = {}
    for name, sharpness in (("sure", 6.0), ("unsure", 1.0)):
        truth = rng.dirichlet(np.ones(3), 400)
        gold = np.array([rng.choice(3, p=row) for row in truth])
        scored[name] = (gold, sharpness * np.log(truth))
    found = calibration_figures(scored, seed=2)
    for figures in found.values():
        mean, low, high = figures["ece_if_calibrated"]
        assert low < mean < high
        assert low <= figures["ece_crossfitted"] <= high  # calibrated, as far as so few rows tell
        assert figures["ece_one"] > high
        assert figures["ece_debiased"] < figures["ece_one"]
