"""Tables and plots of a study, from results alone."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.tiny_models import TEXTS
from train.study.plots import draw
from train.study.results import Result, Rows, count_parameters, read_result, rows_of, write_result
from train.study.spec import build_study, read_study
from train.study.tables import differences_table, results_table, settings_of

LABELS = ["low", "middle", "high"]
N = 90


def make_rows(seed: int, right: float, *, rationales: bool = True) -> Rows:
    rng = np.random.default_rng(seed)
    records = []
    for row in range(N):
        gold, wrong = row % 3, (row + 1) % 3
        label = gold if rng.random() < right else wrong
        text = TEXTS[1 + row % 8]
        records.append(
            {
                "id": f"n{row}",
                "gold": LABELS[gold],
                "label": LABELS[label],
                "probabilities": {name: 0.8 if name == LABELS[label] else 0.1 for name in LABELS},
                "rationale": " ".join(word for word in text.split() if rng.random() < right) if rationales else None,
                "reference": text,
                "bertscore_f1": float(np.clip(right + 0.1 * rng.standard_normal(), 0, 1)) if rationales else None,
            }
        )
    return rows_of(records, LABELS)


def make_study(**changes):
    data = {
        "name": "made up",
        "methods": ["sft", "r2d"],
        "sources": ["llm", ["nurse", "llm"]],
        "seeds": [1, 2, 3],
        "sizes": {"small": "runs/small", "big": "runs/big"},
        "data": {"notes": {"train": ["t.jsonl"], "validation": {"ward": "v.jsonl"}, "labels": LABELS}},
    }
    return build_study({**data, **changes}, "made-up.toml")


def make_results(study, right: dict, seeds=(1, 2, 3)) -> dict[str, Result]:
    """Results of the cells whose (size, method, stage-1 source) is in `right`."""
    found = {}
    for cell in study.cells:
        share = right.get((cell.size, cell.method, cell.stage1_source))
        if share is None or cell.seed not in seeds:
            continue
        found[cell.name] = Result(
            cell.digest,
            parameters={"small": 11_000_000, "big": 23_000_000}[cell.size],
            seconds={"fit": 60.0},
            curve={"step": [10, 20, 30], "ward": [0.3, 0.4, share - 0.01 * cell.seed]},
            sets={"ward": make_rows(cell.seed, share, rationales=cell.method != "sft")},
        )
    return found


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    study = make_study()
    [(name, result), *_] = make_results(study, {("small", "r2d", "llm"): 0.8}).items()
    path = tmp_path / f"{name}.json"
    write_result(path, result)
    found = read_result(path)
    assert vars(found) | {"sets": None} == vars(result) | {"sets": None}
    ours, theirs = result.sets["ward"], found.sets["ward"]
    assert (ours.ids, ours.labels) == (theirs.ids, theirs.labels)
    for column in ("gold", "label", "bleu"):
        assert np.array_equal(getattr(ours, column), getattr(theirs, column))
    for column in ("confidence", "bertscore"):
        assert np.allclose(getattr(ours, column), getattr(theirs, column), atol=1e-4)
    assert read_result(tmp_path / "none.json") is None


def test_a_judges_scores_come_back_and_stand_only_where_there_are_any(tmp_path: Path) -> None:
    judged = replace(make_rows(1, 0.5), judge=np.array([4.25, np.nan, 1.0] * (N // 3)))
    path = tmp_path / "r.json"
    write_result(path, Result("x", sets={"ward": judged, "other": make_rows(2, 0.5)}))
    columns = json.loads(path.read_text(encoding="utf-8"))["sets"]
    assert columns["ward"]["judge"][:3] == [4.25, None, 1]
    assert "judge" not in columns["other"]  # as results of earlier versions have none
    found = read_result(path).sets
    assert np.array_equal(found["ward"].judge, judged.judge, equal_nan=True)
    assert np.isnan(found["other"].judge).tolist() == [True] * N


def test_a_result_is_small(tmp_path: Path) -> None:
    records = [
        {
            "id": f"ctas-notes-{row:05}",
            "gold": LABELS[row % 3],
            "label": LABELS[row % 2],
            "probabilities": dict.fromkeys(LABELS, 1 / 3),
            "rationale": " ".join(TEXTS),
            "reference": " ".join(TEXTS),
            "bertscore_f1": 0.123456789,
        }
        for row in range(650)
    ]
    write_result(tmp_path / "r.json", Result("0" * 64, sets={"ctas": rows_of(records, LABELS)}))
    assert (tmp_path / "r.json").stat().st_size < 55_000


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 0, "digest": "x"}', '{"schema": 1, "digest": "x", "a": 1}']
)
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.json is not a result of this version"):
        read_result(path)


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_result(path, Result("x", sets={"ward": make_rows(1, 0.5)}))
    data = json.loads(path.read_text(encoding="utf-8"))
    data["sets"]["ward"]["gold"].pop()
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match="of one length"):
        read_result(path)


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert count_parameters(tmp_path) == 17


def test_means_and_intervals_over_seeds_stand_in_the_table() -> None:
    study = make_study()
    results = make_results(study, {("small", "sft", None): 0.5, ("small", "r2d", "llm"): 0.9})
    head, _, *lines = cells_of(results_table(study, results))
    line = dict(zip(head, lines[1], strict=True))
    assert (line["set"], line["model"], line["method"], line["rationales"], line["seeds"]) == (
        "ward",
        "small",
        "r2d",
        "llm",
        "3",
    )
    accuracies = []
    for cell in study.cells:
        if cell.name in results and cell.method == "r2d":
            rows = results[cell.name].sets["ward"]
            accuracies.append((rows.gold == rows.label).mean())
    half = 4.303 * np.std(accuracies, ddof=1) / 3**0.5
    assert line["accuracy"].strip("*") == f"{np.mean(accuracies):.3f} ± {half:.3f}"
    sft = dict(zip(head, lines[0], strict=True))
    assert (sft["method"], sft["rationales"], sft["BERTScore"], sft["BLEU"]) == ("sft", "–", "", "")


def test_the_best_is_marked_only_where_the_paired_interval_excludes_zero() -> None:
    study = make_study()
    clear = make_results(study, {("small", "sft", None): 0.5, ("small", "r2d", "llm"): 0.9})
    head, _, *lines = cells_of(results_table(study, clear))
    marked = [[cell.startswith("**") for cell in line] for line in lines if "not run" not in line]
    place = head.index("macro-F1")
    assert [line[place] for line in marked] == [False, True]
    assert [line[head.index("BERTScore")] for line in marked] == [False, False]  # there is no runner-up

    # The same two methods, told apart by a row or two: nothing to mark, although one mean is higher.
    close = make_results(study, {("small", "sft", None): 0.70, ("small", "r2d", "llm"): 0.71})
    means = [setting.spread for setting in settings_of(study, close) if setting.rows]
    assert len(means) == 2
    _, _, *lines = cells_of(results_table(study, close))
    assert not any("**" in line[place] for line in lines)


def test_low_calibration_error_is_the_best_one() -> None:
    study = make_study()
    # Confidence is 0.8 throughout: 0.8 right is calibrated, 0.4 right is not.
    results = make_results(study, {("small", "sft", None): 0.4, ("small", "r2d", "llm"): 0.8})
    head, _, *lines = cells_of(results_table(study, results))
    place = head.index("ECE")
    assert ["**" in line[place] for line in lines[:2]] == [False, True]


def test_what_was_not_run_or_failed_is_said() -> None:
    study = make_study()
    results = make_results(study, {("small", "sft", None): 0.5, ("small", "r2d", "llm"): 0.9}, seeds=(1, 2))
    failed = next(cell for cell in study.cells if (cell.size, cell.method, cell.seed) == ("small", "sft", 3))
    broken = next(cell for cell in study.cells if (cell.size, cell.method, cell.seed) == ("big", "sft", 3))
    for cell in (failed, broken):
        results[cell.name] = Result(cell.digest, error="RuntimeError")
    _, _, *lines = cells_of(results_table(study, results))
    assert [line[:5] for line in lines] == [
        ["ward", "small", "sft", "–", "2 of 3, 1 failed"],
        ["ward", "small", "r2d", "llm", "2 of 3"],
        ["ward", "small", "r2d", "nurse → llm", "not run"],
        ["ward", "big", "sft", "–", "failed"],
        ["ward", "big", "r2d", "llm, nurse → llm", "not run"],
    ]
    assert lines[2][5:] == [""] * 5
    assert results_table(study, {}).count("not run") == 2


def test_empty_rationales_and_bare_labels_are_counted_below_the_table() -> None:
    study = make_study()
    results = make_results(study, {("small", "sft", None): 0.5, ("small", "r2d", "llm"): 0.9})
    table = results_table(study, results)
    for name, result in results.items():
        written = {} if "sft" in name else {"rationales": 100, "empty_rationales": 12, "bare_labels": 88}
        results[name] = replace(result, evaluation={"ward": written})
    warned = results_table(study, results)
    assert warned.startswith(table)
    empty, bare = warned[len(table) :].strip().splitlines()
    assert empty.startswith("- ward, small, r2d, llm: 36 of 300 rationales are empty (12 %)")
    assert bare == "- ward, small, r2d, llm: 264 of 300 rationales are nothing but the name of a label (88 %)"


def test_differences_are_between_methods_with_the_same_rationales() -> None:
    study = make_study(methods=["sft", "dss", "r2d"])
    right = {("small", "sft", None): 0.5, ("small", "dss", None): 0.6}
    right |= {("small", "r2d", "llm"): 0.9, ("small", "r2d", "nurse"): 0.9}
    head, _, *lines = cells_of(differences_table(study, make_results(study, right)))
    assert [line[2:4] for line in lines] == [
        ["llm", "dss − sft"],
        ["llm", "r2d − sft"],
        ["nurse → llm", "r2d − sft"],
        ["llm", "r2d − dss"],
        ["nurse → llm", "r2d − dss"],
    ]
    cell = dict(zip(head, lines[1], strict=True))["macro-F1"]
    assert cell.startswith("**+0.")
    assert " to +0." in cell
    assert dict(zip(head, lines[1], strict=True))["BLEU"] == ""


def test_figures_of_different_encoders_are_not_compared() -> None:
    study = make_study(methods=["dss", "r2d"])
    results = make_results(study, {("small", "dss", None): 0.5, ("small", "r2d", "llm"): 0.9})

    def bertscores(encoders: dict[str, list[str | None]]) -> tuple[str, str]:
        """The difference, and r2d's figure in the table of results, with each method's encoder by seed."""
        stated = {}
        for cell in study.cells:
            if cell.name in results:
                encoder = encoders[cell.method][cell.seed - 1]
                context = {} if encoder is None else {"bertscore": {"encoder_sha256": encoder}}
                stated[cell.name] = replace(results[cell.name], context=context)
        found = []
        for table in (differences_table(study, stated), results_table(study, stated)):
            head, _, *lines = cells_of(table)
            found.append(next(line for line in lines if "r2d" in line[2] + line[3])[head.index("BERTScore")])
        return found[0], found[1]

    same = bertscores({"dss": ["a"] * 3, "r2d": ["a"] * 3})
    assert all(figure.startswith("**") for figure in same)
    # As where one result is of a version that did not say.
    assert bertscores({"dss": [None] * 3, "r2d": ["a"] * 3}) == same
    difference, figure = bertscores({"dss": ["a"] * 3, "r2d": ["b"] * 3})
    assert (difference, figure) == ("", same[1].strip("*"))
    # Seeds are compared whose own two figures were made alike.
    assert bertscores({"dss": ["a", "b", "a"], "r2d": ["a", "b", "a"]}) == same
    assert bertscores({"dss": ["a", "b", "a"], "r2d": ["a", "b", "b"]})[0] not in ("", same[0])


def test_a_judge_has_a_column_where_results_have_its_scores() -> None:
    study = make_study(methods=["dss", "r2d"])
    results = make_results(study, {("small", "dss", None): 0.5, ("small", "r2d", "llm"): 0.9})
    assert not any("judge" in table(study, results) for table in (results_table, differences_table))

    def tables(judges: dict[str, str]) -> tuple[str, str]:
        """Both tables, with each method's judge."""
        judged = {}
        for cell in study.cells:
            if cell.name in results:
                given = np.full(N, np.nan)
                given[: N // 2] = (4 if cell.method == "r2d" else 2) + np.arange(N // 2) % 3 / 4
                sets = {"ward": replace(results[cell.name].sets["ward"], judge=given)}
                who = {"identity": {"model": judges[cell.method]}, "warning": "it is weak"}
                judged[cell.name] = replace(results[cell.name], sets=sets, context={"judge": who})
        return results_table(study, judged), differences_table(study, judged)

    table, differences = tables({"dss": "m", "r2d": "m"})
    head, _, *lines = cells_of(table)
    assert [line[head.index("judge")] for line in lines[:2]] == ["2.25 ± 0.00", "**4.25 ± 0.00**"]
    assert lines[2][head.index("judge")] == ""  # not run
    assert table.endswith("\n- judge: m, scores from 1 to 5; it is weak\n")
    head, _, *lines = cells_of(differences)
    assert lines[0][head.index("judge")] == "**+2.00 (+2.00 to +2.00)**"

    table, differences = tables({"dss": "m", "r2d": "n"})
    assert "4.25 ± 0.00" in table
    assert "**4.25" not in table
    assert table.count("- judge: ") == 2
    head, _, *lines = cells_of(differences)
    assert lines[0][head.index("judge")] == ""
    assert lines[0][head.index("BERTScore")]


def test_plots_are_small_and_the_same_every_time(tmp_path: Path) -> None:
    study = make_study()
    right = {(size, "sft", None): 0.5 for size in ("small", "big")}
    right |= {(size, "r2d", source): 0.8 for size in ("small", "big") for source in ("llm", "nurse")}
    results = make_results(study, right)
    drawn = draw(study, results, tmp_path / "one")
    assert {path.name for path in drawn} == {"f1-parameters.svg", "learning-curves.svg", "sources.svg"}
    for path, words in drawn.items():
        assert path.stat().st_size < 60_000
        ElementTree.parse(path)
        assert words.endswith(".")
        assert "[" not in words
        text = path.read_text(encoding="utf-8")
        again = draw(study, results, tmp_path / "two")
        assert (tmp_path / "two" / path.name) in again
        assert (tmp_path / "two" / path.name).read_text(encoding="utf-8") == text
    curves = (tmp_path / "one" / "learning-curves.svg").read_text(encoding="utf-8")
    for word in ("sft", "r2d", "ward, small", "ward, big", "optimizer steps"):
        assert word in curves
    heat = next(words for path, words in drawn.items() if path.name == "sources.svg")
    assert "ward, small, r2d: best with stage 1" in heat


def test_plots_need_something_to_show(tmp_path: Path) -> None:
    study = make_study()
    assert draw(study, {}, tmp_path) == {}
    drawn = draw(study, make_results(study, {("small", "r2d", "llm"): 0.8}, seeds=(2,)), tmp_path)
    # One pair of sources makes no heat map.
    assert {path.name for path in drawn} == {"f1-parameters.svg", "learning-curves.svg"}


def test_curves_are_drawn_where_all_seeds_were_evaluated(tmp_path: Path) -> None:
    study = make_study()
    results = make_results(study, {("small", "r2d", "llm"): 0.8})
    first, *_ = results
    stopped = {"step": [10, 20], "ward": [0.3, 0.4]}
    results[first] = Result(**{**vars(results[first]), "curve": stopped})
    [words] = [words for path, words in draw(study, results, tmp_path).items() if path.name == "learning-curves.svg"]
    assert "ward, small, r2d ends at 0.400" in words


def test_the_chosen_checkpoint_is_no_point_of_a_learning_curve(tmp_path: Path) -> None:
    study = make_study()
    results = make_results(study, {("small", "r2d", "llm"): 0.8})
    for name, result in results.items():
        curve = {"step": [10, 20, 30, 33], "ward": [0.3, 0.4, 0.35, 0.4]}
        results[name] = replace(result, curve=curve, context={"steps": 33, "best_step": 20})
    [words] = [words for path, words in draw(study, results, tmp_path).items() if path.name == "learning-curves.svg"]
    assert "ward, small, r2d ends at 0.350" in words
    assert "during training" in words


def test_readme_tables_are_made_of_committed_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import tables

    study_file = tmp_path / "recipes" / "ward.toml"
    study_file.parent.mkdir()
    study_file.write_text(
        'name = "ward"\nmethods = ["sft", "r2d"]\nsources = ["llm"]\nseeds = [1, 2]\n[sizes]\nsmall = "runs/small"\n'
        '[data.notes]\ntrain = ["t.jsonl"]\nvalidation = { ward = "v.jsonl" }\nlabels = ["low", "middle", "high"]\n',
        encoding="utf-8",
    )
    study = read_study(study_file)
    results = make_results(study, {("small", "sft", None): 0.5, ("small", "r2d", "llm"): 0.9})
    for name, result in results.items():
        write_result(tmp_path / study.results / f"{name}.json", result)
    monkeypatch.setattr(tables, "STUDIES", study_file.parent)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.chdir(tmp_path)  # neither data nor checkpoints are here
    _, _, *lines = cells_of(tables.study_table("ward", results_table))
    assert [line[2:5] for line in lines] == [["sft", "–", "2"], ["r2d", "llm", "2"]]
    assert {"study-triage", "study-triage-differences"} <= set(tables.TABLES)
