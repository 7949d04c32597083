"""The accuracy benchmark on a tiny bundle: its report holds what the tables and the committed results hold."""

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import crossfitted, measure
from benchmarks.figures import write_report
from r2d_edge.decide import load
from tests.cli.bundles import make_bundle

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "train" / "corpora" / "ctas_notes"
COUNT = 12


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
    bertscore = {"bertscore_f1", "bertscore_f1_interval"}  # not asked for here
    for part in ("label", "rationale"):
        assert set(expected[part]) - bertscore <= set(found[part])


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


def test_each_fold_is_calibrated_by_the_others():
    import numpy as np

    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 300)
    raw = np.log(rng.dirichlet(np.ones(3), 300))
    raw[np.arange(300), gold] += 0.5
    raw = 5 * raw  # overconfident
    found = crossfitted(gold, raw, seed=2)
    assert found.sum(axis=1) == pytest.approx(np.ones(300))
    assert found.max() < np.exp(raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)).max()
    assert (found.argmax(axis=1) == raw.argmax(axis=1)).all()
