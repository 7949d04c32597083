"""The methods that are compared, each a small module over the shared label stage.

`sft`: labels alone. `dss`: distilling step-by-step, labels and rationales as two tasks. `r2d`: Reason2Decide.
`r2d-c`: Reason2Decide-C.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.methods.joint import LabelStageTrainer
    from train.recipe import FitRecipe

METHODS = {
    "sft": "train.methods.sft:LabelTrainer",
    "dss": "train.methods.dss:StepByStepTrainer",
    "r2d": "train.methods.r2d:Reason2DecideTrainer",
    "r2d-c": "train.methods.r2d_c:Reason2DecideCTrainer",
}


def trainer_of(method: str) -> type[LabelStageTrainer]:
    """The trainer class of a method's label stage."""
    module, _, name = METHODS[method].partition(":")
    found: type[LabelStageTrainer] = getattr(importlib.import_module(module), name)
    return found


def fit(recipe: FitRecipe, *, resume: bool = True, stop_after: int | None = None) -> Path:
    """Trains a method whole and writes the model that decides to `recipe.output`.

    A method with a stage 1 runs it first, in a folder beside the output, unless the recipe names a finished one
    or leaves it out. A run that was cut goes on where it stood; one that
    was finished is left as it is.

    Args:
        resume: False throws away what a cut run left.
        stop_after: leave the label stage after this many optimizer steps (a test's stand-in for a kill).

    Returns:
        `recipe.output`.
    """
    from train.methods.joint import train_labels
    from train.recipe import WITH_STAGE1
    from train.stage1 import train_stage1
    from train.trainer import is_finished

    base = recipe.checkpoint
    staged = recipe.method in WITH_STAGE1
    if staged and recipe.stage1_checkpoint is not None:
        base = recipe.stage1_checkpoint
    elif staged and recipe.stage1_epochs > 0:
        stage1 = recipe.stage1
        done = resume and is_finished(stage1)
        base = str(stage1.output if done else train_stage1(stage1, resume=resume))
    recipe = replace(recipe, checkpoint=base)
    if resume and is_finished(recipe):
        return recipe.output
    return train_labels(recipe, trainer_of(recipe.method), resume=resume, stop_after=stop_after)
