"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) through PEFT."""

from __future__ import annotations

import copy
from typing import Any

from train.recipe import StageRecipe


def add_adapter(model: Any, recipe: StageRecipe) -> Any:
    """The model with a fresh adapter on every linear layer but the output's; only the adapter learns."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=2 * recipe.lora_rank if recipe.lora_alpha is None else recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        task_type="SEQ_2_SEQ_LM" if recipe.template is None else "CAUSAL_LM",
    )
    # Half of an adapter is drawn at random, before the Trainer sets its seed.
    torch.manual_seed(recipe.seed)
    return get_peft_model(model, config)


def has_adapter(model: Any) -> bool:
    """Whether this is a PEFT model."""
    return hasattr(model, "merge_and_unload")


def merged(model: Any) -> Any:
    """A float32 copy of the model with its adapter folded into the weights."""
    return copy.deepcopy(model).float().merge_and_unload()
