"""A data set of one's own, with nothing but text, label and rationale, through all four methods in one command."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from r2d_edge.task import PROVENANCE_FILE
from tests.tiny_models import TEXTS, write_tiny_bart
from train.cli import main
from train.data import DatasetError
from train.recipe import RecipeError
from train.study.own_data import _toml, prepare
from train.study.run import load_results
from train.study.spec import read_study
from train.warmstart import LAST_FILE

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

LABELS = ("admit", "send home")


def write_csv(path: Path, count: int, *, rationale: bool = True) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", *(["rationale"] if rationale else [])])
        for row in range(count):
            text = f"{TEXTS[1 + row % 8]} {path.stem} {row}"
            writer.writerow([text, LABELS[row % 2], *([TEXTS[1 + row % 2]] if rationale else [])])
    return path


def test_one_command_compares_all_methods(tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    mine = write_csv(tmp_path / "mine.csv", 24)
    command = ["study", "--data", str(mine), "--base", str(base), "-o", str(tmp_path / "out")]
    for setting in ("epochs=1", "stage1_epochs=1", "max_input=96", "max_rationale=16", "bf16=false", "evaluations=1"):
        command += ["--set", setting]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    tables = result.stdout.split("\n\n")
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0].splitlines()]
    assert head[:6] == ["set", "model", "method", "rationales", "seeds", "macro-F1"]
    assert [line[2] for line in lines] == ["sft", "dss", "r2d", "r2d-c"]
    assert {line[3] for line in lines[1:]} == {"rationale"}
    for line in lines:
        assert 0 <= float(line[5].strip("*")) <= 1
    assert all(line[8] for line in lines[1:])  # BERTScore
    assert "dss − sft" in tables[1]

    again = CliRunner().invoke(main, ["study", str(tmp_path / "out" / "study.toml")])
    assert again.exit_code == 0, again.stderr
    assert again.stdout == result.stdout
    assert "4 of 4 cells are finished" in again.stderr


def write_rows(path: Path, counts: dict[str, int], **values: object) -> Path:
    """Rows of so many texts by label, with further values."""
    rows = [
        {"text": f"{path.stem} {label} note {number}", "label": label, **values}
        for label, count in counts.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parts_of(folder: Path) -> dict[str, list[dict]]:
    """The rows of a prepared study's files, by their names."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in folder.glob("*.jsonl")
    }


def test_every_label_is_in_both_parts_of_a_split(tmp_path: Path) -> None:
    counts = {"common": 190, "rare": 10, "two": 2}
    for name in ("a", "b", "c", "d", "e", "f"):  # other texts, other draws
        prepare(write_rows(tmp_path / f"{name}.jsonl", counts, rationale="why"), tmp_path / name, base="b")
        parts = parts_of(tmp_path / name)
        held_out = [row["label"] for row in parts["validation"]]
        assert {label: held_out.count(label) for label in counts} == {"common": 28, "rare": 2, "two": 1}
        assert len(parts["train"]) == 202 - len(held_out)
    with pytest.raises(DatasetError, match=r"fewer than two different texts .*\(1\): 'two'"):
        prepare(write_rows(tmp_path / "g.jsonl", {**counts, "two": 1}, rationale="why"), tmp_path / "g", base="b")


def test_equal_texts_stay_together(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    rows = [f"{text} {number % 20},{'ab'[number % 2]},why\n" for number in range(40) for text in ("A note", "a  NOTE")]
    mine.write_text("text,label,rationale\n" + "".join(rows), encoding="utf-8")
    prepare(mine, tmp_path / "out", base="b")
    texts = {
        name: {" ".join(row["text"].lower().split()) for row in rows}
        for name, rows in parts_of(tmp_path / "out").items()
    }
    assert not texts["train"] & texts["validation"]
    assert len(parts_of(tmp_path / "out")["validation"]) == 4 * len(texts["validation"]) == 16


def test_a_validation_file_without_rationales_serves_for_the_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = write_rows(tmp_path / "mine.jsonl", {"a": 20, "b": 20}, rationale="why")
    theirs = write_rows(tmp_path / "theirs.jsonl", {"a": 3, "b": 3})
    study = read_study(prepare(mine, tmp_path / "out", validation=theirs, base="b"))
    assert "theirs.jsonl has no 'rationale' rationales" in capsys.readouterr().err
    parts = parts_of(tmp_path / "out")
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 34, "validation": 6, "held-out": 6}
    assert {row["label"] for row in parts["held-out"]} == {"a", "b"}
    assert all(row["rationales"] for row in parts["held-out"])
    assert list(study.cells[0].recipe.validation) == ["validation", "held-out"]

    single = write_rows(tmp_path / "single.jsonl", {"a": 1, "b": 1}, rationale="why")
    with pytest.raises(DatasetError, match="too few rows have a 'rationale' rationale"):
        prepare(single, tmp_path / "single", validation=theirs, base="b")


def test_methods_are_compared_where_validation_has_no_rationales(tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    mine, theirs = write_csv(tmp_path / "mine.csv", 24), write_csv(tmp_path / "theirs.csv", 4, rationale=False)
    out = tmp_path / "out"
    command = ["study", "--data", str(mine), "--validation", str(theirs), "--labels", "admit,send home"]
    command += ["--base", str(base), "-o", str(out), "--no-plots"]
    for setting in ("epochs=1", "stage1_epochs=1", "max_rationale=16", "bf16=false", "evaluations=1"):
        command += ["--set", setting]
    result = CliRunner().invoke(main, [*command, "--only", "method=dss", "--only", "method=r2d"])
    assert result.exit_code == 0, result.stderr
    results = load_results(read_study(out / "study.toml"))
    assert len(results) == 2
    for found in results.values():
        assert all(map(math.isnan, found.sets["validation"].bertscore))
        assert not any(map(math.isnan, found.sets["held-out"].bertscore))


def test_the_recipe_follows_the_base(tmp_path: Path) -> None:
    mine = write_csv(tmp_path / "mine.csv", 60)

    def recipe(base: Path | str, *overrides: str):
        return read_study(prepare(mine, tmp_path / "out", base=str(base), overrides=overrides)).cells[0].recipe

    papers = recipe("some/base")
    assert (papers.max_input, papers.learning_rate, papers.encoder_rate) == (1024, 5e-5, 1.0)

    plain = write_tiny_bart(tmp_path / "plain", max_position_embeddings=512)
    assert recipe(plain) == replace(papers, checkpoint=str(plain), max_input=512, output=recipe(plain).output)
    assert recipe(plain, "max_input=300").max_input == 300
    assert recipe(write_tiny_bart(tmp_path / "short", max_position_embeddings=100)).max_rationale == 100

    warm = {"method": "warm start from a BERT encoder"}
    for name, provenance in (
        ("warm", warm),
        ("pretrained", {"method": "denoising pre-training (span infilling)", "from": warm}),
    ):
        base = write_tiny_bart(tmp_path / name, max_position_embeddings=512)
        (base / PROVENANCE_FILE).write_text(json.dumps(provenance), encoding="utf-8")
        found = recipe(base)
        assert (found.max_input, found.learning_rate, found.encoder_rate) == (384, 3e-4, 0.3)
        assert found.stage1_learning_rate == 5e-4
        assert recipe(base, "learning_rate=1e-4").learning_rate == 1e-4
    (plain / PROVENANCE_FILE).write_text(
        json.dumps({"method": "denoising pre-training (span infilling)", "from": "bart-base"}), encoding="utf-8"
    )
    assert recipe(plain).learning_rate == 5e-5


def test_a_study_may_stand_in_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_csv(tmp_path / "mine.csv", 60)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    study = read_study(prepare(mine, Path(), base="."))
    assert (study.name, study.cells[0].name) == ("here", "here_here_sft_none_13")


def test_a_warm_start_that_was_cut_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("train.warmstart.warmstart", lambda output, **_: calls.append(output))
    mine, base = write_csv(tmp_path / "mine.csv", 60), tmp_path / "out" / "base"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"written first")
    prepare(mine, tmp_path / "out")
    assert calls == [base]
    (base / LAST_FILE).write_text("{}", encoding="utf-8")
    prepare(mine, tmp_path / "out")
    assert calls == [base]


def test_the_study_of_a_file(tmp_path: Path) -> None:
    mine = write_csv(tmp_path / "mine.csv", 60)
    overrides = ["epochs=7", "max_input=96"]
    path = prepare(mine, tmp_path / "out", base="some/base", seeds=(1, 2), overrides=overrides)
    study = read_study(path)
    assert [cell.method for cell in study.cells] == ["sft", "dss", "r2d", "r2d-c"] * 2
    recipe = study.cells[-1].recipe
    assert recipe.labels == list(LABELS)
    assert recipe.label_kind == "plain"
    assert (recipe.checkpoint, recipe.epochs, recipe.max_input) == ("some/base", 7.0, 96)
    assert recipe.sources == recipe.stage1_sources == ["rationale"]

    parts = {
        name: [
            json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("train", "validation")
    }
    assert len(parts["train"]) + len(parts["validation"]) == 60
    assert 2 <= len(parts["validation"]) <= 20
    before = [row["id"] for row in parts["validation"]]
    prepare(mine, tmp_path / "again", base="some/base")
    lines = (tmp_path / "again" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == before


def test_a_validation_file_of_ones_own_is_taken_whole(tmp_path: Path) -> None:
    mine, theirs = write_csv(tmp_path / "mine.csv", 10), write_csv(tmp_path / "theirs.csv", 4)
    labels = ["send home", "admit"]
    path = prepare(mine, tmp_path / "out", validation=theirs, labels=labels, ordered=True, base="some/base")
    for name, count in (("train", 10), ("validation", 4)):
        assert len((tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()) == count
    recipe = read_study(path).cells[0].recipe
    assert (recipe.labels, recipe.label_kind) == (labels, "ordered")


def test_faults_of_own_data_are_named(tmp_path: Path) -> None:
    mine = write_csv(tmp_path / "mine.csv", 10)
    with pytest.raises(DatasetError, match="no rationales"):
        prepare(write_csv(tmp_path / "bare.csv", 60, rationale=False), tmp_path / "out", base="b")
    with pytest.raises(DatasetError, match="not one of"):
        prepare(mine, tmp_path / "out", labels=["admit", "observe"], base="b")
    with pytest.raises(DatasetError, match="give a validation file"):
        prepare(write_csv(tmp_path / "few.csv", 2), tmp_path / "out", base="b")
    with pytest.raises(RecipeError, match="ordered labels must be given"):
        prepare(mine, tmp_path / "out", ordered=True, base="b")
    with pytest.raises(RecipeError, match="override"):
        prepare(write_csv(tmp_path / "more.csv", 60), tmp_path / "out", base="b", overrides=["epochs"])


def test_the_default_base_is_grown_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = {}
    monkeypatch.setattr("train.warmstart.warmstart", lambda output, **options: grown.update(output=output, **options))
    path = prepare(write_csv(tmp_path / "mine.csv", 60), tmp_path / "out")
    recipe = read_study(path).cells[0].recipe
    assert Path(recipe.checkpoint) == grown["output"] == tmp_path / "out" / "base"
    assert recipe.encoder_rate == 0.3
    texts = set(grown["required_texts"])
    assert {*LABELS, "predict: {text}"} <= texts
    held_out = [json.loads(line)["text"] for line in (tmp_path / "out" / "validation.jsonl").open(encoding="utf-8")]
    assert texts.isdisjoint(held_out)  # the vocabulary is chosen without looking at them


def test_plain_data_survive_being_written_as_toml() -> None:
    data = {
        "name": 'a "quoted" näme \\ with \n and \t',
        "numbers": [1, 2.5, True],
        "sizes": {"3+1 x": "a/b", "plain": "c"},
        "data": {"set one": {"labels": ["é", "b"], "validation": {"v.1": "p"}}},
    }
    assert tomllib.loads(_toml(data)) == data


def test_a_study_file_or_data_but_not_both(tmp_path: Path) -> None:
    mine = write_csv(tmp_path / "mine.csv", 4)
    assert CliRunner().invoke(main, ["study"]).exit_code == 2
    assert CliRunner().invoke(main, ["study", str(mine), "--data", str(mine)]).exit_code == 2


def test_nothing_is_trained_unless_asked(tmp_path: Path) -> None:
    file = prepare(write_csv(tmp_path / "mine.csv", 60), tmp_path / "out", base="some/base")
    result = CliRunner().invoke(main, ["study", str(file)])
    assert result.exit_code == 0, result.stderr
    assert "not run" in result.stdout
    assert not (tmp_path / "out" / "cells").exists()
    planned = CliRunner().invoke(main, ["study", str(file), "--dry-run", "--only", "method=r2d"])
    assert planned.stdout.splitlines()[0].startswith("out_base_r2d_rationale_13: to do, ")
    assert planned.stdout.splitlines()[-1].startswith("1 of 1 cells to do")


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    mine = write_csv(tmp_path / "mine.csv", 60)
    command = ["study", "--data", str(mine), "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("4 of 4 cells to do")
    assert "steps" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_failed_cells_end_in_exit_code_1(tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    mine = write_csv(tmp_path / "mine.csv", 60)
    command = ["study", "--data", str(mine), "--base", str(base), "-o", str(tmp_path / "out"), "--only", "method=sft"]
    command += ["--set", "max_input=512"]  # more than its 128 positions
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "1 cells failed" in result.stderr
    assert "lower max_input" in result.stderr
    assert "failed" in result.stdout


def test_two_files_of_one_name_share_no_row(tmp_path):
    from train.study.own_data import prepare

    for part in ("tr", "va"):
        (tmp_path / part).mkdir()
        rows = [f"{part} note {label} {number},{label},because of {label}\n" for number in range(3) for label in "ab"]
        (tmp_path / part / "notes.csv").write_text("text,label,rationale\n" + "".join(rows), encoding="utf-8")
    prepare(
        tmp_path / "tr" / "notes.csv",
        tmp_path / "out",
        validation=tmp_path / "va" / "notes.csv",
        base="some-base",
    )
    ids = [
        {json.loads(line)["id"] for line in (tmp_path / "out" / f"{part}.jsonl").open(encoding="utf-8")}
        for part in ("train", "validation")
    ]
    assert len(ids[0]) == len(ids[1]) == 6
    assert not ids[0] & ids[1]


def test_an_unknown_key_and_shared_rows_are_told_before_any_work(tmp_path):
    from train.study.own_data import prepare

    data = tmp_path / "mine.csv"
    rows = [f"a note {label} {number},{label},because of {label}\n" for number in range(3) for label in "ab"]
    data.write_text("text,label,rationale\n" + "".join(rows), encoding="utf-8")
    with pytest.raises(DatasetError, match="texts that occur in both parts"):
        prepare(data, tmp_path / "out", validation=data)
    other = tmp_path / "val.csv"
    other.write_text("text,label,rationale\nfresh,a,why\nnew,b,why\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="no recipe has the key epoch;"):
        prepare(data, tmp_path / "out", validation=other, overrides=["epoch=1"])
    assert not (tmp_path / "out" / "base").exists()
