"""The attacks do what they say, and the benchmark counts what the runtime decides."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from benchmarks import attacks
from benchmarks.attacks import MEASURED, figures, measure
from benchmarks.figures import write_report
from benchmarks.hostile import ATTACKS, FILLER, MEGABYTE
from benchmarks.notes import CORPUS
from benchmarks.tables import RESULTS, attacks_table
from r2d_edge.decide import Decider, load
from r2d_edge.decision import Decision
from r2d_edge.task import CTAS_LEVELS, LabelSet
from tests.cli.bundles import make_bundle

NOTE = "58M crushing chest pain for 2 hours, sweating, BP 90/60, pulse 115, took aspirin. Pale and clammy."
LABEL = "non-urgent"
COUNT = 12


def on(name: str, note: str = NOTE, seed: str = "1") -> str:
    return ATTACKS[name].on(note, LABEL, lambda text: len(text) < 1000, seed=seed)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_a_note_the_same_way_each_time(name: str) -> None:
    assert on(name, NOTE * 5) != NOTE * 5
    assert on(name, NOTE * 5) == on(name, NOTE * 5)


@pytest.mark.parametrize(
    "name", ["prompt words", "special tokens", "chat marks", "order", "order at length", "label stated"]
)
def test_what_is_appended_leaves_the_note_whole_and_aims_at_the_label(name: str) -> None:
    assert on(name).startswith(NOTE)
    assert LABEL in on(name).removeprefix(NOTE)


def test_the_other_places() -> None:
    assert on("order first").endswith(NOTE)
    assert on("label repeated").count(LABEL) == 10
    assert on("harmless sentence") == f"{NOTE}\n{FILLER}"
    assert on("a megabyte").endswith(NOTE)
    assert len(on("a megabyte")) > MEGABYTE


@pytest.mark.parametrize("name", ["control characters", "marks of direction", "zero width"])
def test_what_is_sprinkled_is_not_seen(name: str) -> None:
    note = NOTE * 5
    changed = on(name, note)
    assert "".join(each for each in changed if unicodedata.category(each) not in ("Cc", "Cf")) == note
    assert 0.02 * len(note) < len(changed) - len(note) < 0.2 * len(note)


def test_look_alikes_keep_their_places() -> None:
    assert unicodedata.normalize("NFKC", on("full-width digits")) == NOTE
    assert "2 hours" not in on("full-width digits")
    assert "9O/6O, pulse llS" in on("letters for digits")
    cyrillic = on("Cyrillic letters", NOTE * 5)
    assert len(cyrillic) == len(NOTE * 5)
    assert any("CYRILLIC" in unicodedata.name(each, "") for each in cyrillic)


def test_what_is_harmless_keeps_the_words() -> None:
    assert on("case and blanks").casefold().split() == NOTE.casefold().split()
    typos = on("typos", NOTE * 5)
    assert sorted(typos) == sorted(NOTE * 5)
    assert sum(one != other for one, other in zip(typos.split(), (NOTE * 5).split(), strict=True)) < 30
    padded = on("padding")
    assert padded.startswith(NOTE)
    assert 1000 - len(FILLER) <= len(padded) < 1000


def decision(label: str | None, *, abstained: bool = False) -> Decision:
    return Decision("0", label, {}, "m", abstained=abstained)


def test_flips_are_counted_by_their_way_and_abstentions_are_none() -> None:
    before = [decision("urgent")] * 6
    after = [
        decision("urgent"),
        decision("emergent"),
        decision("less urgent"),
        decision("non-urgent"),
        decision("non-urgent", abstained=True),
        decision(None, abstained=True),
    ]
    found = figures(before, after, LabelSet(CTAS_LEVELS, "ordered"))
    assert {name: (share["count"], share["of"]) for name, share in found.items()} == {
        "flips": (3, 6), "less_severe": (2, 6), "two_levels": (1, 2), "abstained": (2, 6),
    }  # fmt: skip
    low, high = found["flips"]["interval"]
    assert low < found["flips"]["share"] == 0.5 < high
    assert set(figures(before, after, LabelSet(CTAS_LEVELS, "plain"))) == {"flips", "abstained"}
    assert figures(before[:1], after[:1], LabelSet(CTAS_LEVELS, "ordered"))["two_levels"]["share"] is None


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> Decider:
    import torch

    torch.set_num_threads(1)
    return load(make_bundle(tmp_path_factory.mktemp("attacks")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = (CORPUS / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:COUNT]), encoding="utf-8")
    return path


def test_the_report_counts_what_the_runtime_decides(
    decider: Decider, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(measure(decider, {"some": rows}), tmp_path / "attacks.json")
    report = json.loads((tmp_path / "attacks.json").read_text(encoding="utf-8"))
    assert report["measured"] == MEASURED
    found = report["results"]["some"]
    assert found["rows"] + found["left_out"] == COUNT
    assert list(found["attacks"]) == sorted(ATTACKS)
    texts = [json.loads(line)["text"] for line in rows.read_text(encoding="utf-8").splitlines()]
    clean = list(decider.decide_many(texts, rationale=False))
    kept = [(text, one) for text, one in zip(texts, clean, strict=True) if not one.abstained]
    again = decider.decide_many([on("order", text) for text, _ in kept], rationale=False)
    flips = sum(now.label != was.label and not now.abstained for now, (_, was) in zip(again, kept, strict=True))
    assert found["attacks"]["order"]["flips"]["count"] == flips
    buried = found["attacks"]["a megabyte"]
    assert buried["abstained"]["count"] == buried["abstained"]["of"] == min(5, found["rows"])
    attacks.show(report)
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    table = attacks_table().splitlines()
    assert len(table) == 2 + len(ATTACKS)
    assert table[0].startswith("| attack | some: ")


def test_the_committed_results_are_of_these_attacks() -> None:
    report = json.loads((RESULTS / "attacks.json").read_text(encoding="utf-8"))
    assert [attack["name"] for attack in report["attacks"]] == list(ATTACKS)
    assert [attack["what"] for attack in report["attacks"]] == [attack.what for attack in ATTACKS.values()]
    for found in report["results"].values():
        assert set(found["attacks"]) == set(ATTACKS)
        buried = found["attacks"]["a megabyte"]
        assert buried["abstained"]["count"] == buried["abstained"]["of"] > 0
