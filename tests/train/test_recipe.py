from pathlib import Path
from typing import Any

import pytest

from train.classifier import ClassifierRecipe
from train.pretrain import PretrainRecipe
from train.recipe import FitRecipe, RecipeError, Stage1Recipe, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "train" / "recipes"


SHIPPED = [path for path in sorted(RECIPES.glob("*/*.toml")) if path.parent.name != "studies"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_load(path: Path) -> None:
    kinds: dict[str, Any] = {"pretrain": PretrainRecipe, "teacher": ClassifierRecipe}
    recipe = load_recipe(kinds.get(path.stem, FitRecipe), path)
    if path.parent.name == "ctas":  # those that a clone can follow
        files = [*recipe.train, *recipe.validation.values()]
        assert all((ROOT / file).is_file() for file in files)


def test_overrides() -> None:
    recipe = load_recipe(FitRecipe, RECIPES / "triage-nano" / "r2d.toml", ["epochs=1", "output=elsewhere"])
    assert (recipe.alpha_warmup, recipe.transition, recipe.cap) == (0.05, 0.6, 0.9)
    assert (recipe.epochs, recipe.output) == (1.0, Path("elsewhere"))
    assert recipe.schedule(100).alpha_max == 0.7


def test_stage1_has_its_own_sources_length_and_rate() -> None:
    recipe = load_recipe(FitRecipe, RECIPES / "triage-nano" / "r2d.toml")
    stage1 = recipe.stage1
    assert (stage1.sources, stage1.epochs, stage1.learning_rate) == (["llm", "nurse_post"], 2, 5e-4)
    assert (recipe.sources, recipe.epochs, recipe.learning_rate) == (["llm"], 5, 3e-4)
    assert stage1.output == Path("runs/triage-nano/r2d-stage1")
    plain = load_recipe(FitRecipe, RECIPES / "triage-nano" / "r2d.toml", ["stage1_sources=[]"]).stage1
    assert plain.sources == ["llm"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ('sources=["llm", "nurse"]', "one rationale source"),
        ('method="r2d-x"', "'method'"),
        ('sampling="always"', "'sampling'"),
        ("cap=1.5", "cap"),
        ("evaluations=0", "evaluations"),
        ("batch_size=0", "batch_size"),
        ("epochs=0", "epochs"),
        ("lora_rank=-1", "lora_rank"),
        ("gumbel_end=0", "gumbel_end"),
        ("stage1_learning_rate=fast", "'stage1_learning_rate'"),
    ],
)
def test_what_a_method_cannot_be(override: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(FitRecipe, RECIPES / "triage-nano" / "r2d.toml", [override])


@pytest.mark.parametrize("method", ["dss", "r2d-c"])
def test_decoder_only_models_learn_sft_and_r2d(method: str) -> None:
    small = RECIPES / "triage-small" / "r2d.toml"
    assert load_recipe(FitRecipe, small).task.template is not None
    with pytest.raises(RecipeError, match="decoder-only models learn sft or r2d"):
        load_recipe(FitRecipe, small, [f'method="{method}"'])
    with pytest.raises(RecipeError, match="set lora_rank"):
        load_recipe(FitRecipe, small, ["lora_rank=0"])


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage1Recipe, None, ["checkpoint=x", "epochs=many", "colour=red", "seed=1.5"])
    for word in ("missing key 'output'", "missing key 'train'", "unknown key 'colour'", "'epochs'", "'seed'"):
        assert word in str(caught.value)


def test_override_without_value() -> None:
    with pytest.raises(RecipeError, match="key=value"):
        load_recipe(Stage1Recipe, None, ["epochs"])
