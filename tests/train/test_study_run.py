"""Running a study with the real methods on a tiny model: what is trained, when, and what stays."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import write_tiny_bart
from tests.train.judge_server import Reply, chat_server
from tests.train.study_files import LABELS, study_data, tiny_study, write_rows
from train.files import file_sha256
from train.judging.rubric import CRITERIA
from train.recipe import RecipeError
from train.study import parallel
from train.study.estimate import plan
from train.study.parallel import run_in_processes, slots
from train.study.results import NO_BLEU, Result, read_result, write_result
from train.study.run import (
    Work,
    check_files,
    forget,
    is_finished,
    load_results,
    needs_stage1,
    real_work,
    result_path,
    run_cells,
    run_stage1,
)
from train.study.spec import build_study, read_study
from train.study.tables import results_table
from train.trainer import SECONDS_FILE, last_checkpoint


class Counted:
    """The real steps, each call of them noted down."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[str] = []
        real = real_work()

        def fit(recipe, **options):
            self.calls.append(recipe.method)
            return real.fit(recipe, stop_after=stop_after, **options)

        def train_stage1(recipe, **options):
            self.calls.append("stage1")
            return real.train_stage1(recipe, **options)

        self.work = Work(fit, train_stage1, real.evaluate)


def silent(_: str) -> None: ...


def test_every_method_is_trained_once_and_stage1_is_shared(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft", "dss", "r2d", "r2d-c"])
    counted = Counted()
    assert run_cells(study, study.cells, counted.work, silent) == []
    assert counted.calls == ["sft", "dss", "stage1", "r2d", "r2d-c"]

    results = load_results(study)
    assert set(results) == {cell.name for cell in study.cells}
    for cell in study.cells:
        result = results[cell.name]
        rows = result.sets["tiny"]
        assert (len(rows.ids), rows.labels) == (6, tuple(LABELS))
        assert result.parameters > 10_000
        assert result.curve["step"] == sorted(result.curve["step"])
        assert len(result.curve["tiny"]) == len(result.curve["step"]) >= 2
        assert bool((rows.bleu[:, 0] >= 0).all()) is (cell.method != "sft")
        assert result.evaluation["tiny"]["accuracy"]["value"] == pytest.approx((rows.gold == rows.label).mean())
        assert {"fit", "evaluation"} <= set(result.seconds)
        assert ("stage1" in result.seconds) is (cell.method in ("r2d", "r2d-c"))
        assert not (cell.recipe.output / "checkpoints").exists()

    assert run_cells(study, study.cells, counted.work, silent) == []
    assert len(counted.calls) == 5  # nothing is trained twice


def test_results_hold_no_texts_and_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = tiny_study(Path(), methods=["dss"])
    run_cells(study, study.cells, real_work(), silent)
    text = result_path(study, study.cells[0]).read_text(encoding="utf-8")
    for row in (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines():
        for note in (json.loads(row)["text"], *json.loads(row)["rationales"].values()):
            assert note not in text
            assert " ".join(note.split()[:3]) not in text
    assert str(tmp_path) not in text
    assert tmp_path.as_posix() not in text


def test_a_cut_cell_goes_on_where_it_stood(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["r2d"])
    cell = study.cells[0]
    whole = tmp_path / "whole"
    other = tiny_study(tmp_path, methods=["r2d"], runs=whole.as_posix(), results=(whole / "results").as_posix())
    run_cells(other, other.cells, real_work(), silent)

    real = real_work()

    def cut_fit(recipe, **options):
        real.fit(recipe, stop_after=2, **options)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(study, study.cells, replace(real, fit=cut_fit), silent)
    assert not is_finished(study, cell)
    (Path(last_checkpoint(cell.recipe) or "") / SECONDS_FILE).write_text('{"seconds": 5000}', encoding="utf-8")
    counted = Counted()
    assert run_cells(study, study.cells, counted.work, silent) == []
    assert counted.calls == ["r2d"]  # stage 1 was done before the cut
    ours, theirs = (read_result(result_path(s, s.cells[0])) for s in (study, other))
    assert theirs.seconds["fit"] < 5000 <= ours.seconds["fit"]  # of both processes
    assert ours.curve == theirs.curve
    assert ours.sets["tiny"].confidence.tolist() == theirs.sets["tiny"].confidence.tolist()


def test_a_failing_cell_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft", "dss", "r2d"])
    real = real_work()

    def fit(recipe, **options):
        if recipe.method == "dss":
            raise ValueError("a note's text may stand in a library's message")
        return real.fit(recipe, **options)

    said: list[str] = []
    failed = run_cells(study, study.cells, replace(real, fit=fit), said.append)
    [dss] = [cell for cell in study.cells if cell.method == "dss"]
    assert failed == [dss.name]
    results = load_results(study)
    assert results[dss.name].error == "ValueError"
    assert "a note's text" not in result_path(study, dss).read_text(encoding="utf-8")
    assert "a note's text" in (dss.recipe.output.parent / "error.txt").read_text(encoding="utf-8")
    assert [results[cell.name].error for cell in study.cells if cell is not dss] == [None, None]
    assert any("dss" in line and "failed" in line for line in said)

    counted = Counted()
    assert run_cells(study, study.cells, counted.work, silent) == []  # it is tried again
    assert counted.calls == ["dss"]
    assert load_results(study)[dss.name].error is None


def test_a_failing_cell_leaves_an_earlier_result_as_it_is(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft"])
    [cell] = study.cells
    run_cells(study, study.cells, real_work(), silent)
    kept = result_path(study, cell).read_bytes()
    write_tiny_bart(tmp_path / "base", seed=8)  # other starting weights: the cell is to be trained anew

    def fit(recipe, **options):
        raise OSError("no space left")

    assert run_cells(study, study.cells, replace(real_work(), fit=fit), silent) == [cell.name]
    assert result_path(study, cell).read_bytes() == kept
    assert "no space left" in (cell.recipe.output.parent / "error.txt").read_text(encoding="utf-8")

    write_result(result_path(study, cell), Result(cell.digest, error="ValueError"))
    run_cells(study, study.cells, replace(real_work(), fit=fit), silent)
    assert load_results(study)[cell.name].error == "OSError"  # of two errors, the last


def test_errors_of_our_own_are_recorded_in_full(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft"])

    def fit(recipe, **options):
        raise RecipeError("max_input must be lower")

    run_cells(study, study.cells, replace(real_work(), fit=fit), silent)
    assert load_results(study)[study.cells[0].name].error == "RecipeError: max_input must be lower"


def test_changed_data_or_recipe_are_trained_anew(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft"])
    run_cells(study, study.cells, real_work(), silent)
    assert is_finished(study, study.cells[0])

    changed = tiny_study(tmp_path, methods=["sft"], by_method={"sft": {"epochs": 1}})
    assert load_results(changed) == {}
    assert not is_finished(changed, changed.cells[0])

    write_rows(tmp_path / "validation.jsonl", 9, "validation")
    assert not is_finished(study, study.cells[0])
    assert load_results(study)  # tables need no data files: what is committed counts


def test_missing_data_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    counted = Counted()
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl"):
        run_cells(study, study.cells, counted.work, silent)
    assert counted.calls == []


@pytest.mark.parametrize("base", ["no/such/base", "./base", "base.gguf", "package:no-such-package"])
def test_a_missing_base_is_named_before_anything_is_trained(base: str, tmp_path: Path) -> None:
    study = tiny_study(tmp_path, sizes={"tiny": base})
    counted = Counted()
    with pytest.raises(FileNotFoundError, match=rf"missing: {base}$"):
        run_cells(study, study.cells, counted.work, silent)
    with pytest.raises(FileNotFoundError, match=rf"missing: {base}$"):
        run_in_processes(tmp_path / "tiny.toml", study, study.cells, slots(2), silent)
    assert counted.calls == []
    assert load_results(study) == {}


def test_a_name_that_a_hub_may_know_is_not_missing(tmp_path: Path) -> None:
    for name in ("t5-small", "google/flan-t5-base"):
        check_files(tiny_study(tmp_path, sizes={"tiny": name}).cells)


def test_what_is_finished_needs_neither_data_nor_base(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["r2d"])
    [cell] = study.cells
    run_cells(study, study.cells, real_work(), silent)
    elsewhere = tiny_study(tmp_path, methods=["sft", "r2d"])
    for path in ("train.jsonl", "base"):
        (tmp_path / path).rename(tmp_path / f"{path}.away")
    assert is_finished(study, cell)
    assert plan(elsewhere, elsewhere.cells, load_results(elsewhere)) == [
        "notes_tiny_sft_none_1: to do",
        "notes_tiny_r2d_llm_1: finished",
        "1 of 2 cells to do; 1 are like none that was timed",
    ]
    said: list[str] = []
    assert run_cells(study, study.cells, Counted().work, said.append) == []
    assert said == [f"1/1 {cell.name}: finished before"]
    # What is here counts as ever.
    write_rows(tmp_path / "validation.jsonl", 9, "validation")
    assert not is_finished(study, cell)


def test_nothing_is_forgotten_that_cannot_be_trained_anew(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft"])
    run_cells(study, study.cells, real_work(), silent)
    (tmp_path / "base").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="base"):
        forget(study, study.cells)
    assert load_results(study)[study.cells[0].name].error is None


def test_the_committed_studies_can_be_planned_where_there_are_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    study = replace(
        read_study(root / "train/recipes/studies/triage.toml"), results=root / "benchmarks/results/studies/triage"
    )
    monkeypatch.chdir(tmp_path)
    results = load_results(study)
    lines = plan(study, study.cells, results)
    assert results
    assert [line.split(":")[0] for line in lines if line.endswith(": finished")] == [
        cell.name for cell in study.cells if cell.name in results and results[cell.name].error is None
    ]


def test_forget_trains_anew(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["r2d"])
    counted = Counted()
    run_cells(study, study.cells, counted.work, silent)
    before = result_path(study, study.cells[0]).read_text(encoding="utf-8")
    forget(study, study.cells)
    assert load_results(study) == {}
    run_cells(study, study.cells, counted.work, silent)
    assert counted.calls == ["stage1", "r2d"] * 2
    after = result_path(study, study.cells[0]).read_text(encoding="utf-8")
    assert json.loads(after)["sets"] == json.loads(before)["sets"]


def test_the_plan_counts_steps_and_learns_from_what_was_timed(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["sft", "r2d"], seeds=[1, 2])
    lines = plan(study, study.cells, {})
    assert lines[0] == "notes_tiny_sft_none_1: to do, 4 steps"
    assert lines[1] == "notes_tiny_r2d_llm_1: to do, 4 steps after its stage 1"
    assert lines[-1] == "4 of 4 cells to do; 4 are like none that was timed"
    run_cells(study, study.cells[:2], real_work(), silent)
    lines = plan(study, study.cells, load_results(study))
    assert lines[0] == "notes_tiny_sft_none_1: finished"
    assert lines[2].startswith("notes_tiny_sft_none_2: to do, 4 steps, about ")
    assert lines[-1].startswith("2 of 4 cells to do; about ")


def test_a_stage1_of_other_data_is_to_be_trained_by_one_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(tmp_path, methods=["r2d", "r2d-c"])
    first, second = study.cells
    assert first.stage1 is not None
    seconds = run_stage1(first.stage1, real_work())
    counted = Counted()
    assert run_stage1(first.stage1, counted.work) == seconds
    assert counted.calls == []
    assert not needs_stage1(first)
    assert "stage 1" not in plan(study, study.cells, {})[0]

    write_rows(tmp_path / "train.jsonl", 15, "train")
    assert needs_stage1(first)
    assert [line.endswith("after its stage 1") for line in plan(study, study.cells, {})[:2]] == [True, False]
    begun: list[str] = []

    def fail(command, **_):
        begun.append(command[command.index("--only") + 1])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(parallel.subprocess, "run", fail)
    said: list[str] = []
    failed = run_in_processes(tmp_path / "tiny.toml", study, study.cells, slots(2), said.append)
    assert failed == [first.name, second.name]
    assert begun == [f"name={first.name}"]
    assert f"{second.name}: not begun, as its stage 1 failed" in said


def test_a_finished_training_whose_evaluation_was_cut_is_only_evaluated(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, methods=["r2d"])
    [cell] = study.cells

    def evaluate(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(study, study.cells, replace(real_work(), evaluate=evaluate), silent)
    weights = cell.recipe.output / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    assert run_cells(study, study.cells, real_work(), silent) == []
    assert weights.stat().st_mtime_ns == trained
    assert is_finished(study, cell)


def test_a_study_learns_from_rows_without_labels(tmp_path: Path) -> None:
    study_data(tmp_path)
    path = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["teacher_probabilities"] = {label: 0.8 if label == row["label"] else 0.1 for label in LABELS}
        if number >= 6:
            row["label"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    study = tiny_study(tmp_path, methods=["dss"], by_method={"dss": {"soft_labels": 0.5}})
    assert run_cells(study, study.cells, real_work(), silent) == []
    [result] = load_results(study).values()
    assert "unsupported_term_share" in result.evaluation["tiny"]


def test_sets_without_references_are_evaluated_without_them(tmp_path: Path) -> None:
    data = study_data(tmp_path, methods=["sft", "r2d"])
    validation = data["data"]["notes"]["validation"]
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    # Read before the set that has references.
    kinds = {"others": {"nurse": "Cold leg.", "nurse_post": "White leg."}, "bare": {}, "nurse": {"nurse": "Leg."}}
    data["data"]["notes"]["validation"] = {name: (tmp_path / f"{name}.jsonl").as_posix() for name in kinds} | validation
    for name, rationales in kinds.items():
        lines = [json.dumps({**row, "id": f"{name}-{row['id']}", "rationales": rationales}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    study = build_study(data, "tiny.toml")
    assert run_cells(study, study.cells, real_work(), silent) == []
    [sft, r2d] = (load_results(study)[cell.name] for cell in study.cells)
    for result in (sft, r2d):
        assert list(result.sets) == list(result.evaluation) == ["others", "bare", "nurse", "tiny"]
        assert all(len(found.ids) == 6 for found in result.sets.values())
        assert all("accuracy" in found for found in result.evaluation.values())
    compared = {name: bool((found.bleu[:, 0] != NO_BLEU).any()) for name, found in r2d.sets.items()}
    assert compared == {"others": False, "bare": False, "nurse": False, "tiny": True}
    written = {name: found.get("rationales", 0) for name, found in r2d.evaluation.items()}
    assert written == {"others": 0, "bare": 6, "nurse": 0, "tiny": 6}
    folder = study.cells[1].recipe.output.parent / "evaluation"
    report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(report["sets"]) == {*kinds, "tiny"} == {path.stem for path in folder.glob("*.jsonl")}


def test_a_result_says_how_its_figures_were_made(tmp_path: Path) -> None:
    data = study_data(tmp_path)
    path = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    del rows[0]["rationales"]["llm"], rows[1]["rationales"]["nurse"], rows[4]["rationales"]["nurse"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    encoder = write_tiny_bart(tmp_path / "encoder").as_posix()
    data |= {"sources": [["nurse", "llm"]], "evaluation": {"bertscore_model": encoder, "decoding": {"beam_size": 2}}}
    study = build_study(data, "tiny.toml")
    assert run_cells(study, study.cells, real_work(), silent) == []
    [sft, r2d] = (load_results(study)[cell.name].context for cell in study.cells)
    assert r2d["bertscore"]["encoder_sha256"] == file_sha256(tmp_path / "encoder" / "model.safetensors")
    assert (r2d["rationales_missing"], r2d["stage1_rationales_missing"]) == (1, 2)
    assert r2d["decoding"]["beam_size"] == sft["decoding"]["beam_size"] == 2
    assert sft["bertscore"] is None
    assert "rationales_missing" not in sft


def test_a_judge_scores_what_was_trained_before(tmp_path: Path) -> None:
    plain = tiny_study(tmp_path, methods=["sft", "dss"])
    run_cells(plain, plain.cells, real_work(), silent)
    sft, dss = plain.cells
    before = load_results(plain)
    weights = dss.recipe.output / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    asked = []

    def breaks_down_at_the_third(prompt):
        asked.append(prompt)
        scores = dict(zip(CRITERIA, (1, 2, 3, 5), strict=True))
        return Reply(status=401) if len(asked) == 3 else json.dumps(scores)

    with chat_server(breaks_down_at_the_third) as server:
        judge = {"endpoint": server.url, "model": "judge-1", "limit": 4}
        study = tiny_study(tmp_path, methods=["sft", "dss"], judge=judge)
        assert (is_finished(study, sft), is_finished(study, dss)) == (True, False)
        said: list[str] = []
        assert run_cells(study, study.cells, real_work(), said.append) == [dss.name]
        assert "JudgeError" in said[-1]
        assert load_results(study)[dss.name].evaluation == before[dss.name].evaluation  # the earlier result stands
        assert run_cells(study, study.cells, real_work(), silent) == []
    assert len(asked) == 3 + 2  # two answers were kept
    assert weights.stat().st_mtime_ns == trained
    result = load_results(study)[dss.name]
    rows, former = result.sets["tiny"], before[dss.name].sets["tiny"]
    assert sorted(rows.judge.tolist(), key=str) == [2.75] * 4 + [pytest.approx(np.nan, nan_ok=True)] * 2
    assert (rows.ids, rows.label.tolist(), rows.bleu.tolist()) == (
        former.ids,
        former.label.tolist(),
        former.bleu.tolist(),
    )
    found = result.context["judge"]
    assert (found["identity"]["model"], found["identity"]["backend"], found["limit"]) == ("judge-1", "endpoint", 4)
    assert found["answers"] == {"tiny": {"asked": 4, "refused": 0, "unparsable": 0, "unparsable_share": 0}}
    assert "size is unknown" in found["warning"]
    assert load_results(study)[sft.name].context == before[sft.name].context
    assert "2.75" in results_table(study, load_results(study))

    for same in (judge, {**judge, "timeout": 9.0, "parallel": 2}):
        assert is_finished(tiny_study(tmp_path, methods=["dss"], judge=same), dss)
    for other in ({**judge, "model": "judge-2"}, {**judge, "limit": 5}):
        assert not is_finished(tiny_study(tmp_path, methods=["dss"], judge=other), dss)
    assert is_finished(plain, dss)


def test_a_judges_missing_key_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    judge = {"endpoint": "http://localhost/v1", "model": "m", "api_key_env": "R2D_NO_SUCH_KEY"}
    study = tiny_study(tmp_path, judge=judge)
    counted = Counted()
    with pytest.raises(RecipeError, match="api-key-env names is not set"):
        run_cells(study, study.cells, counted.work, silent)
    assert counted.calls == []


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert slots(None) == [{"OMP_NUM_THREADS": "8"}]
    assert slots(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert slots(None) == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0"},
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(2)] == ["5", "3"]


def test_cells_run_in_processes_of_their_own(tmp_path: Path) -> None:
    from train.study.own_data import _toml

    data = study_data(tmp_path, methods=["sft", "r2d"])
    file = tmp_path / "tiny.toml"
    file.write_text(_toml(data), encoding="utf-8")
    study = tiny_study(tmp_path)
    assert run_in_processes(file, study, study.cells, slots(2), silent) == []
    assert {name: result.error for name, result in load_results(study).items()} == {
        cell.name: None for cell in study.cells
    }
    said: list[str] = []
    run_in_processes(file, study, study.cells, slots(2), said.append)
    assert said == ["2 of 2 cells were finished before"]
