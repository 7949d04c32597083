"""Deciding on a real tiny bundle: what is scored, what is abstained on, what is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from r2d_edge import load
from r2d_edge.bundle import Calibration, Decoding
from r2d_edge.cli import cli
from r2d_edge.decide import Decider, why_unreadable
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import EngineError, InputError
from r2d_edge.task import LabelSet
from tests.cli.bundles import make_bundle, reseal
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("decide"))


@pytest.fixture
def decider(bundle: Path) -> Decider:
    return load(bundle)


def test_a_decision(decider: Decider) -> None:
    decision = decider.decide(TEXTS[1], id="17")
    labels = decider.task.labels.labels
    assert tuple(decision.probabilities) == labels
    assert sum(decision.probabilities.values()) == pytest.approx(1)
    assert decision.label == max(labels, key=lambda label: decision.probabilities[label])
    assert decision.id == "17"
    assert decision.rationale
    assert not decision.abstained
    assert set(decision.ms) == {"label", "rationale"}
    assert decision.model.startswith("tiny 0.0.1 sha256:")


def test_the_record_has_the_schemas_fields(decider: Decider) -> None:
    fields = ["schema", "id", "label", "probabilities", "label_set", "abstained", "reason", "rationale"]
    fields += ["consistent", "truncated", "model", "ms"]
    assert list(decider.decide(TEXTS[1]).to_json()) == fields


def test_streamed_pieces_are_the_rationale(decider: Decider) -> None:
    pieces: list[str] = []
    seen: list[str | None] = []
    decision = decider.decide(TEXTS[2], on_token=pieces.append, on_label=lambda early: seen.append(early.label))
    assert "".join(pieces) == decision.rationale
    assert seen == [decision.label]


def test_many_decides_as_one_by_one(decider: Decider) -> None:
    texts = [*TEXTS[1:8], "", TEXTS[3]]
    many = list(decider.decide_many(texts, batch_size=4))
    for number, (together, text) in enumerate(zip(many, texts, strict=True)):
        alone = decider.decide(text, id=str(number))
        assert (together.id, together.label, together.reason) == (alone.id, alone.label, alone.reason)
        assert together.rationale == alone.rationale
        assert dict(together.probabilities) == pytest.approx(dict(alone.probabilities), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty note"),
        (" \n\t ", "empty note"),
        ("chest \ud800 pain", "not valid Unicode"),
        ("PK\x03\x04\x00\x00\x08chest pain", "not text"),
        ("\x01\x02\x03\x04 chest", "not text"),
        ("\ufffd\ufffd\ufffd ab", "not text"),
        ("12/80 ... ??", "no words"),
    ],
)
def test_what_is_no_note_is_abstained_on(decider: Decider, text: str, reason: str) -> None:
    decision = decider.decide(text)
    assert (decision.abstained, decision.reason) == (True, reason)
    assert decision.label is None
    assert decision.rationale is None
    assert not decision.probabilities


@pytest.mark.parametrize(
    "text", ["Chest pain.", "a\tb\r\nc", "39.5 °C, SpO₂ 95 %", "胸痛", "x\x07 bell once in a longer note"]
)
def test_notes_are_read(text: str) -> None:
    assert why_unreadable(text) is None


def test_a_note_that_does_not_fit_is_truncated_and_abstained_on(decider: Decider) -> None:
    decision = decider.decide("chest pain " * 400, rationale=False)
    assert decision.truncated
    assert (decision.abstained, decision.reason) == (True, "truncated")
    assert decision.label is not None


def test_low_confidence_is_abstained_on(bundle: Path) -> None:
    decider = load(bundle)
    sure = max(decider.decide(TEXTS[1], rationale=False).probabilities.values())
    for threshold, reason in ((sure + 1e-3, "low confidence"), (sure - 1e-3, None)):
        decider.bundle.manifest = replace(decider.bundle.manifest, calibration=Calibration(1.0, threshold, "test"))
        assert decider.decide(TEXTS[1], rationale=False).reason == reason


def test_temperature_flattens(bundle: Path) -> None:
    decider = load(bundle)
    raw = decider.decide(TEXTS[1], rationale=False)
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=Calibration(4.0, 0.0, "test"))
    flat = decider.decide(TEXTS[1], rationale=False)
    assert flat.label == raw.label
    assert max(flat.probabilities.values()) < max(raw.probabilities.values())


def test_a_setting_has_its_own_temperature(bundle: Path) -> None:
    decider = load(bundle)
    plain = Calibration(4.0, 0.0, "test")
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=plain)
    hot = decider.decide(TEXTS[1], rationale=False).probabilities
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=Calibration(1.0, 0.0, "test", {"ward": 4.0}))
    assert decider.decide(TEXTS[1], rationale=False).probabilities != hot
    ward = Decider(decider.bundle, EngineOptions(), setting="ward")
    assert ward.decide(TEXTS[1], rationale=False).probabilities == hot
    with pytest.raises(InputError, match=r"'field'.*ward"):
        Decider(decider.bundle, EngineOptions(), setting="field")
    with pytest.raises(InputError, match="none"):
        load(bundle, setting="ward")


def test_golden_rows_score_here_as_where_they_were_made(decider: Decider) -> None:
    assert max(decider.golden_differences()) < 1e-3


def test_an_impossible_device_is_named(bundle: Path) -> None:
    with pytest.raises(EngineError, match="cuda"):
        load(bundle, EngineOptions(device="cuda"))


def test_threads_and_why(bundle: Path) -> None:
    described = load(bundle).engine.describe()
    assert described["threads"] == 1
    assert "rule" in str(described["threads_why"])
    assert load(bundle, EngineOptions(threads=2)).engine.describe()["threads"] == 2


def test_an_open_label_set_gives_the_label_that_is_written(tmp_path: Path) -> None:
    closed = load(make_bundle(tmp_path))
    task = replace(closed.task, labels=LabelSet((), "open"))
    reseal(closed.bundle.root, {"task": task.to_json()})
    decider = load(closed.bundle.root)
    decision = decider.decide(TEXTS[1])
    ids = decider.engine.generate(
        [decider.encoder.predict(TEXTS[1]).ids], max_tokens=task.limits.label, decoding=Decoding()
    )[0]
    assert decision.label == decider.encoder.decode(ids).strip()
    (label, probability), *others = decision.probabilities.items()
    assert (label, others) == (decision.label, [])
    assert 0 < probability < 1


def test_a_model_that_writes_no_rationales(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels-only"
    shutil.copytree(bundle, folder)
    task = load(folder).task
    reseal(folder, {"task": replace(task, prompts=replace(task.prompts, explain=None)).to_json()})
    decider = load(folder)
    assert decider.decide(TEXTS[1]).rationale is None
    assert [decision.rationale for decision in decider.decide_many(TEXTS[1:4])] == [None] * 3
    assert decider.decide(TEXTS[1]).probabilities == load(bundle).decide(TEXTS[1]).probabilities
    result = CliRunner().invoke(cli, ["infer", "--model", str(folder), "--format", "json", TEXTS[1]])
    assert json.loads(result.stdout)["rationale"] is None
