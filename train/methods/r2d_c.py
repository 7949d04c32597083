"""Reason2Decide-C: scheduled sampling gated by confidence, and a cycle from the rationale back to its label.

Hasan et al., Computers 2026, 15(5), 279. As in `r2d`, labels for sampling are made in eval mode from the whole
input. Their confidences are observed where a label is wanted (all rows with a rationale during the warm-up, later
the share that the schedule draws of them), not on every row of every step: a sample of the same mean at less cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from train.confidence import ConfidenceGate
from train.cycle import gumbel_temperature, soft_prompt
from train.labels import predict_with_confidence
from train.losses import token_loss
from train.methods.joint import LabelledItem, Totals
from train.methods.r2d import Reason2DecideTrainer

_GATE_FILE = "confidence_gate.json"


class Reason2DecideCTrainer(Reason2DecideTrainer):
    """Reason2Decide's loss with gated labels, plus the cycle's after the warm-up."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.gate = ConfidenceGate(self.recipe.confidence_slope, self.recipe.threshold_refresh)

    def rationale_part(self, model: Any, items: list[LabelledItem], totals: Totals, weight: float) -> torch.Tensor:
        step = self.state.global_step
        if step <= self.schedule.warmup_end:
            return super().rationale_part(model, items, totals, weight)
        labels = self.prompt_labels(items, step)
        if not items:
            return torch.zeros((), device=self.args.device)
        batch = self.collate(self.prompts(items, labels), [item.rationale for item in items])
        logits = self.family.logits(model, batch)
        loss = token_loss(logits, batch["labels"], self.recipe.label_smoothing, total=True) / totals.rationale_tokens
        cycle = self.cycle_loss(model, logits, batch["labels"], labels) / totals.explained_rows
        self.note(loss_rationale=loss, loss_cycle=cycle)
        return weight * loss + self.recipe.cycle_weight * cycle

    def cycle_loss(
        self, model: Any, logits: torch.Tensor, rationales: torch.Tensor, labels: Sequence[str]
    ) -> torch.Tensor:
        """Sum over rows of the mean token loss with which each prompt's label is recovered from its rationale."""
        temperature = gumbel_temperature(self.state.global_step, self.state.max_steps, self.recipe.gumbel_end)
        bare = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():  # which otherwise ends with the model's own forward pass
            embeds, mask = soft_prompt(
                bare.get_input_embeddings(), self.encoder.predict_head(), logits, rationales, temperature
            )
        limit = self.encoder.task.limits.label
        targets = [self.encoder.target_ids(label, limit) for label in labels]
        batch = self.collate([[0]] * len(targets), targets)
        recovered = self.family.logits(
            model, {"inputs_embeds": embeds, "attention_mask": mask, "labels": batch["labels"]}
        )
        losses = [token_loss(row[None], target[None]) for row, target in zip(recovered, batch["labels"], strict=True)]
        return torch.stack(losses).sum()

    def prompt_labels(self, items: Sequence[LabelledItem], step: int) -> list[str]:
        warmup_end = self.schedule.warmup_end
        self.gate.advance(step, warmup_end)
        share = 1.0 if step <= warmup_end else self.schedule.predicted_share(step)
        drawn = [item for item in items if self.draw(item, step) < share]
        own = self.own_labels_with_confidence(drawn)
        self._observe([confidence for _, confidence in own])
        if step <= warmup_end:
            return [item.label for item in items]
        # One draw decides both: it lies below the share, now it must lie below the gated share.
        taken = {
            item.row: label
            for item, (label, confidence) in zip(drawn, own, strict=True)
            if self.draw(item, step) < share * self.gate.passes(confidence)
        }
        return [taken.get(item.row, item.label) for item in items]

    def own_labels_with_confidence(self, items: Sequence[LabelledItem]) -> list[tuple[str, float]]:
        """The label that the model as it stands gives each item, and how sure it is of it."""
        prompts = [item.prompt for item in items]
        return predict_with_confidence(self.engine, self.encoder, prompts) if items else []

    def _observe(self, confidences: Sequence[float]) -> None:
        """Takes in the confidences of all processes, so that their thresholds agree."""
        own = torch.tensor([sum(confidences), len(confidences)], dtype=torch.float64, device=self.args.device)
        total, count = self.accelerator.reduce(own, reduction="sum").tolist()
        self.gate.observe(total, int(count))

    def kept(self) -> dict[str, Mapping[str, Any]]:
        return {**super().kept(), _GATE_FILE: asdict(self.gate)}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.gate = ConfidenceGate(**json.loads((Path(resume_from_checkpoint) / _GATE_FILE).read_text("utf-8")))
