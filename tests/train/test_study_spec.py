"""Study files: which cells they ask for, what cells share, and how faults are named."""

from dataclasses import replace
from pathlib import Path

import pytest

from train.pretrain import PretrainRecipe
from train.recipe import RecipeError, load_recipe
from train.study.spec import build_study, chosen, read_study

FOLDER = Path(__file__).parents[2] / "train/recipes/studies"
BASE = FOLDER / "bases" / "pretrain-3-1.toml"
STUDIES = sorted(FOLDER.glob("*.toml"))
ABLATIONS = "triage-ablations"

REMOTE = {"endpoint": "https://api.example.com/v1", "model": "m"}


def make(**changes):
    data = {
        "name": "tiny",
        "methods": ["sft", "dss", "r2d", "r2d-c"],
        "sources": ["llm", ["nurse", "llm"], ["llm", "nurse"]],
        "seeds": [1, 2],
        "sizes": {"small": "runs/small", "big": "runs/big"},
        "data": {"notes": {"train": ["t.jsonl"], "validation": {"v": "v.jsonl"}, "labels": ["a", "b"]}},
        "recipe": {"epochs": 2, "stage1_epochs": 1},
    }
    return build_study({**data, **changes}, "tiny.toml")


def test_axes_that_a_method_does_not_depend_on_do_not_multiply_its_cells() -> None:
    cells = make().cells
    count = {method: sum(cell.method == method for cell in cells) for method in ("sft", "dss", "r2d", "r2d-c")}
    # Times two sizes and two seeds: no source, two of the label stage, three pairs.
    assert count == {"sft": 4, "dss": 8, "r2d": 12, "r2d-c": 12}
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.sources for cell in cells if cell.method == "dss"} == {"llm", "nurse"}
    assert {cell.sources for cell in cells if cell.method == "r2d"} == {"llm", "nurse → llm", "llm → nurse"}
    assert {cell.sources for cell in cells if cell.method == "sft"} == {"–"}


def test_recipes_hold_what_the_axes_say() -> None:
    [cell] = chosen(
        make().cells, ["method=r2d", "size=big", "seed=2", "stage1_source=nurse", "source=llm", "data=notes"]
    )
    recipe = cell.recipe
    assert (recipe.method, recipe.checkpoint, recipe.seed) == ("r2d", "runs/big", 2)
    assert (recipe.sources, recipe.stage1_sources) == (["llm"], ["nurse"])
    assert (recipe.epochs, recipe.stage1_epochs, recipe.labels) == (2.0, 1.0, ["a", "b"])


def test_stage1_is_shared_by_all_that_have_the_same_one() -> None:
    cells = [cell for cell in make().cells if cell.stage1 is not None]
    folders = {}
    for cell in cells:
        folders.setdefault(cell.stage1.output, set()).add((cell.size, cell.seed, cell.stage1_source))
        assert cell.stage1.sources == [cell.stage1_source]
        assert (cell.stage1.seed, cell.stage1.checkpoint) == (cell.seed, cell.recipe.checkpoint)
    assert all(len(what) == 1 for what in folders.values())
    assert len(folders) == 2 * 2 * 2  # sizes, seeds, sources of stage 1
    assert {cell.method for cell in cells} == {"r2d", "r2d-c"}


def test_another_stage1_has_a_folder_of_its_own() -> None:
    cells = make(by_method={"r2d-c": {"stage1_epochs": 3}}).cells
    folders = {cell.method: cell.stage1.output for cell in cells if cell.stage1 is not None}
    assert folders["r2d"] != folders["r2d-c"]


def test_a_method_without_its_stage1_does_not_depend_on_its_source() -> None:
    cells = make(
        methods=["r2d", "r2d, no stage 1"], by_method={"r2d, no stage 1": {"method": "r2d", "stage1_epochs": 0}}
    ).cells
    found = [cell for cell in cells if cell.method == "r2d, no stage 1"]
    assert len(found) == 2 * 2 * 2  # two sources of the label stage
    assert {cell.stage1 for cell in found} == {None}
    assert {cell.recipe.method for cell in found} == {"r2d"}


def test_overrides_reach_their_cells_and_change_no_other() -> None:
    plain, changed = make(), make(by_size={"big": {"batch_size": 4}}, by_method={"dss": {"epochs": 7}})
    for before, after in zip(plain.cells, changed.cells, strict=True):
        touched = before.size == "big" or before.method == "dss"
        assert (before.digest != after.digest) is touched
        assert after.recipe.batch_size == (4 if before.size == "big" else 16)
        assert after.recipe.epochs == (7 if before.method == "dss" else 2)


def test_what_is_evaluated_is_part_of_a_cell() -> None:
    assert make().cells[0].digest != make(evaluation={"limit": 5}).cells[0].digest
    assert make().cells[0].digest != make(reference="nurse").cells[0].digest


def test_a_judge_is_no_part_of_a_cell() -> None:
    plain = make()
    assert plain.judge == {}
    for judge in ({"gguf": "x.gguf", "limit": 9}, {**REMOTE, "i_may_send_notes": True, "api_key_env": "NOT_SET"}):
        judged = make(judge=judge)
        assert judged.judge == judge
        assert [cell.digest for cell in judged.cells] == [cell.digest for cell in plain.cells]


def test_filters() -> None:
    cells = make().cells
    found = chosen(cells, ["size=small", "stage1_source=nurse", "seed=1", "seed=2"])
    assert {cell.seed for cell in found} == {1, 2}
    assert {cell.size for cell in found} == {"small"}
    # What has no stage 1 does not depend on its source.
    assert {cell.method for cell in found} == {"sft", "dss", "r2d", "r2d-c"}
    assert {cell.stage1_source for cell in found} == {None, "nurse"}
    assert chosen(cells, []) == list(cells)
    for wrong in ("size", "colour=red", "size=huge"):
        with pytest.raises(RecipeError, match="filter"):
            chosen(cells, [wrong])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nmae": "x"}, "unknown key 'nmae'"),
        ({"seeds": []}, "missing or empty 'seeds'"),
        ({"seeds": ["1"]}, "'seeds' cannot be"),
        ({"sources": [["a", "b", "c"]]}, "a pair of sources is"),
        ({"data": {"notes": {"train": ["t.jsonl"]}}}, "'notes' must have train, validation and labels"),
        (
            {
                "data": {
                    "notes": {
                        "train": ["t.jsonl"],
                        "validation": {"v": "v.jsonl", "the ward": "w.jsonl"},
                        "labels": "ab",
                    }
                }
            },
            "set name 'the ward' must be letters",
        ),
        ({"recipe": {"seed": 3}}, "'seed' is set by the study's axes"),
        ({"recipe": {"method": "sft"}}, "'method' is set by the axis"),
        ({"recipe": {"epoch": 3}}, "unknown key 'epoch'"),
        ({"by_method": {"r2": {"epochs": 1}}}, "by_method names 'r2'"),
        ({"by_size": {"big": {"method": "sft"}}}, "by_size cannot change the method"),
        ({"methods": ["sft", "magic"]}, "'method' cannot be 'magic'"),
        ({"evaluation": {"beams": 4}}, "evaluation has no option 'beams'"),
        ({"evaluation": {"decoding": {"beam_size": 0}}}, "evaluation.decoding"),
        ({"sizes": {"a b": "x", "a-b": "y"}}, "two cells would both be called"),
        ({"sizes": ["big"]}, "'sizes' must be a table"),
        ({"judge": "gpt"}, "'judge' must be a table"),
        ({"judge": {"modle": "m"}}, "judge has no option 'modle'"),
        ({"judge": {"limit": 9}}, "name one judge"),
        ({"judge": {"gguf": "x.gguf", "transformers": "y"}}, "name one judge"),
        ({"judge": {"gguf": "x.gguf", "limit": 0}}, "judge.limit must be a whole number from 1, not 0"),
        ({"judge": {"gguf": "x.gguf", "parallel": True}}, "judge.parallel must be a whole number"),
        ({"judge": {"endpoint": "http://localhost/v1"}}, "needs --model"),
        ({"judge": {"endpoint": "http://localhost/v1", "model": "m", "body": "[]"}}, "not a JSON object"),
        ({"judge": {"endpoint": "http://localhost/v1", "model": "m", "body": {}}}, "the judge cannot be used"),
        ({"judge": REMOTE}, "notes would leave this machine for api.example.com: say --i-may-send-notes"),
        ({"judge": {**REMOTE, "i_may_send_notes": False}}, "notes would leave this machine"),
    ],
)
def test_faults_are_named(changes, said) -> None:
    with pytest.raises(RecipeError) as caught:
        make(**changes)
    assert said in str(caught.value)
    assert str(caught.value).startswith("tiny.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"broken.toml is not TOML"):
        read_study(path)


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem != ABLATIONS], ids=lambda path: path.stem)
def test_the_committed_studies_compare_four_methods_at_two_sizes_with_three_seeds(path: Path) -> None:
    study = read_study(path)
    assert study.name == path.stem
    for axis, count in (("method", 4), ("size", 2), ("seed", 3)):
        assert len({getattr(cell, axis) for cell in study.cells}) == count
    if path.stem == "triage":
        pairs = {(cell.stage1_source, cell.source) for cell in study.cells if cell.method == "r2d"}
        assert len(pairs) == 9  # what the heat map shows


def test_there_are_committed_studies() -> None:
    assert {path.stem for path in STUDIES} >= {"triage", "pubmedqa", "evidence", ABLATIONS}


def test_the_ablations_stand_beside_the_triage_study_s_own_cells() -> None:
    """Its sft, dss and r2d are that study's cells, result files and all; a variant differs in what it says."""
    triage, ablations = (read_study(FOLDER / f"{name}.toml") for name in ("triage", ABLATIONS))
    assert (triage.runs, triage.results) == (ablations.runs, ablations.results)
    assert triage.plots != ablations.plots
    known = {cell.name: cell for cell in triage.cells}
    shared = [cell for cell in ablations.cells if cell.method in ("sft", "dss", "r2d")]
    assert len(shared) == 3 * 2 * 3  # methods, sizes, seeds
    assert all(known[cell.name] == cell for cell in shared)
    [r2d] = chosen(shared, ["method=r2d", "seed=13", "size=3+1"])
    for method, changes in {
        "r2d-no-stage1": {"stage1_epochs": 0.0, "stage1_sources": []},
        "r2d-gold": {"sampling": "gold"},
        "r2d-alpha-0.5": {"alpha": 0.5},
        "r2d-smoothed": {"label_smoothing": 0.1},
    }.items():
        [variant] = chosen(ablations.cells, [f"method={method}", "seed=13", "size=3+1"])
        assert replace(variant.recipe, output=r2d.recipe.output) == replace(r2d.recipe, **changes)
    for method in ("sft", "dss"):
        [variant] = chosen(ablations.cells, [f"method={method}-2-epochs", "seed=13", "size=3+1"])
        assert variant.recipe.epochs == r2d.recipe.stage1_epochs + r2d.recipe.epochs


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_both_bases_of_the_committed_studies_have_a_recipe(path: Path) -> None:
    recipes = {"3+1": BASE, "6+3": FOLDER.parent / "triage-nano" / "pretrain.toml"}
    made = {size: load_recipe(PretrainRecipe, recipe).output.as_posix() for size, recipe in recipes.items()}
    assert {cell.size: cell.recipe.checkpoint for cell in read_study(path).cells} == made


def test_the_small_base_starts_where_the_command_above_its_recipe_ends() -> None:
    command = " ".join(line.strip("#\\ ") for line in BASE.read_text(encoding="utf-8").splitlines() if line[0:1] == "#")
    assert f"-o {load_recipe(PretrainRecipe, BASE).checkpoint.as_posix()} python -m train pretrain" in command
    assert f"--config train/recipes/studies/bases/{BASE.name}" in command
