"""Stage 1: the model learns to write rationales, with no label in sight.

Hasan et al., LREC 2026 (arXiv 2512.20074): `explain: {text}` → rationale.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r2d_edge.task import PromptEncoder
from train import checkpoint
from train.data import Example, check_split, read_dataset, sources
from train.recipe import RecipeError, Stage1Recipe, StageRecipe
from train.trainer import StageTrainer, StopAfter, begin_stage, last_checkpoint, training_arguments


@dataclass(frozen=True)
class RationaleItem:
    """One target of stage 1."""

    prompt: list[int]
    target: list[int]


def read_splits(recipe: StageRecipe) -> tuple[list[Example], dict[str, list[Example]]]:
    """The recipe's training rows (all files together) and its validation sets by name.

    Raises:
        DatasetError: any fault of any file.
    """
    labels = recipe.task.labels
    train = [example for path in recipe.train for example in read_dataset(path, labels, unlabelled=recipe.unlabelled)]
    validation = {name: read_dataset(path, labels) for name, path in recipe.validation.items()}
    check_split(train, [example for rows in validation.values() for example in rows], labels)
    return train, validation


def rationale_items(examples: Sequence[Example], wanted: Sequence[str], encoder: PromptEncoder) -> list[RationaleItem]:
    """A target for each of the wanted sources that a row has."""
    limit = encoder.task.limits.rationale
    return [
        RationaleItem(encoder.rationale(example.text).ids, encoder.target_ids(example.rationales[source], limit))
        for example in examples
        for source in wanted
        if example.rationales.get(source)
    ]


class RationaleTrainer(StageTrainer):
    """Cross-entropy of the rationale; evaluation is its mean over the tokens of `checked`."""

    checked: list[RationaleItem]
    control: Any

    def counts(self, inputs: dict[str, Any]) -> list[int]:
        return [sum(len(item.target) for item in inputs["items"])]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        items: list[RationaleItem] = inputs["items"]
        count = self.counts(inputs)[0] if num_items_in_batch is None else num_items_in_batch[0]
        loss = self._loss(model, items, count, self.recipe.label_smoothing)
        return loss * self.args.world_size  # the gradients of the processes are averaged

    def _loss(
        self, model: Any, items: Sequence[RationaleItem], count: torch.Tensor | int, smoothing: float = 0.0
    ) -> torch.Tensor:
        prompts, targets = [item.prompt for item in items], [item.target for item in items]
        return self.target_loss(model, prompts, targets, count, smoothing=smoothing)

    def has_evaluated(self) -> bool:
        """Whether the log holds an evaluation of the step at which the run stands."""
        return any("eval_loss" in entry and entry["step"] == self.state.global_step for entry in self.state.log_history)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        items = sorted(self.checked, key=lambda item: len(item.prompt))
        count = sum(len(item.target) for item in items)
        model = self.accelerator.unwrap_model(self.model)
        was_training, size = model.training, self.args.per_device_eval_batch_size
        model.eval()
        with torch.inference_mode(), self.compute_loss_context_manager():
            batches = [items[first : first + size] for first in range(0, len(items), size)]
            loss = sum(float(self._loss(model, batch, count)) for batch in batches)
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_stage1(recipe: Stage1Recipe, *, resume: bool = True, stop_after: int | None = None) -> Path:
    """Runs stage 1 and writes its checkpoint to `recipe.output`.

    Args:
        resume: go on from the newest checkpoint of a run that was cut.
        stop_after: leave after this many optimizer steps in all (a test's stand-in for a kill).

    Returns:
        `recipe.output`.
    """
    started = time.monotonic()
    begin_stage(recipe, resume=resume)
    train, validation = read_splits(recipe)
    model, tokenizer, encoder = checkpoint.load_for_training(recipe)
    items = rationale_items(train, recipe.sources, encoder)
    checked = rationale_items([row for rows in validation.values() for row in rows], recipe.sources, encoder)
    if not items or not checked:
        raise RecipeError(
            f"no rationale of the sources {recipe.sources} in the training or the validation rows, which have "
            f"{sorted(sources([*train, *(row for rows in validation.values() for row in rows)]))}: set `sources` "
            "(or `stage1_sources`) to one of them"
        )
    missing = len(train) * len(recipe.sources) - len(items)
    print(f"stage 1: {len(items)} targets, {missing} rationales missing, {len(checked)} for validation")
    trainer = RationaleTrainer(
        recipe,
        encoder,
        items,
        RationaleItem([encoder.end_id], []),
        [len(item.prompt) + len(item.target) for item in items],
        model=model,
        args=training_arguments(recipe, eval_strategy="epoch"),
        eval_dataset=checked,  # asked for by the Trainer
        callbacks=[StopAfter(stop_after)] if stop_after else None,
    )
    trainer.checked = checked
    trainer.run(last_checkpoint(recipe), started)
    if stop_after is not None and not trainer.is_over():
        return recipe.output
    if not trainer.has_evaluated():  # the run was cut between its last step and its last evaluation
        trainer.evaluate()
    trainer.save_result(
        tokenizer,
        checkpoint.provenance(
            "stage 1",
            recipe,
            rows=len(train),
            steps=trainer.state.global_step,
            seconds=trainer.seconds,
            targets=len(items),
            rationales_missing=missing,
        ),
        rationales=[text for row in train for text in row.rationales.values()],
    )
    return recipe.output
