"""Stage 2: label and rationale together, with task-level scheduled sampling.

Hasan et al., LREC 2026 (arXiv 2512.20074): loss α·L_pred + (1−α)·L_expl, where the explanation prompt holds
the gold label at first and, for a growing share of the examples, the model's own predicted label later. Two
departures from the authors' code, both on purpose: labels for sampling are made in eval mode (no dropout),
and from the whole input (never a shorter cut).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from r2d_edge.engines.transformers import TransformersEngine
from r2d_edge.task import PromptEncoder
from train import checkpoint
from train.batching import collate
from train.data import Example, missing_rationales
from train.int8 import Int8Activations
from train.labels import label_metrics, predict_labels
from train.losses import seq2seq_loss
from train.recipe import RecipeError, Stage2Recipe
from train.schedule import Schedule
from train.stage1 import read_splits
from train.trainer import StageTrainer, StopAfter, begin_stage, last_checkpoint, training_arguments

SELECTED_BY = "eval_macro_f1"


@dataclass(frozen=True)
class LabelledItem:
    """A row of stage 2: what both tasks need. `rationale` is empty where the row has none."""

    row: int
    text: str
    label: str
    prompt: list[int]
    label_target: list[int]
    rationale: list[int]


def labelled_items(examples: Sequence[Example], source: str, encoder: PromptEncoder) -> list[LabelledItem]:
    """One item a row; a row without a rationale of `source` still trains the label."""
    limits = encoder.task.limits
    return [
        LabelledItem(
            row,
            example.text,
            example.label,
            encoder.predict(example.text).ids,
            encoder.target_ids(example.label, limits.label),
            encoder.target_ids(rationale, limits.rationale) if (rationale := example.rationales.get(source)) else [],
        )
        for row, example in enumerate(examples)
    ]


class Reason2DecideTrainer(StageTrainer):
    """The joint loss under the schedule; evaluation is macro-F1 of the label."""

    control: Any

    def __init__(
        self,
        recipe: Stage2Recipe,
        items: list[LabelledItem],
        validation: dict[str, list[Example]],
        encoder: PromptEncoder,
        **arguments: Any,
    ) -> None:
        self.stage2 = recipe
        self.validation = validation
        self.encoder = encoder
        self.int8 = Int8Activations(arguments["model"]) if recipe.int8_from < 1 else None
        lengths = [2 * len(item.prompt) + len(item.rationale) for item in items]
        super().__init__(
            recipe,
            lengths,
            train_dataset=items,
            eval_dataset=next(iter(validation.values())),  # asked for by the Trainer; `evaluate` takes all sets
            data_collator=self._collate,
            **arguments,
        )

    @property
    def schedule(self) -> Schedule:
        """The schedule over this run's optimizer steps."""
        recipe = self.stage2
        return Schedule(self.state.max_steps, recipe.alpha, recipe.alpha_warmup, recipe.transition, recipe.cap)

    def _collate(self, items: list[LabelledItem]) -> dict[str, Any]:
        pad_id = self.model.config.pad_token_id
        return {**collate([i.prompt for i in items], [i.label_target for i in items], pad_id), "items": items}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> torch.Tensor:
        step, smoothing = self.state.global_step, self.stage2.label_smoothing
        self._set_precision(step)
        items: list[LabelledItem] = inputs.pop("items")
        alpha = self.schedule.alpha(step)
        prediction = seq2seq_loss(model, inputs, smoothing)
        explained = [item for item in items if item.rationale]
        if not explained:
            return alpha * prediction
        # After the label's own forward pass, which left its bfloat16 weights in autocast's cache: cast first
        # without gradient, they would have none.
        labels = self.explanation_labels(explained, step)
        prompts = [self.encoder.explain(i.text, label).ids for i, label in zip(explained, labels, strict=True)]
        batch = collate(prompts, [item.rationale for item in explained], self.model.config.pad_token_id)
        explanation = seq2seq_loss(model, {key: value.to(prediction.device) for key, value in batch.items()}, smoothing)
        if (step + 1) % self.args.logging_steps == 0:  # the step that is about to be logged
            self._losses = {"loss_label": prediction.item(), "loss_rationale": explanation.item()}
        return alpha * prediction + (1 - alpha) * explanation

    def _set_precision(self, step: int) -> None:
        if self.int8 is not None:
            self.int8.enabled = step >= self.stage2.int8_from * self.state.max_steps
            self.int8.forget()

    def explanation_labels(self, items: Sequence[LabelledItem], step: int) -> list[str]:
        """The label each explanation prompt holds at a step: gold, or the model's own for the drawn share.

        Whether a row is drawn depends on (seed, step, row) alone: not on the batch, the process or a restart.
        """
        share = self.schedule.predicted_share(step)
        drawn = [item for item in items if np.random.default_rng([self.args.seed, step, item.row]).random() < share]
        if not drawn:
            return [item.label for item in items]
        texts = [item.text for item in drawn]
        own = dict(zip((i.row for i in drawn), predict_labels(self.engine, self.encoder, texts), strict=True))
        return [own.get(item.row, item.label) for item in items]

    @property
    def engine(self) -> TransformersEngine:
        """The bare model as it stands, for labels without gradient."""
        return TransformersEngine(
            self.accelerator.unwrap_model(self.model), self.encoder, autocast=checkpoint.precision(self.recipe.bf16)
        )

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self._set_precision(self.state.global_step)
        for name, examples in self.validation.items():
            for key, value in label_metrics(self.engine, self.encoder, examples).items():
                metrics[f"{metric_key_prefix}_{name}_{key}"] = value
        mean = [metrics[f"{metric_key_prefix}_{name}_macro_f1"] for name in self.validation]
        metrics[f"{metric_key_prefix}_macro_f1"] = sum(mean) / len(mean)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *arguments: Any, **more: Any) -> None:
        if "loss" in logs:
            step = self.state.global_step
            logs |= {"alpha": self.schedule.alpha(step), "predicted_share": self.schedule.predicted_share(step)}
            logs |= getattr(self, "_losses", {})
        super().log(logs, *arguments, **more)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if not self.schedule.selects(self.state.global_step):
            return False
        return bool(super()._determine_best_metric(metrics, trial))


class SelectivePatience(TrainerCallback):
    """Stops after `patience` evaluations without a better macro-F1, counted only once selection has begun."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._trainer: Reason2DecideTrainer | None = None

    def attach(self, trainer: Reason2DecideTrainer) -> None:
        """Gives the callback the trainer whose schedule it obeys."""
        self._trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer is None:
            return
        selects = self._trainer.schedule.selects
        # Read from the log, which a resumed run still has.
        scores = [log[SELECTED_BY] for log in state.log_history if SELECTED_BY in log and selects(log["step"])]
        if scores and len(scores) - 1 - scores.index(max(scores)) >= self._patience:
            control.should_training_stop = True


def train_stage2(recipe: Stage2Recipe, *, resume: bool = True, stop_after: int | None = None) -> Path:
    """Runs stage 2 and writes its best checkpoint, by validation macro-F1, to `recipe.output`.

    Args:
        resume: go on from the newest checkpoint of a run that was cut.
        stop_after: leave after this many optimizer steps in all (a test's stand-in for a kill).

    Returns:
        `recipe.output`.
    """
    started = time.monotonic()
    if len(recipe.sources) != 1:
        raise RecipeError(f"stage 2 learns one rationale source, not {recipe.sources}")
    begin_stage(recipe, resume=resume)
    train, validation = read_splits(recipe)
    model, tokenizer, encoder = checkpoint.load_for_training(recipe)
    items = labelled_items(train, recipe.sources[0], encoder)
    print(f"stage 2: {len(items)} rows, {missing_rationales(train, recipe.sources[0])} without a rationale")
    per_step = recipe.batch_size * recipe.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    steps = math.ceil(recipe.epochs * math.ceil(len(items) / per_step))
    every = max(1, steps // recipe.evaluations)
    patience = SelectivePatience(recipe.patience or steps)
    trainer = Reason2DecideTrainer(
        recipe,
        items,
        validation,
        encoder,
        model=model,
        args=training_arguments(
            recipe,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            load_best_model_at_end=True,
            metric_for_best_model="macro_f1",
            greater_is_better=True,
        ),
        callbacks=[patience, *([StopAfter(stop_after)] if stop_after else [])],
    )
    patience.attach(trainer)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(recipe))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        checkpoint.save_checkpoint(
            recipe.output,
            trainer.accelerator.unwrap_model(trainer.model),
            tokenizer,
            task=recipe.task,
            provenance=checkpoint.provenance(
                "reason2decide stage 2",
                recipe,
                rows=len(train),
                steps=result.global_step,
                seconds=time.monotonic() - started,
                best_step=trainer.state.best_global_step,
                validation_metrics={key.removeprefix("eval_"): round(value, 4) for key, value in metrics.items()},
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            ),
            rationales=[row.rationales[recipe.sources[0]] for row in train if row.rationales.get(recipe.sources[0])],
        )
    return recipe.output
