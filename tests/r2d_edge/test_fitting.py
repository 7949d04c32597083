"""Calibrating a tiny bundle: what is fitted on which rows, and what deciding then does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2d_edge import load
from r2d_edge.bundle import MANIFEST, Calibration, Manifest, open_bundle, pack
from r2d_edge.calibration import probabilities
from r2d_edge.catalogue import find_model
from r2d_edge.decide import Decider
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, InputError
from r2d_edge.fitting import Goal, calibrate, read_rows
from r2d_edge.label_scores import score_labels
from r2d_edge.policy import LabelSetRule, Policy, apply
from r2d_edge.resealing import calibrate_in_place, write_calibrated
from r2d_edge.task import LabelSet
from tests.cli.bundles import make_bundle, reseal
from tests.tiny_models import TEXTS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("fitting"))


@pytest.fixture
def decider(bundle: Path) -> Decider:
    return load(bundle)


def labelled(decider: Decider, path: Path, rows: int, temperature: float, seed: int = 1) -> Path:
    """Rows whose labels are drawn from the bundle's own probabilities at a temperature."""
    generator = np.random.default_rng(seed)
    texts = [f"{TEXTS[1 + row % 8]} {row}" for row in range(rows)]
    scores = score_labels(decider.engine, decider.encoder, [decider.encoder.predict(text).ids for text in texts])
    labels = decider.task.labels.labels
    chosen = [labels[generator.choice(5, p=row)] for row in probabilities(scores, temperature)]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, chosen, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_decisions_are_as_the_calibration_counted_them(decider: Decider, tmp_path: Path) -> None:
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 300, 0.05)])
    goal = Goal(risk=0.3, confidence=0.8, policy=Policy(3, 1))
    found = calibrate(decider, rows, goal)
    one = found.abstentions[None]
    assert one.threshold is not None
    assert found.calibration.abstain_below == one.threshold
    assert found.risk_of == "under-triage"
    assert one.rows == 200  # the other third fitted the temperature
    assert sum(found.label_rows[None].values()) == 200
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=found.calibration)
    decided = list(decider.decide_many(rows.texts, rationale=False))
    rule = LabelSetRule.from_json(found.calibration.label_set)
    names = decider.task.labels.labels
    given, sets = apply(
        probabilities(rows.scores, found.calibration.temperature), goal.policy, rule.of(names), ordered=True
    )
    for decision, place, members in zip(decided, given, sets, strict=True):
        assert decision.label == names[place]
        assert decision.label_set == tuple(name for name, member in zip(names, members, strict=True) if member)
        assert decision.label in decision.label_set
        assert (decision.reason == "low confidence") is (max(decision.probabilities.values()) < one.threshold)
        assert tuple(decision.probabilities) == names  # also where abstained
    assert "under-triage among the decided at most 0.3 with confidence 0.8" in found.calibration.source


def test_no_row_serves_two_steps_that_rest_on_each_other(decider: Decider, tmp_path: Path) -> None:
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 120, 0.05)])
    up = Goal(risk=0.5, confidence=0.8, policy=Policy(round_up=True))
    found = calibrate(decider, rows, up)
    assert (found.abstentions[None].rows, sum(found.label_rows[None].values())) == (40, 40)
    kept = calibrate(decider, rows, replace(up, keep_temperature=True))
    assert (kept.abstentions[None].rows, sum(kept.label_rows[None].values())) == (60, 60)
    assert kept.calibration.temperature == decider.bundle.manifest.calibration.temperature
    assert not kept.held_out
    without = calibrate(decider, rows, replace(up, threshold=False))
    assert not without.abstentions
    assert without.calibration.abstain_below == 0
    assert "no threshold" in without.calibration.source
    again = calibrate(decider, rows, up)
    assert again == found


def test_rounding_up_gives_the_most_severe_label_of_the_set(decider: Decider, tmp_path: Path) -> None:
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 200, 0.3)])
    found = calibrate(decider, rows, Goal(threshold=False, policy=Policy(round_up=True)))
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=found.calibration)
    decided = list(decider.decide_many(rows.texts[:40], rationale=False))
    assert all(decision.label == decision.label_set[0] for decision in decided if decision.label_set)
    assert any(decision.label != max(decision.probabilities, key=decision.probabilities.get) for decision in decided)


def test_settings_have_their_own_sets_and_thresholds(decider: Decider, tmp_path: Path) -> None:
    files = [
        labelled(decider, tmp_path / "sharp.jsonl", 150, 0.05, 1),
        labelled(decider, tmp_path / "flat.jsonl", 150, 10.0, 2),
    ]
    rows = read_rows(decider, files, ["sharp", "flat"])
    found = calibrate(decider, rows, Goal(risk=0.4, confidence=0.8)).calibration
    assert set(found.by_setting) == {"sharp", "flat"} == set(found.settings)
    sharp, flat = found.in_setting("sharp"), found.in_setting("flat")
    assert sharp.temperature < flat.temperature
    assert sharp.label_set != flat.label_set
    assert found.in_setting(None).label_set == found.label_set
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=found)
    in_sharp = Decider(decider.bundle, EngineOptions(), setting="sharp").decide(rows.texts[0], rationale=False)
    in_flat = Decider(decider.bundle, EngineOptions(), setting="flat").decide(rows.texts[0], rationale=False)
    assert max(in_sharp.probabilities.values()) > max(in_flat.probabilities.values())
    limits = LabelSetRule.from_json(flat.label_set).of(decider.task.labels.labels)
    row = np.array([list(in_flat.probabilities.values())])
    members = apply(row, Policy(), limits, ordered=True)[1][0]
    assert in_flat.label_set == tuple(np.array(decider.task.labels.labels)[members])
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=Calibration(settings={"ward": 2.0}))
    with pytest.raises(InputError, match=r"'flat'.*ward"):
        calibrate(decider, rows, Goal(keep_temperature=True))


def test_a_setting_without_rows_is_dropped_where_temperatures_are_kept(decider: Decider, tmp_path: Path) -> None:
    files = [
        labelled(decider, tmp_path / "sharp.jsonl", 150, 0.05, 1),
        labelled(decider, tmp_path / "flat.jsonl", 150, 10.0, 2),
    ]
    both = read_rows(decider, files, ["sharp", "flat"])
    before = calibrate(decider, both, Goal(risk=0.4, confidence=0.8))
    assert before.dropped == ()
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=before.calibration)
    goal = Goal(risk=0.4, confidence=0.8, keep_temperature=True)
    again = labelled(decider, tmp_path / "again.jsonl", 90, 0.05, 3)
    for settings, known in ((["sharp"], {"sharp"}), (None, set())):
        found = calibrate(decider, read_rows(decider, [again], settings), goal)
        # Every setting that is left has bounds of its own: the general ones hold at the general temperature alone.
        assert set(found.calibration.settings) == set(found.calibration.by_setting) == known
        assert found.dropped == tuple(sorted({"sharp", "flat"} - known))
        assert found.calibration.temperature == before.calibration.temperature
        for name in known:
            assert found.calibration.settings[name] == before.calibration.settings[name]
        with pytest.raises(InputError, match="'flat'"):
            found.calibration.in_setting("flat")
    fresh = calibrate(decider, read_rows(decider, [again]), replace(goal, keep_temperature=False))
    assert fresh.dropped == ("flat", "sharp")


def test_the_source_tells_of_the_last_calibration_alone(decider: Decider, tmp_path: Path) -> None:
    first = read_rows(decider, [labelled(decider, tmp_path / "first.jsonl", 120, 0.05)])
    goal = Goal(risk=0.5, confidence=0.8)
    before = calibrate(decider, first, goal).calibration
    assert "sets and threshold on 80 of 120 rows (" in before.source
    assert before.source.endswith("none of them the temperature's")
    temperature = before.source.partition("; class-conditional")[0]
    assert "first.jsonl" in temperature
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=before)
    second = read_rows(decider, [labelled(decider, tmp_path / "second.jsonl", 90, 0.05, 2)])
    kept = replace(goal, risk=0.45, coverage=0.8, keep_temperature=True)
    after = calibrate(decider, second, kept).calibration
    assert after.source.startswith(f"{temperature}; class-conditional conformal label sets of coverage 0.8; ")
    assert "sets and threshold on 90 of 90 rows (" in after.source
    assert after.source.endswith("at the temperature the bundle had")
    assert after.source.count("threshold ") == before.source.count("threshold ")  # the replaced one is not quoted
    assert after.source.count("first.jsonl") == 1
    rounded = calibrate(decider, second, replace(kept, policy=Policy(round_up=True))).calibration
    assert "sets on 45 and threshold on 45 others of 90 rows (" in rounded.source
    bare = calibrate(decider, second, replace(kept, threshold=False)).calibration
    assert "asked for; sets on 90 of 90 rows (" in bare.source
    decider.bundle.manifest = replace(decider.bundle.manifest, calibration=Calibration(2.0, source="set by hand"))
    assert calibrate(decider, second, kept).calibration.source.startswith("set by hand; class-conditional")


def test_what_cannot_be_asked_for(decider: Decider, tmp_path: Path) -> None:
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 20, 1.0)])
    decider.task = replace(decider.task, labels=replace(decider.task.labels, kind="plain"))
    for goal in (Goal(policy=Policy(2, 1)), Goal(policy=Policy(round_up=True)), Goal(risk_of="under-triage")):
        with pytest.raises(InputError, match="ordered"):
            calibrate(decider, rows, goal)
    assert calibrate(decider, rows, Goal()).risk_of == "error"
    decider.task = replace(decider.task, prompts=replace(decider.task.prompts, explain=None))
    with pytest.raises(InputError, match="rationales"):
        calibrate(decider, rows, Goal(policy=Policy(check_rationale=True)))
    decider.task = replace(decider.task, labels=LabelSet((), "open"))
    with pytest.raises(InputError, match="free text"):
        read_rows(decider, [tmp_path / "rows.jsonl"])


def test_truncated_notes_are_never_counted_as_decided(decider: Decider, tmp_path: Path) -> None:
    file = labelled(decider, tmp_path / "rows.jsonl", 60, 0.05)
    rows = read_rows(decider, [file])
    assert not rows.truncated.any()
    goal = Goal(risk=0.6, confidence=0.5, keep_temperature=True)
    assert calibrate(decider, rows, goal).abstentions[None].decided > 0
    cut = replace(rows, truncated=np.ones(60, dtype=bool))
    assert calibrate(decider, cut, goal).failed == [None]


def test_a_rationale_that_disagrees_forces_abstention(decider: Decider, tmp_path: Path) -> None:
    texts = TEXTS[1:9]
    # This model always finds the last label most probable; costs that lie in the midst of its notes tell them apart.
    last = [decision.probabilities["non-urgent"] for decision in decider.decide_many(texts, rationale=False)]
    share = 1 - float(np.median(last))
    costs = Policy(1 - share, share)
    manifest = decider.bundle.manifest
    decider.bundle.manifest = replace(manifest, calibration=Calibration(policy=costs.to_json()))
    plain = list(decider.decide_many(texts))
    checked = list(decider.decide_many(texts, check=True))
    alone = {text: decision.label for text, decision in zip(texts, plain, strict=True)}
    for before, after in zip(plain, checked, strict=True):
        recovered = decider.decide(before.rationale, rationale=False).label
        assert after.consistent is (recovered == before.label)
        assert (after.label, after.rationale, after.abstained) == (before.label, before.rationale, False)
        assert before.consistent is None
        assert set(after.ms) == {"label", "rationale", "check"}
    assert {decision.consistent for decision in checked} == {True, False}

    unforced = decider.bundle.manifest
    decider.bundle.manifest = replace(
        unforced, calibration=Calibration(policy=replace(costs, check_rationale=True).to_json())
    )
    forced = list(decider.decide_many(texts, rationale=False))
    for before, after in zip(checked, forced, strict=True):
        assert after.rationale is None  # it was not asked for
        assert (after.label, after.consistent) == (before.label, before.consistent)
        assert (after.abstained, after.reason) == (
            (False, None) if before.consistent else (True, "rationale disagrees")
        )
        assert dict(after.probabilities) == pytest.approx(dict(before.probabilities))
    seen = []
    one = next(text for text, decision in zip(texts, checked, strict=True) if not decision.consistent)
    decision = decider.decide(one, on_label=seen.append, on_token=lambda piece: pytest.fail("shown before the check"))
    assert seen == [decision]  # no label is shown that is then taken back
    assert (decision.reason, decision.label) == ("rationale disagrees", alone[one])
    assert decider.decide("chest pain " * 400).reason == "truncated"

    decider.bundle.manifest = unforced
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 30, 1.0)])
    found = calibrate(
        decider,
        rows,
        Goal(risk=0.9, confidence=0.5, keep_temperature=True, policy=replace(costs, check_rationale=True)),
    )
    agreeing = sum(bool(one.consistent) for one in decider.decide_many(rows.texts, check=True))
    assert 0 < found.abstentions[None].decided <= agreeing < 30


def test_a_rationale_without_words_leads_to_no_label(decider: Decider) -> None:
    decision = replace(decider.decide(TEXTS[1], rationale=False), rationale=" ")
    [checked] = decider._checked([decision])
    assert checked.consistent is False


def test_a_sealed_bundle_says_what_was_fitted(decider: Decider, bundle: Path, tmp_path: Path) -> None:
    rows = read_rows(decider, [labelled(decider, tmp_path / "rows.jsonl", 60, 0.05)])
    fitted = calibrate(decider, rows, Goal(threshold=False, policy=Policy(2, 1, round_up=True))).calibration
    for target in (tmp_path / "new", tmp_path / "new.zip"):
        written = write_calibrated(decider.bundle, fitted, target)
        assert written.manifest.calibration == fitted == open_bundle(target).manifest.calibration
        assert written.digest != decider.bundle.digest
        assert written.manifest.files == decider.bundle.manifest.files
        assert max(load(target).golden_differences()) < 1e-3  # raw scores, whatever the calibration
        with pytest.raises(InputError, match="exists"):
            write_calibrated(decider.bundle, fitted, target)
    again = replace(fitted, temperature=3.0)
    for target in (tmp_path / "new", tmp_path / "new.zip"):
        changed = calibrate_in_place(open_bundle(target), again, target)
        assert changed.manifest.calibration == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.zip", "rows.jsonl"]
    assert open_bundle(bundle).digest == decider.bundle.digest
    with pytest.raises(InputError, match="no folder"):
        write_calibrated(decider.bundle, fitted, tmp_path / "nowhere" / "new")


def test_a_failure_leaves_the_bundle_as_it_was(
    bundle: Path, decider: Decider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "own.zip"
    pack(decider.bundle, target)
    before = target.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r2d_edge.resealing.pack", full)
    with pytest.raises(OSError, match="space"):
        calibrate_in_place(open_bundle(target), Calibration(2.0), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["own.zip"]


def test_a_calibration_that_does_not_fit_is_refused(bundle: Path, decider: Decider, tmp_path: Path) -> None:
    wrong = {"coverage": 0.9, "thresholds": {"high": 0.5, "low": 0.5}}
    for calibration in (
        {"label_set": wrong},
        {"settings": {"ward": 2.0}, "by_setting": {"ward": {"label_set": wrong}}},
    ):
        manifest = replace(decider.bundle.manifest, calibration=Calibration(**calibration))
        written = write_calibrated(decider.bundle, manifest.calibration, tmp_path / str(len(calibration)))
        with pytest.raises(BundleError, match="does not fit"):
            load(written.root)
    data = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    for calibration in (
        {"policy": {"loud": True}},
        {"policy": None},
        {"policy": {"round_up": True}},
        {"label_set": [1]},
        {"by_setting": {"ward": {}}},
        {"settings": {"ward": 1.0}, "by_setting": {"ward": {"temperature": 2.0}}},
        {"settings": {"ward": 1.0}, "by_setting": {"ward": {"abstain_below": 7}}},
    ):
        with pytest.raises(BundleError, match="malformed"):
            reseal(bundle, {"calibration": {**data["calibration"], **calibration}})
    task = {**data["task"], "label_kind": "plain"}
    other = write_calibrated(decider.bundle, Calibration(policy=Policy(2, 1).to_json()), tmp_path / "costs").root
    reseal(other, {"task": task})
    with pytest.raises(BundleError, match="ordered"):
        load(other)


def test_bundles_without_a_policy_are_read_as_before() -> None:
    embedded = open_bundle(find_model())
    data = json.loads((embedded.root / MANIFEST).read_text(encoding="utf-8"))
    older = {key: data["calibration"][key] for key in ("temperature", "abstain_below", "source", "settings")}
    fitted = Manifest.from_json({**data, "calibration": older}).calibration
    assert fitted == embedded.manifest.calibration
    assert Policy.from_json(fitted.policy) == Policy()
    assert LabelSetRule.from_json(fitted.label_set) is None
    assert load().decide("Chest pain since an hour.", rationale=False).label_set is None
