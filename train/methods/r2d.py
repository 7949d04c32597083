"""Reason2Decide: stage 1, then label and rationale together with task-level scheduled sampling.

Hasan et al., LREC 2026 (arXiv 2512.20074): loss α·L_pred + (1−α)·L_expl, where the explanation prompt holds
the gold label at first and, for a growing share of the examples, the model's own predicted label later. Two
departures from the authors' code, both on purpose: labels for sampling are made in eval mode (no dropout),
and from the whole input (never a shorter cut).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.labels import predict_labels
from train.methods.joint import LabelledItem, LabelStageTrainer, Totals


class Reason2DecideTrainer(LabelStageTrainer):
    """The joint loss under the schedule."""

    def weights(self, step: int) -> tuple[float, float]:
        alpha = self.schedule.alpha(step)
        return alpha, 1 - alpha

    def selects(self, step: int) -> bool:
        return super().selects(step) and self.schedule.selects(step)

    def rationale_part(self, model: Any, items: list[LabelledItem], totals: Totals, weight: float) -> torch.Tensor:
        labels = self.prompt_labels(items, self.state.global_step)
        if not items:
            return torch.zeros((), device=self.args.device)
        loss = self.target_loss(
            model,
            self.prompts(items, labels),
            [item.rationale for item in items],
            totals.rationale_tokens,
            smoothing=self.recipe.label_smoothing,
        )
        self.note(loss_rationale=loss)
        return weight * loss

    def prompts(self, items: Sequence[LabelledItem], labels: Sequence[str]) -> list[list[int]]:
        """The explanation prompts, each with its label."""
        return [self.encoder.explain(item.text, label).ids for item, label in zip(items, labels, strict=True)]

    def prompt_labels(self, items: Sequence[LabelledItem], step: int) -> list[str]:
        """The label each explanation prompt holds at a step: gold, or the model's own for the drawn share."""
        share = self.schedule.predicted_share(step)
        drawn = [item for item in items if self.draw(item, step) < share]
        own = dict(zip((item.row for item in drawn), self.own_labels(drawn), strict=True))
        return [own.get(item.row, item.label) for item in items]

    def draw(self, item: LabelledItem, step: int) -> float:
        """A number in 0..1 that depends on (seed, step, row) alone: not on the batch, the process or a restart."""
        return float(np.random.default_rng([self.args.seed, step, item.row]).random())

    def own_labels(self, items: Sequence[LabelledItem]) -> list[str]:
        """The label that the model as it stands gives each item."""
        return predict_labels(self.engine, self.encoder, [item.prompt for item in items]) if items else []

    def log(self, logs: dict[str, float], *arguments: Any, **more: Any) -> None:
        if "loss" in logs:
            step = self.state.global_step
            logs |= {"alpha": self.schedule.alpha(step), "predicted_share": self.schedule.predicted_share(step)}
        super().log(logs, *arguments, **more)
