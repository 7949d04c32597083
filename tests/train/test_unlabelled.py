"""Note-like text without labels: variants keep to their notes' sentences, and only notes are taken out of documents."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from train.cli import main
from train.data import DatasetError
from train.recipe import RecipeError
from train.unlabelled import crossed, notes_of, sentences, shortened, write_unlabelled

NOTE = "62F c/o heartburn; T2DM on insulin. Both arms feel heavy. BP 104/62. SpO2 95% RA."
OTHER = "Fell off a swing. Wrist swollen. Moves fingers. Pain 6/10."
many = st.lists(st.sampled_from(["Fever.", "No rash;", "Alert!", "Eats?", "HR 104."]), min_size=2, max_size=12)


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"id": f"n{number}", "text": text, "label": "urgent"} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_sentences_leave_numbers_whole() -> None:
    assert sentences("T 38.9; HR 104. Well!") == ["T 38.9;", "HR 104.", "Well!"]


@given(many, st.integers(0, 1000))
def test_a_shortened_note_lacks_something_and_keeps_half(pieces: list[str], seed: int) -> None:
    left = sentences(shortened(" ".join(pieces), np.random.default_rng(seed)))
    assert len(pieces) / 2 <= len(left) < len(pieces)
    rest = iter(pieces)
    assert all(piece in rest for piece in left)  # in their order


@given(many, many, st.integers(0, 1000))
def test_a_crossed_note_begins_as_one_and_ends_as_the_other(first: list[str], second: list[str], seed: int) -> None:
    pieces = sentences(crossed(" ".join(first), " ".join(second), np.random.default_rng(seed)))
    assert pieces[0] == first[0]
    assert pieces[-1] == second[-1]
    assert any(pieces == [*first[:k], *second[-(len(pieces) - k) :]] for k in range(1, len(pieces)))


def test_notes_are_found_in_documents() -> None:
    body = "The patient is a 61-year-old female who has had low nausea for a month, with pain on deep inspiration."
    longer = f"{body} She has no heartburn, no cough and no rash."
    assert notes_of(f"Doctor: How are you? Patient: Fine. Note: {longer}") == [longer]
    assert notes_of(f"CHIEF COMPLAINT Nausea. HISTORY OF PRESENT ILLNESS {longer} PHYSICAL EXAM Well.") == [longer]
    assert notes_of("Doctor: Anything else? Note: She is 61 years old.") == []  # too short
    assert notes_of(f"Note: {longer.replace('61-year-old ', '')}") == []  # no age
    assert notes_of(f"[doctor] HISTORY OF PRESENT ILLNESS [doctor] {longer}") == []
    assert notes_of(longer) == []  # nothing says that it is a note


def test_the_file_is_the_same_for_a_seed(tmp_path: Path) -> None:
    notes = write(tmp_path / "notes.jsonl", [NOTE, OTHER, "One sentence.", NOTE + " " + OTHER])
    first, second, third = (tmp_path / f"{name}.jsonl" for name in "abc")
    assert write_unlabelled(first, variants_of=[notes]) == 3
    write_unlabelled(second, variants_of=[notes])
    write_unlabelled(third, variants_of=[notes], seed=14)
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()
    rows = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["n0-variant", "n1-variant", "n3-variant"]
    assert all("label" not in row for row in rows)


def test_a_heading_ends_a_history_and_a_word_in_capitals_does_not() -> None:
    history = (
        "The patient is a 61-year-old female with known severe COPD on home oxygen who now cannot lie flat at night, "
        "and who had COVID-19 in March."
    )
    for heading in ("REVIEW OF SYSTEMS", "PAST MEDICAL HISTORY", "CURRENT MEDICATIONS", "PHYSICAL EXAM"):
        assert notes_of(f"HISTORY OF PRESENT ILLNESS: {history} {heading} None.") == [history]


def test_no_note_is_crossed_with_itself(tmp_path: Path) -> None:
    single, pair = write(tmp_path / "one.jsonl", [NOTE]), write(tmp_path / "two.jsonl", [NOTE, OTHER])
    for seed in range(8):
        for notes in (single, pair):
            write_unlabelled(tmp_path / "out.jsonl", variants_of=[notes], seed=seed)
            first = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])
            assert first["text"] != NOTE


def test_ids_that_would_occur_twice_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", [NOTE]), write(tmp_path / "b.jsonl", [OTHER])
    with pytest.raises(DatasetError, match="twice"):
        write_unlabelled(tmp_path / "out.jsonl", variants_of=[first, second])


def test_the_command(tmp_path: Path) -> None:
    notes = write(tmp_path / "notes.jsonl", [NOTE, OTHER])
    output = tmp_path / "out.jsonl"
    result = CliRunner().invoke(main, ["unlabelled", "--variants-of", str(notes), "-o", str(output)])
    assert result.exit_code == 0
    assert "2 texts" in result.output
    assert output.is_file()
    assert CliRunner().invoke(main, ["unlabelled", "--variants-of", str(notes), "-o", "out.csv"]).exit_code == 2


def test_nothing_found_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two sentences"):
        write_unlabelled(tmp_path / "out.jsonl", variants_of=[write(tmp_path / "notes.jsonl", ["Fever."])])
