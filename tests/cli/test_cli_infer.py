"""`infer` on what it is meant for: a note or many, from everywhere, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.bundle import Decoding, open_bundle, pack
from r2d_edge.cli.progress import Progress
from r2d_edge.decide import load
from r2d_edge.delimited import read_csv
from r2d_edge.inputs import Columns
from tests.cli.bundles import NOTES, reseal
from tests.cli.conftest import Run

FIELDS = [
    "schema", "id", "label", "probabilities", "label_set", "abstained", "reason", "rationale", "consistent",
    "truncated", "model", "ms",
]  # fmt: skip


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_note_is_one_line_that_says_what_the_library_says(run: Run, bundle: Path) -> None:
    result = run("infer", NOTES[0], "--model", bundle)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    [record] = records(result.stdout)
    assert list(record) == FIELDS
    expected = load(bundle).decide(NOTES[0]).to_json()
    assert {**record, "ms": None} == {**expected, "ms": None}
    assert record["rationale"]


@pytest.mark.parametrize("source", ["argument", "file", "dash", "stdin"])
def test_a_note_comes_from_everywhere(run: Run, bundle: Path, tmp_path: Path, source: str) -> None:
    path = tmp_path / "note.txt"
    path.write_text(NOTES[1], encoding="utf-8-sig")
    arguments: dict[str, tuple[list[object], str | None]] = {
        "argument": ([NOTES[1]], None),
        "file": (["--file", path], None),
        "dash": (["--file", "-"], NOTES[1]),
        "stdin": ([], NOTES[1]),
    }
    given, stdin = arguments[source]
    result = run("infer", *given, "--model", bundle, "--no-rationale", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    [record] = records(result.stdout)
    assert record["probabilities"] == load(bundle).decide(NOTES[1], rationale=False).to_json()["probabilities"]
    assert record["rationale"] is None


def test_a_zip_decides_as_its_folder_does(run: Run, bundle: Path, tmp_path: Path) -> None:
    pack(open_bundle(bundle), tmp_path / "tiny.zip")
    packed, folder = (
        json.loads(run("infer", NOTES[0], "--model", model).stdout) for model in (tmp_path / "tiny.zip", bundle)
    )
    assert packed["probabilities"] == folder["probabilities"]
    assert packed["model"] == folder["model"]


def test_rows_keep_their_order_and_ids(run: Run, bundle: Path) -> None:
    rows = jsonl({"id": "b", "text": NOTES[0]}, {"id": 7, "text": NOTES[1]}, {"text": NOTES[2]})
    result = run("infer", "--input-format", "jsonl", "--model", bundle, "--batch-size", "2", stdin=rows)
    assert result.exit_code == 0, result.stderr
    found = records(result.stdout)
    assert [record["id"] for record in found] == ["b", "7", "3"]
    decider = load(bundle)
    for record, note in zip(found, NOTES[:3], strict=True):
        assert record["probabilities"] == pytest.approx(decider.decide(note).to_json()["probabilities"], abs=2e-6)


def test_other_columns_are_read_when_named(run: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text(f'visit,words,age\nv1,"{NOTES[0]}",4\nv2,"two\nlines",5\n', encoding="utf-8")
    result = run(
        "infer", "--file", path, "--input-format", "csv", "--text-column", "words", "--id-column", "visit",
        "--model", bundle, "--no-rationale",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert [record["id"] for record in records(result.stdout)] == ["v1", "v2"]


def test_json_is_one_document(run: Run, bundle: Path) -> None:
    single = run("infer", NOTES[0], "--model", bundle, "--format", "json")
    assert json.loads(single.stdout)["id"] == "0"
    rows = jsonl({"text": NOTES[0]}, {"text": NOTES[1]})
    many = run("infer", "--input-format", "jsonl", "--model", bundle, "--format", "json", stdin=rows)
    assert [record["id"] for record in json.loads(many.stdout)] == ["1", "2"]


def test_csv_has_a_column_for_each_probability(run: Run, bundle: Path) -> None:
    rows = jsonl({"id": "a", "text": NOTES[0]}, {"id": "b", "text": ""})
    result = run("infer", "--input-format", "jsonl", "--model", bundle, "--format", "csv", stdin=rows)
    scored, empty = csv.DictReader(io.StringIO(result.stdout))
    expected = load(bundle).decide(NOTES[0]).to_json()
    assert scored["label"] == expected["label"]
    assert float(scored["probability less urgent"]) == pytest.approx(expected["probabilities"]["less urgent"], abs=2e-6)
    assert scored["rationale"] == expected["rationale"]
    assert (empty["label"], empty["abstained"], empty["reason"]) == ("", "true", "empty note")


def test_text_shows_every_label_in_order_with_its_share(run: Run, bundle: Path) -> None:
    decision = load(bundle).decide(NOTES[0])
    result = run("infer", NOTES[0], "--model", bundle, "--format", "text")
    lines = result.stdout.splitlines()
    assert lines[0] == decision.label
    bars = [line for line in lines if line.endswith("%")]
    assert [line.strip().split("  ")[0] for line in bars] == list(decision.probabilities)
    [own] = [line for line in bars if line.strip().split("  ")[0] == decision.label]
    assert own.count("█") == max(line.count("█") for line in bars)
    assert str(decision.rationale).split()[0] in result.stdout
    assert lines[-1].startswith(decision.model)


def test_an_abstention_is_said_first(run: Run, own_bundle: Path) -> None:
    reseal(own_bundle, {"calibration": {"temperature": 1.0, "abstain_below": 1.0, "source": "test"}})
    result = run("infer", NOTES[0], "--model", own_bundle, "--format", "text")
    assert result.exit_code == 0
    assert result.stdout.startswith("ABSTAINED: low confidence\n")
    table = run(
        "infer", "--input-format", "jsonl", "--model", own_bundle, "--format", "text", stdin=jsonl({"text": "x"})
    )
    assert "low confidence" in table.stdout
    assert "1 notes, 1 abstained" in table.stdout


def test_beam_size_reaches_the_decoder(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2d_edge.engines.ct2 import CTranslate2Engine

    sizes: list[int] = []
    generate = CTranslate2Engine.generate

    def spy(self: CTranslate2Engine, *args: Any, decoding: Decoding, **kwargs: Any) -> list[list[int]]:
        sizes.append(decoding.beam_size)
        return generate(self, *args, decoding=decoding, **kwargs)

    monkeypatch.setattr(CTranslate2Engine, "generate", spy)
    rows = jsonl({"text": NOTES[0]})
    for chosen in ([], ["--beam-size", "3"]):
        assert run("infer", "--input-format", "jsonl", "--model", bundle, *chosen, stdin=rows).exit_code == 0
    assert sizes == [1, 3]


def test_workers_and_threads_change_no_number(run: Run, bundle: Path) -> None:
    rows = jsonl(*({"text": note} for note in NOTES))
    common = ("infer", "--input-format", "jsonl", "--model", bundle, "--no-rationale")
    plain = records(run(*common, stdin=rows).stdout)
    other = records(run(*common, "--threads", "2", "--workers", "2", "--device", "cpu", stdin=rows).stdout)
    for one, two in zip(plain, other, strict=True):
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)


@pytest.mark.parametrize("format_", ["text", "json", "jsonl", "csv"])
def test_an_open_label_set_is_shown_in_every_format(run: Run, own_bundle: Path, format_: str) -> None:
    data = json.loads((own_bundle / "manifest.json").read_text(encoding="utf-8"))
    reseal(own_bundle, {"task": {**data["task"], "labels": [], "label_kind": "open"}})
    label = load(own_bundle).decide(NOTES[0], rationale=False).label
    result = run("infer", "--model", own_bundle, "--no-rationale", "--format", format_, NOTES[0])
    assert result.exit_code == 0, result.stderr
    assert label
    assert label in result.stdout


def test_the_bar_outlives_a_csv_files_end(tmp_path: Path) -> None:
    """The last rows are decided after the reader has come to its end; the bar still asks where it stands."""
    path = tmp_path / "notes.csv"
    path.write_text("id,text\n1,chest pain\n2,fever\n", encoding="utf-8")
    with path.open("rb") as stream, Progress(stream, shown=True) as progress:
        for _ in list(read_csv(stream, "notes.csv", Columns())):
            progress.advance()
        assert stream.tell() == path.stat().st_size
