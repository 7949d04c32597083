"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) through PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from train.recipe import ADAPTER_WEIGHTS, RecipeError, StageRecipe


def add_adapter(model: Any, recipe: StageRecipe) -> Any:
    """The model with an adapter on every linear layer but the output's: a fresh one, or the recipe's to go on from.

    Only the adapter learns.

    Raises:
        RecipeError: the recipe's adapter cannot be read, is of another model, or has another rank or scale.
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
    adapted = get_peft_model(model, config)
    if recipe.adapter is not None:
        _take_weights(adapted, recipe, recipe.adapter)
    return adapted


def _alpha(recipe: StageRecipe) -> float:
    return 2 * recipe.lora_rank if recipe.lora_alpha is None else recipe.lora_alpha


def _take_weights(adapted: Any, recipe: StageRecipe, adapter: Path) -> None:
    """Gives a fresh adapter the weights of one that was trained before."""
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        config: Any = PeftConfig.from_pretrained(str(adapter))
        weights = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"the adapter in {adapter} cannot be read: {error}") from None
    if (config.r, config.lora_alpha) != (recipe.lora_rank, _alpha(recipe)):
        raise RecipeError(
            f"the adapter in {adapter} has rank {config.r} and alpha {config.lora_alpha}, the recipe "
            f"{recipe.lora_rank} and {_alpha(recipe)}: set lora_rank and lora_alpha to the adapter's"
        )
    # PEFT only warns where names differ, and leaves those layers as they were drawn.
    found, fresh = (
        {name: tuple(w.shape) for name, w in a.items()} for a in (weights, get_peft_model_state_dict(adapted))
    )
    if differing := sorted(name for name in {*found, *fresh} if found.get(name) != fresh.get(name)):
        raise RecipeError(
            f"the adapter in {adapter} is of another model than {recipe.checkpoint}: {differing[0]} has shape "
            f"{found.get(differing[0])} there and {fresh.get(differing[0])} here"
        )
    set_peft_model_state_dict(adapted, weights)


def has_adapter(model: Any) -> bool:
    """Whether this is a PEFT model."""
    return hasattr(model, "merge_and_unload")


def merged(model: Any) -> Any:
    """A float32 copy of the model with its adapter folded into the weights."""
    return copy.deepcopy(model).float().merge_and_unload()
