"""Distilling step-by-step: label and rationale as two tasks of one model, told apart by their prompts.

Hsieh et al., Findings of ACL 2023 (arXiv 2305.02301), section 3.2: L = L_label + λ·L_rationale with λ = 1, here
as weights α and 1 − α that sum to 1, so α = 0.5. The rationale prompt holds no label.
"""

from __future__ import annotations

from typing import Any

import torch

from train.methods.joint import LabelledItem, LabelStageTrainer, Totals


class StepByStepTrainer(LabelStageTrainer):
    """Both losses at a fixed weight."""

    own_alpha = 0.5

    def weights(self, step: int) -> tuple[float, float]:
        alpha = self.schedule.alpha_max
        return alpha, 1 - alpha

    def rationale_part(self, model: Any, items: list[LabelledItem], totals: Totals, weight: float) -> torch.Tensor:
        if not items:
            return torch.zeros((), device=self.args.device)
        loss = self.target_loss(
            model,
            [self.encoder.rationale(item.text).ids for item in items],
            [item.rationale for item in items],
            totals.rationale_tokens,
            smoothing=self.recipe.label_smoothing,
        )
        self.note(loss_rationale=loss)
        return weight * loss
