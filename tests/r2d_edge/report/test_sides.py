import json
import shutil
import sys

import numpy as np
import pytest

from r2d_edge.bundle import Decoding, open_bundle, pack
from r2d_edge.decide import load
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, EngineError, InputError
from r2d_edge.report.labelled import read_labelled
from r2d_edge.report.sides import (
    DecisionsSide,
    LiveSide,
    MismatchError,
    common_labels,
    open_bundle_side,
    open_checkpoint_side,
    open_sides,
    read_decisions,
)
from r2d_edge.task import CTAS_LEVELS, PROVENANCE_FILE, TASK_FILE, LabelSet, Limits, Task
from tests.cli.bundles import reseal
from tests.r2d_edge.report.conftest import labelled, write_rows

CPU = EngineOptions(device="cpu", threads=1)
SECRET = "what a note says"


@pytest.fixture
def rows(data):
    return read_labelled([data])[0]


@pytest.fixture
def decisions(tiny, rows, tmp_path):
    """Decisions as `infer` writes them."""
    made = load(tiny / "bundle", CPU).decide_many([row.text for row in rows], ids=[row.id for row in rows])
    return write_rows(tmp_path / "decisions.jsonl", [decision.to_json() for decision in made])


def test_a_bundle_answers_as_the_runtime_does(tiny, rows):
    side = open_bundle_side(str(tiny / "bundle"), CPU)
    counted = []
    found = side.answer(rows, side.labels, rationales=True, on_row=lambda: counted.append(1))
    decider = load(tiny / "bundle", CPU)
    for place, row in enumerate(rows):
        decision = decider.decide(row.text)
        assert side.labels.labels[found.labels[place]] == decision.label
        assert found.probabilities[place] == pytest.approx(list(decision.probabilities.values()), abs=1e-5)
        assert found.rationales[place] == decision.rationale
    again = [decider.decide(text or "", rationale=False).label for text in found.rationales]
    own = [side.labels.labels[place] for place in found.labels]
    assert list(found.consistent) == [a == b for a, b in zip(again, own, strict=True)]
    assert len(counted) == 16
    assert side.description["kind"] == "bundle"
    assert side.description["digest"] == open_bundle(tiny / "bundle").digest
    assert (side.description["engine"], side.description["threads"]) == ("ctranslate2", 1)


def test_a_checkpoint_answers_as_its_float32_bundle(tiny, rows):
    """The bundle's conversion proved its log-probabilities equal to the checkpoint's."""
    full, small = open_sides(str(tiny / "checkpoint"), str(tiny / "bundle"), CPU)
    assert isinstance(full, LiveSide)
    one, other = (side.answer(rows, full.labels, rationales=True) for side in (full, small))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    assert one.labels.tolist() == other.labels.tolist()
    assert sum(a == b for a, b in zip(one.rationales, other.rationales, strict=True)) >= 15
    assert full.description["engine"] == "transformers"
    assert full.description["compute_type"] == "float32"
    assert full.description["size_bytes"] == (tiny / "checkpoint" / "model.safetensors").stat().st_size
    assert full.description["temperature"] == 1


def test_a_checkpoint_decodes_as_the_bundle_on_the_other_side(tiny, tmp_path):
    own = shutil.copytree(tiny / "bundle", tmp_path / "own")
    decoding = {"beam_size": 1, "repetition_penalty": 1.7, "no_repeat_ngram": 2, "only_numbers_of_the_note": True}
    reseal(own, {"decoding": decoding})
    full, small = open_sides(str(tiny / "checkpoint"), str(own), CPU)
    assert full.description["decoding"] == small.description["decoding"] == decoding
    small, full = open_sides(str(own), str(tiny / "checkpoint"), CPU)
    assert full.decoding == Decoding(**decoding)


def test_a_zip_is_a_bundle(tiny, tmp_path):
    pack(open_bundle(tiny / "bundle"), tmp_path / "tiny.zip")
    side = open_bundle_side(str(tmp_path / "tiny.zip"), CPU)
    assert side.description["digest"] == open_bundle(tiny / "bundle").digest


def test_written_decisions_are_what_their_bundle_says(tiny, rows, decisions):
    live, written = open_sides(str(tiny / "bundle"), str(decisions), CPU)
    labels = common_labels(live, written)
    assert labels == LabelSet(CTAS_LEVELS, "ordered")
    one, other = (side.answer(rows, labels, rationales=True) for side in (live, written))
    assert one.labels.tolist() == other.labels.tolist()
    assert one.probabilities == pytest.approx(other.probabilities, abs=2e-6)
    assert other.probabilities.sum(axis=1) == pytest.approx(np.ones(16))
    assert list(one.rationales) == list(other.rationales)
    assert set(other.consistent) == {None}
    assert written.description["made_by"] == [live.description["name"]]


def test_rows_without_a_decision_or_a_label_are_unanswered(rows, decisions):
    records = [json.loads(line) for line in decisions.read_text(encoding="utf-8").splitlines()]
    records[2] = {"id": records[2]["id"], "label": None, "probabilities": {}, "abstained": True}
    records[3] |= {"truncated": True, "consistent": True}
    write_rows(decisions, records[1:])
    side = read_decisions(str(decisions))
    found = side.answer(rows, LabelSet(CTAS_LEVELS), rationales=False)
    assert [place for place, label in enumerate(found.labels.tolist()) if label < 0] == [0, 2]
    assert np.isnan(found.probabilities[[0, 2]]).all()
    assert (found.truncated, found.abstained) == (1, 1)
    assert set(found.rationales) == {None}
    assert side.answer(rows, LabelSet(CTAS_LEVELS), rationales=True).consistent[3] is True


def test_ids_of_several_files(tmp_path):
    one = write_rows(tmp_path / "one.jsonl", labelled(2))
    other = write_rows(tmp_path / "other.jsonl", [{**row, "id": f"row-{n + 1}"} for n, row in enumerate(labelled(2))])
    rows, _ = read_labelled([one, other])
    made = {"label": "yes", "probabilities": {"yes": 0.7, "no": 0.3}}
    ids = ["row-0", "row-1", "other/row-1", "row-2"]
    side = read_decisions(str(write_rows(tmp_path / "made.jsonl", [{"id": name, **made} for name in ids])))
    found = side.answer(rows, LabelSet(("yes", "no")), rationales=True)
    # row-1 is in both files: only the id with the file's name says which.
    assert found.labels.tolist() == [0, -1, 0, 0]


def test_decisions_on_other_rows_are_refused(rows, tmp_path):
    made = {"id": "elsewhere", "label": "urgent", "probabilities": dict.fromkeys(CTAS_LEVELS, 0.2)}
    side = read_decisions(str(write_rows(tmp_path / "made.jsonl", [made])))
    with pytest.raises(InputError, match="holds no decision on any row of the data"):
        side.answer(rows, LabelSet(CTAS_LEVELS), rationales=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2 is not 1"),
        ({"id": None}, "no id"),
        ({"id": "a"}, "id a comes twice"),
        ({"label": "maybe"}, "the label has no probability"),
        ({"probabilities": None}, "no probabilities over the label set"),
        ({"probabilities": {"yes": 0.7, "no": 0.2}}, "do not sum to 1"),
        ({"probabilities": {"yes": float("nan"), "no": 0.2}}, "not a number of 0 to 1"),
        ({"probabilities": {"yes": True, "no": 0}}, "not a number of 0 to 1"),
        ({"probabilities": {"yes": 0.5, "maybe": 0.5}}, "labels are not those of the lines before"),
        ({"rationale": [SECRET]}, "rationale is not text"),
        ({"consistent": SECRET}, "consistent is not true or false"),
    ],
)
def test_lines_that_are_no_decisions_are_named(tmp_path, change, message):
    good = {"id": "a", "label": "yes", "probabilities": {"yes": 0.7, "no": 0.3}}
    path = write_rows(tmp_path / "made.jsonl", [good, {**good, "id": "b", **change}])
    with pytest.raises(InputError, match=f"line 2: .*{message}") as caught:
        read_decisions(str(path))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]\n", "line 1: not a JSON object"), (SECRET, "line 1: not a JSON object"), ("\n", "holds no decision")],
)
def test_files_that_hold_no_decisions(tmp_path, text, message):
    (tmp_path / "made.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_decisions(str(tmp_path / "made.jsonl"))
    assert SECRET not in str(caught.value)


def of_labels(*names):
    return DecisionsSide({}, names, {"name": "made.jsonl"})


def test_label_sets_of_files():
    assert common_labels(of_labels("b", "a"), of_labels("a", "b")) == LabelSet(("b", "a"), "plain")
    ordered = common_labels(of_labels("b", "a"), of_labels("a", "b"), ("a", "b"))
    assert ordered == LabelSet(("a", "b"), "ordered")
    with pytest.raises(MismatchError, match=r"made\.jsonl has the labels a, c, not a, b"):
        common_labels(of_labels("a", "b"), of_labels("a", "c"))
    with pytest.raises(MismatchError, match=r"has the labels a, b, not a, c"):
        common_labels(of_labels("a", "b"), of_labels("a", "b"), ("a", "c"))
    with pytest.raises(MismatchError, match="two labels or more"):
        common_labels(of_labels("a"), of_labels("a"))


def other_task(tiny, folder, task):
    shutil.copytree(tiny / "checkpoint", folder)
    (folder / TASK_FILE).write_text(json.dumps(task.to_json()), encoding="utf-8")
    return open_checkpoint_side(str(folder), CPU, decoding=Decoding())


def test_label_sets_of_models(tiny, tmp_path):
    bundle = open_bundle_side(str(tiny / "bundle"), CPU)
    limits = Limits(input=96, label=24, rationale=32)
    other_order = other_task(tiny, tmp_path / "a", Task(LabelSet(CTAS_LEVELS[::-1], "ordered"), limits=limits))
    with pytest.raises(
        MismatchError, match=r"different label sets: resuscitation, .*; the same labels in the same order"
    ):
        common_labels(bundle, other_order)
    open_set = other_task(tiny, tmp_path / "b", Task(LabelSet((), "open"), limits=limits))
    with pytest.raises(MismatchError, match="free text"):
        common_labels(open_set, bundle)
    with pytest.raises(MismatchError, match="--labels is for two files"):
        common_labels(bundle, of_labels(*CTAS_LEVELS), CTAS_LEVELS)


def test_what_is_no_side(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for spec in (str(tmp_path / "notes.txt"), ""):
        with pytest.raises(BundleError, match=r"neither a bundle, a checkpoint folder nor a \.jsonl file"):
            open_sides(spec, str(tiny / "bundle"), CPU)
    with pytest.raises(BundleError, match="there is no bundle"):
        open_sides(str(tmp_path / "absent.jsonl"), str(tiny / "bundle"), CPU)


def test_a_checkpoint_without_torch(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "r2d_edge.engines.transformers", None)
    with pytest.raises(EngineError, match=r"torch and transformers are needed .* or give a bundle or a file"):
        open_checkpoint_side(str(tiny / "checkpoint"), CPU, decoding=Decoding())


def test_checkpoints_that_cannot_be_opened(tiny, tmp_path):
    def damaged(name):
        return shutil.copytree(tiny / "checkpoint", tmp_path / name)

    bare = damaged("bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"holds no \.safetensors weights"):
        open_checkpoint_side(str(bare), CPU, decoding=Decoding())
    broken = damaged("broken")
    (broken / TASK_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match=r"r2d_task\.json cannot be read"):
        open_checkpoint_side(str(broken), CPU, decoding=Decoding())
    shapeless = damaged("shapeless")
    (shapeless / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be used"):
        open_checkpoint_side(str(shapeless), CPU, decoding=Decoding())


def test_weights_that_are_absent_are_not_made_up(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny / "checkpoint", tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "fc1.weight" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"1 weights are missing, for one .*fc1\.weight"):
        open_checkpoint_side(str(folder), CPU, decoding=Decoding())


def test_what_a_checkpoint_learned_from(tiny, tmp_path):
    folder = shutil.copytree(tiny / "checkpoint", tmp_path / "taught")
    (folder / PROVENANCE_FILE).write_text(json.dumps({"recipe": {"sources": ["nurse"]}}), encoding="utf-8")
    side = open_checkpoint_side(str(folder), CPU, decoding=Decoding())
    from r2d_edge.report.sides import sources_of

    assert sources_of(side) == ["nurse"]
