"""What every method's label stage shares: its items, its trainer's frame, evaluation and selection."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from r2d_edge.task import PromptEncoder
from train import checkpoint
from train.batching import IGNORED
from train.data import Example, missing_rationales, sources
from train.int8 import Int8Activations
from train.labels import label_metrics
from train.losses import soft_label_loss, token_loss
from train.recipe import FitRecipe, RecipeError
from train.resume import processes
from train.schedule import Schedule
from train.soft_labels import LabelDistribution
from train.stage1 import read_splits
from train.trainer import (
    SaveBetweenEvaluations,
    StageTrainer,
    StopAfter,
    begin_stage,
    last_checkpoint,
    training_arguments,
)

SELECTED_BY = "eval_macro_f1"
PARTS = ("loss_label", "loss_soft_label", "loss_rationale", "loss_cycle")


@dataclass(frozen=True)
class LabelledItem:
    """A row: what both tasks need. `rationale` is empty where the row has none.

    Attributes:
        label: the gold label, or the teacher's best where `is_gold` says so.
        taught: a teacher's probability of each label, in the label set's order; empty where there is none or
            it is not learned from.
    """

    row: int
    text: str
    label: str
    prompt: list[int]
    label_target: list[int]
    rationale: list[int]
    is_gold: bool = True
    taught: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Totals:
    """What one optimizer step holds over all processes and accumulation steps: the divisors of its losses."""

    label_tokens: torch.Tensor | int
    rationale_tokens: torch.Tensor | int
    explained_rows: torch.Tensor | int
    taught_rows: torch.Tensor | int


def labelled_items(
    examples: Sequence[Example], source: str, encoder: PromptEncoder, *, soft: bool = False
) -> list[LabelledItem]:
    """One item a row; a row without a rationale of `source` still trains the label.

    Args:
        examples: the rows.
        source: who wrote the rationales.
        encoder: makes prompts and targets.
        soft: whether a teacher's label distributions are learned from.
    """
    limits = encoder.task.limits
    return [
        LabelledItem(
            row,
            example.text,
            example.best_label,
            encoder.predict(example.text).ids,
            encoder.target_ids(example.best_label, limits.label),
            encoder.target_ids(rationale, limits.rationale) if (rationale := example.rationales.get(source)) else [],
            bool(example.label),
            [example.teacher_probabilities[label] for label in encoder.task.labels.labels]
            if soft and example.teacher_probabilities
            else [],
        )
        for row, example in enumerate(examples)
    ]


class LabelStageTrainer(StageTrainer):
    """A method's label stage; subclasses say what the rationale adds. Selected by macro-F1 of the label."""

    recipe: FitRecipe
    control: Any
    explains: ClassVar[bool] = True
    own_alpha: ClassVar[float] = 0.7

    def __init__(
        self,
        recipe: FitRecipe,
        encoder: PromptEncoder,
        items: list[LabelledItem],
        validation: dict[str, list[Example]],
        **arguments: Any,
    ) -> None:
        self.validation = validation
        self.int8 = Int8Activations(arguments["model"]) if recipe.int8_from < 1 else None
        self.distribution = LabelDistribution(encoder) if recipe.soft_labels > 0 else None
        lengths = [len(i.prompt) + (len(i.prompt) + len(i.rationale) if self.explains else 0) for i in items]
        super().__init__(
            recipe,
            encoder,
            items,
            LabelledItem(-1, "", "", [encoder.end_id], [], [], is_gold=False),
            lengths,
            eval_dataset=next(iter(validation.values())),  # asked for by the Trainer; `evaluate` takes all sets
            **arguments,
        )
        self.add_callback(_Patience(self))
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._parts_step = 0

    @property
    def schedule(self) -> Schedule:
        """The schedule over this run's optimizer steps."""
        return self.recipe.schedule(self.state.max_steps, self.own_alpha)

    def selects(self, step: int) -> bool:
        """Whether an evaluation at this step counts for early stopping and the best checkpoint.

        What is kept is run with rounded activations where it was trained for them: it is chosen with them, too.
        """
        return self.int8 is None or self.rounds(step)

    def rounds(self, step: int) -> bool:
        """Whether activations are rounded at this step (see `train.int8`)."""
        return self.int8 is not None and step >= self.recipe.int8_from * self.state.max_steps

    def is_over(self) -> bool:
        return super().is_over() or self.out_of_patience()

    def out_of_patience(self) -> bool:
        """Whether `patience` evaluations passed without a better macro-F1, counted only once selection has begun."""
        # Read from the log, which a resumed run still has.
        log = self.state.log_history
        scores = [entry[SELECTED_BY] for entry in log if SELECTED_BY in entry and self.selects(entry["step"])]
        patience = self.recipe.patience
        return patience > 0 and bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience

    def rationale_part(self, model: Any, items: list[LabelledItem], totals: Totals, weight: float) -> torch.Tensor:
        """What the items that have a rationale add to this batch's loss; `weight` is the rationale loss's."""
        raise NotImplementedError

    def weights(self, step: int) -> tuple[float, float]:
        """The weights of the label loss and of the rationale loss."""
        raise NotImplementedError

    def counts(self, inputs: dict[str, Any]) -> list[int]:
        items: list[LabelledItem] = inputs["items"]
        return [
            sum(len(item.label_target) for item in items if item.is_gold),
            sum(len(item.rationale) for item in items),
            sum(bool(item.rationale) for item in items),
            sum(bool(item.taught) for item in items),
        ]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._set_precision()
        items: list[LabelledItem] = inputs["items"]
        counts = num_items_in_batch if num_items_in_batch is not None else [max(1, n) for n in self.counts(inputs)]
        totals = Totals(*counts)
        label_weight, rationale_weight = self.weights(self.state.global_step)
        # The label first: its forward pass leaves the weights in autocast's cache with their gradient, which a
        # pass without gradient (for the model's own labels) would leave out.
        loss = label_weight * self.label_part(model, items, totals)
        if self.explains:
            explained = [item for item in items if item.rationale]
            loss = loss + self.rationale_part(model, explained, totals, rationale_weight)
        scaled: torch.Tensor = loss * self.args.world_size  # the gradients of the processes are averaged
        return scaled

    def label_part(self, model: Any, items: list[LabelledItem], totals: Totals) -> torch.Tensor:
        """The label loss: that of the gold labels or, with a teacher, mixed with that of its distributions."""
        prompts, targets = [item.prompt for item in items], [item.label_target for item in items]
        smoothing = self.recipe.label_smoothing
        if self.distribution is None:
            loss = self.target_loss(model, prompts, targets, totals.label_tokens, smoothing=smoothing)
            self.note(loss_label=loss)
            return loss
        logits, after = self.family.branching(model, self.collate(prompts, targets))
        gold = torch.full(logits.shape[:2], IGNORED, device=self.args.device)
        for row, item in enumerate(items):
            if item.is_gold:
                gold[row, : len(item.label_target)] = torch.tensor(item.label_target)
        loss = token_loss(logits, gold, smoothing, total=True) / totals.label_tokens
        scores = self.distribution.log_probabilities(logits, after)
        taught = [row for row, item in enumerate(items) if item.taught]
        teacher = torch.tensor([items[row].taught for row in taught], device=self.args.device)
        soft = (
            soft_label_loss(scores[taught], teacher.view(len(taught), scores.shape[1]), self.recipe.soft_temperature)
            / totals.taught_rows
        )
        self.note(loss_label=loss, loss_soft_label=soft)
        return (1 - self.recipe.soft_labels) * loss + self.recipe.soft_labels * soft

    def _set_precision(self) -> None:
        if self.int8 is not None:
            self.int8.enabled = self.rounds(self.state.global_step)
            self.int8.forget()

    def note(self, **losses: torch.Tensor) -> None:
        """Adds to the parts of the loss (names in `PARTS`) for the log, of the steps that are about to be logged."""
        step = self.state.global_step
        if (step + 1) % self.args.logging_steps:
            return
        if step != self._parts_step:
            self._parts, self._parts_step = dict.fromkeys(PARTS, 0.0), step
        for name, value in losses.items():
            self._parts[name] += float(value.detach())

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the last logged step's loss, over all processes and accumulation steps."""
        own = torch.tensor([self._parts[name] for name in PARTS], dtype=torch.float64, device=self.args.device)
        values = self.accelerator.reduce(own, reduction="sum").tolist()
        return {name: value for name, value in zip(PARTS, values, strict=True) if value}

    def score(self) -> dict[str, float]:
        """Macro-F1 and accuracy of the model as it stands on every validation set, and their mean `macro_f1`."""
        self._set_precision()
        metrics = {
            f"{name}_{key}": value
            for name, examples in self.validation.items()
            for key, value in label_metrics(self.engine, self.encoder, examples).items()
        }
        metrics["macro_f1"] = sum(metrics[f"{name}_macro_f1"] for name in self.validation) / len(self.validation)
        # A label that rounding flips in one process alone must not let that one stop while the others train on.
        [agreed] = broadcast_object_list([metrics])
        return cast(dict[str, float], agreed)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in self.score().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *arguments: Any, **more: Any) -> None:
        if "loss" in logs:
            logs |= self.parts
        super().log(logs, *arguments, **more)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return self.selects(self.state.global_step) and bool(super()._determine_best_metric(metrics, trial))


class _Patience(TrainerCallback):
    """Stops a trainer that has run out of patience."""

    def __init__(self, trainer: LabelStageTrainer) -> None:
        self._trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.out_of_patience():
            control.should_training_stop = True


def train_labels(
    recipe: FitRecipe,
    kind: type[LabelStageTrainer],
    *,
    resume: bool = True,
    stop_after: int | None = None,
) -> Path:
    """Runs a method's label stage from the recipe's checkpoint and writes its best checkpoint, by validation macro-F1.

    Returns:
        `recipe.output`.
    """
    started = time.monotonic()
    begin_stage(recipe, resume=resume)
    train, validation = read_splits(recipe)
    model, tokenizer, encoder = checkpoint.load_for_training(recipe)
    source = recipe.sources[0]
    items = labelled_items(train, source, encoder, soft=recipe.soft_labels > 0)
    missing = missing_rationales(train, source)
    without = f", {missing} without a rationale of {source!r}" if kind.explains else ""
    print(f"{recipe.method}: {len(items)} rows{without}")
    taught, gold = sum(bool(item.taught) for item in items), sum(item.is_gold for item in items)
    if recipe.soft_labels > 0:
        print(f"{taught} rows with a teacher's label distribution, {len(items) - gold} without a gold label")
        if not taught:
            raise RecipeError(
                "soft_labels is above 0, but no row has teacher_probabilities: `python -m train teach` adds them"
            )
    if kind.explains and missing == len(items):
        raise RecipeError(
            f"no training row has a rationale of {source!r}; they have {sorted(sources(train))}: set `sources` to one"
        )
    per_step = recipe.batch_size * recipe.gradient_accumulation * processes()
    steps = math.ceil(recipe.epochs * math.ceil(len(items) / per_step))
    every = max(1, steps // recipe.evaluations)
    trainer = kind(
        recipe,
        encoder,
        items,
        validation,
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
        callbacks=[SaveBetweenEvaluations(recipe.save_steps), *([StopAfter(stop_after)] if stop_after else [])],
    )
    trainer.run(last_checkpoint(recipe), started)
    if stop_after is not None and not trainer.is_over():
        return recipe.output
    metrics = trainer.score()  # of the weights that are kept, not of the last step's: no part of the log
    trainer.save_result(
        tokenizer,
        checkpoint.provenance(
            recipe.method,
            recipe,
            rows=len(train),
            steps=trainer.state.global_step,
            seconds=trainer.seconds,
            **({"rationales_missing": missing} if kind.explains else {}),
            **({"rows_taught": taught, "rows_without_gold": len(items) - gold} if recipe.soft_labels > 0 else {}),
            best_step=trainer.state.best_global_step,
            validation_metrics={key: round(value, 4) for key, value in metrics.items()},
        ),
        rationales=[row.rationales[source] for row in train if row.rationales.get(source)],
    )
    return recipe.output
