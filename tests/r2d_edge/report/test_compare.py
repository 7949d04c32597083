"""The whole report over tiny real models."""

import json
import shutil

import numpy as np
import pytest

from r2d_edge.decide import load
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import InputError
from r2d_edge.report.compare import ReportOptions, make_report
from r2d_edge.task import CTAS_LEVELS
from tests.cli.bundles import reseal
from tests.r2d_edge.report.conftest import labelled, write_rows
from train.warmstart import packaged_minilm

CPU = EngineOptions(device="cpu", threads=1)
OPTIONS = ReportOptions(source="llm", resamples=200)


def report_of(reference, candidate, data, options=OPTIONS, **more):
    return make_report(str(reference), str(candidate), [data], options, CPU, **more)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def moved(bundle, rows, path, *, sharpness=1.0, turned=()):
    """Decisions of a bundle whose probabilities were changed; the label of turned rows is the next less severe."""
    records = []
    for row, decision in zip(
        rows, load(bundle, CPU).decide_many([row["text"] for row in rows], ids=[row["id"] for row in rows]), strict=True
    ):
        record = decision.to_json()
        values = np.array([record["probabilities"][name] for name in CTAS_LEVELS]) ** sharpness
        if row["id"] in turned:
            values = np.roll(values, 1)
            assert CTAS_LEVELS[values.argmax()] != record["label"]
        probabilities = dict(zip(CTAS_LEVELS, (values / values.sum()).tolist(), strict=True))
        records.append({**record, "probabilities": probabilities, "label": CTAS_LEVELS[values.argmax()]})
    return write_rows(path, records)


def test_a_checkpoint_against_its_bundle(tiny, data):
    steps = []
    report = report_of(
        tiny / "checkpoint", tiny / "bundle", data, command="r2d-edge report", on_step=lambda *step: steps.append(step)
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    compared = report["compared"]
    assert (compared["reference"]["kind"], compared["candidate"]["kind"]) == ("checkpoint", "bundle")
    assert (compared["data"]["rows"], compared["data"]["used"], compared["data"]["source"]) == (16, 16, "llm")
    assert compared["data"]["without_rationale"] == 0
    assert compared["labels"] == list(CTAS_LEVELS)
    assert compared["machine"]["cores"] >= 1
    assert compared["command"] == "r2d-edge report"
    assert compared["warnings"] == []
    assert report["flips"]["count"] == 0
    assert report["drift"]["kl"]["max"] < 1e-6
    assert report["quality"]["difference"]["macro_f1"] == {"value": 0, "low": 0, "high": 0}
    assert report["rationales"]["exact_match"] >= 15 / 16
    assert report["rationales"]["consistency"]["candidate"] is not None
    assert report["verdict"]["passed"] is None
    assert steps[:2] == [("reference", 1, 16), ("reference", 2, 16)]
    assert steps[-1] == ("candidate", 16, 16)
    assert len(report["worst"]) == 16
    drifts = [row["drift"] for row in report["worst"]]
    assert drifts == sorted(drifts, reverse=True)


def test_no_text_of_a_note_or_a_rationale_is_in_the_report_unless_asked_for(tiny, data):
    rows = labelled()
    secret = [row["text"] for row in rows] + [text for row in rows for text in row["rationales"].values()]
    said = [decision.rationale for decision in load(tiny / "bundle", CPU).decide_many([row["text"] for row in rows])]
    plain = "\n".join(strings(report_of(tiny / "bundle", tiny / "bundle", data)))
    assert not [text for text in (*secret, *said) if text and text in plain]
    shown = report_of(tiny / "bundle", tiny / "bundle", data, ReportOptions(source="llm", show_texts=True, worst=3))
    assert len(shown["worst"]) == 3
    by_id = {row["id"]: row["text"] for row in rows}
    for entry in shown["worst"]:
        assert entry["text"] == by_id[entry["id"]]
        assert entry["reference_rationale"] == entry["candidate_rationale"] != ""
    assert "both sides are the same" in shown["compared"]["warnings"][0]


def test_turned_labels_are_found(tiny, data, tmp_path):
    rows = labelled()
    turned = ("row-3", "row-7")
    candidate = moved(tiny / "bundle", rows, tmp_path / "moved.jsonl", turned=turned)
    report = report_of(tiny / "bundle", candidate, data)
    assert report["flips"]["count"] == 2
    assert {row["id"] for row in report["worst"][:2]} == set(turned)
    assert all(row["reference_label"] != row["candidate_label"] for row in report["worst"][:2])
    assert report["worst"][2]["drift"] < 1e-6
    assert report["verdict"]["passed"] is False
    assert len(report["drift"]["flipped_margins"]) == 2
    assert report["compared"]["candidate"]["engine"] is None
    # One side's decisions are as they were written.
    assert report["rationales"]["exact_match"] == 1
    assert report["rationales"]["consistency"]["candidate"] is None


def test_two_files_of_decisions(tiny, data, tmp_path):
    rows = labelled()
    one = moved(tiny / "bundle", rows, tmp_path / "one.jsonl")
    other = moved(tiny / "bundle", rows, tmp_path / "other.jsonl", sharpness=3.0)
    plain = report_of(one, other, data)
    assert plain["compared"]["label_kind"] == "plain"
    assert plain["flips"]["ordered"] is None
    assert "net under-triage" not in [check["name"] for check in plain["verdict"]["checks"]]
    assert plain["flips"]["count"] == 0
    assert plain["drift"]["js"]["mean"] > 0.01
    assert plain["calibration"]["candidate"]["temperature"] is None
    ordered = report_of(one, other, data, ReportOptions(source="llm", resamples=200, labels=CTAS_LEVELS))
    assert ordered["flips"]["ordered"]["under"] == 0


def test_probabilities_that_were_rounded_to_nothing_stay_finite(tiny, data, tmp_path):
    made = [
        {
            "id": row["id"],
            "label": "urgent",
            "probabilities": {**dict.fromkeys(CTAS_LEVELS, 0.0), "urgent": 1.0},
        }
        for row in labelled()
    ]
    report = report_of(tiny / "bundle", write_rows(tmp_path / "sure.jsonl", made), data)
    assert 0 < report["drift"]["kl"]["max"] < np.log(1 / 4e-7)
    assert report["calibration"]["candidate"]["nll"] < np.log(1 / 4e-7)
    assert report["rationales"] is None


def test_a_row_that_one_side_did_not_answer_fails_the_gate(tiny, data, tmp_path):
    path = moved(tiny / "bundle", labelled(), tmp_path / "moved.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[1:]), encoding="utf-8")
    report = report_of(tiny / "bundle", path, data)
    assert (report["compared"]["data"]["used"], report["compared"]["candidate"]["unanswered"]) == (15, 1)
    assert report["verdict"]["passed"] is False
    assert report["verdict"]["checks"][0]["said"].startswith("1 of 16 rows")


def test_notes_that_nobody_reads_do_not_count(tiny, tmp_path):
    rows = [*labelled(), {"id": "blank", "text": " ", "label": "urgent", "rationales": {"llm": "x"}}]
    report = report_of(tiny / "bundle", tiny / "bundle", write_rows(tmp_path / "data.jsonl", rows))
    assert report["compared"]["data"]["used"] == 16
    assert report["compared"]["reference"]["unanswered"] == report["compared"]["reference"]["abstained"] == 1
    assert report["verdict"]["checks"][0]["passed"] is True
    with pytest.raises(InputError, match="no row was given a label by both sides"):
        report_of(tiny / "bundle", tiny / "bundle", write_rows(tmp_path / "data.jsonl", rows[-1:]))


def test_what_else_differs_is_said(tiny, data, tmp_path):
    own = shutil.copytree(tiny / "bundle", tmp_path / "own")
    manifest = json.loads((own / "manifest.json").read_text(encoding="utf-8"))
    task = {**manifest["task"], "prompts": {**manifest["task"]["prompts"], "predict": "label: {text}"}}
    task["limits"] = {**task["limits"], "input": 24}
    changes = {
        "task": task,
        "decoding": {**manifest["decoding"], "repetition_penalty": 1.5},
        "calibration": {**manifest["calibration"], "temperature": 2.0},
    }
    reseal(own, changes)
    report = report_of(tiny / "bundle", own, data)
    warnings = " ".join(report["compared"]["warnings"])
    for part in ("in the prompts", "how rationales are decoded", "token limits", "temperatures differ; drift is given"):
        assert part in warnings
    assert report["drift"]["uncalibrated"] is not None
    assert report["compared"]["candidate"]["truncated"] == report["compared"]["candidate"]["abstained"] > 0


def test_a_temperature_alone_moves_the_probabilities_and_not_what_is_under_them(tiny, data, tmp_path):
    own = shutil.copytree(tiny / "bundle", tmp_path / "own")
    reseal(own, {"calibration": {"temperature": 3.0, "settings": {"ward": 0.5}}})
    report = report_of(tiny / "bundle", own, data, ReportOptions(rationales=False, resamples=200, source="llm"))
    assert report["drift"]["js"]["mean"] > 1e-3
    assert report["drift"]["uncalibrated"]["js"]["max"] < 1e-9
    assert report["rationales"] is None
    ward = ReportOptions(rationales=False, resamples=200, source="llm", setting="ward")
    assert report_of(own, own, data, ward)["compared"]["reference"]["temperature"] == 0.5


def test_equal_runs_give_equal_reports(tiny, data):
    one, other = (report_of(tiny / "bundle", tiny / "bundle", data) for _ in range(2))
    one["compared"]["made"] = other["compared"]["made"] = ""
    assert one == other


def test_bertscore(tiny, data):
    options = ReportOptions(source="llm", resamples=200, limit=4, bertscore=packaged_minilm())
    report = report_of(tiny / "bundle", tiny / "bundle", data, options)
    assert report["rationales"]["candidate_vs_reference"]["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert report["rationales"]["candidate_vs_gold"]["bertscore_f1"] < 0.9
    assert report["rationales"]["bertscore"]["layer"] == 6
    assert report["compared"]["data"]["asked"] == report["compared"]["data"]["used"] == 4
