from pathlib import Path

import pytest

from train.pretrain import PretrainRecipe
from train.recipe import RecipeError, Stage1Recipe, Stage2Recipe, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "train" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_load(path: Path) -> None:
    kind = {"pretrain": PretrainRecipe, "stage1": Stage1Recipe, "stage2": Stage2Recipe}[path.stem]
    recipe = load_recipe(kind, path)
    if path.parent.name == "ctas":  # those that a clone can follow
        files = [*recipe.train, *recipe.validation.values()]
        assert all((ROOT / file).is_file() for file in files)


def test_overrides() -> None:
    folder = RECIPES / "triage-nano"
    assert load_recipe(Stage1Recipe, folder / "stage1.toml").sources == ["llm", "nurse_post"]
    recipe = load_recipe(Stage2Recipe, folder / "stage2.toml", ["epochs=1", "output=elsewhere"])
    assert (recipe.alpha, recipe.alpha_warmup, recipe.transition, recipe.cap) == (0.7, 0.05, 0.6, 0.9)
    assert (recipe.epochs, recipe.output) == (1.0, Path("elsewhere"))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Stage1Recipe, None, ["checkpoint=x", "epochs=many", "colour=red", "seed=1.5"])
    for word in ("missing key 'output'", "missing key 'train'", "unknown key 'colour'", "'epochs'", "'seed'"):
        assert word in str(caught.value)


def test_override_without_value() -> None:
    with pytest.raises(RecipeError, match="key=value"):
        load_recipe(Stage1Recipe, None, ["epochs"])
