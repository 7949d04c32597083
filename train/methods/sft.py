"""Standard fine-tuning: `predict: {text}` → label, and nothing else."""

from __future__ import annotations

from train.methods.joint import LabelStageTrainer


class LabelTrainer(LabelStageTrainer):
    """The label's cross-entropy."""

    explains = False

    def weights(self, step: int) -> tuple[float, float]:
        return 1.0, 0.0
