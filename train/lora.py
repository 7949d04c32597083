"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) through PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from train.recipe import RecipeError, StageRecipe


def add_adapter(model: Any, recipe: StageRecipe) -> Any:
    """The model with an adapter on every linear layer but the output's: a fresh one, or the recipe's to go on from.

    Only the adapter learns.

    Raises:
        RecipeError: the recipe's adapter cannot be read, or has another rank or scale than the recipe.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=_alpha(recipe),
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        task_type="SEQ_2_SEQ_LM" if recipe.template is None else "CAUSAL_LM",
    )
    # Half of an adapter is drawn at random, before the Trainer sets its seed.
    torch.manual_seed(recipe.seed)
    return get_peft_model(model, config) if recipe.adapter is None else _trained_before(model, recipe, recipe.adapter)


def _alpha(recipe: StageRecipe) -> float:
    return 2 * recipe.lora_rank if recipe.lora_alpha is None else recipe.lora_alpha


def _trained_before(model: Any, recipe: StageRecipe, adapter: Path) -> Any:
    from peft import PeftConfig, PeftModel

    try:
        found: Any = PeftConfig.from_pretrained(str(adapter))
        if (found.r, found.lora_alpha) != (recipe.lora_rank, _alpha(recipe)):
            raise RecipeError(
                f"the adapter in {adapter} has rank {found.r} and alpha {found.lora_alpha}, the recipe "
                f"{recipe.lora_rank} and {_alpha(recipe)}: set lora_rank and lora_alpha to the adapter's"
            )
        found.lora_dropout = recipe.lora_dropout
        return PeftModel.from_pretrained(model, str(adapter), config=found, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"the adapter in {adapter} cannot be gone on from: {error}") from None


def has_adapter(model: Any) -> bool:
    """Whether this is a PEFT model."""
    return hasattr(model, "merge_and_unload")


def merged(model: Any) -> Any:
    """A float32 copy of the model with its adapter folded into the weights."""
    return copy.deepcopy(model).float().merge_and_unload()
