"""The Reason2Decide schedule: loss weight, share of predicted labels, when selection begins.

Hasan et al., LREC 2026 (arXiv 2512.20074), "Task-level scheduled sampling". Everything is a pure function of the
optimizer step, so a resumed run stands where the killed one stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampling = Literal["ramp", "gold", "predicted"]


@dataclass(frozen=True)
class Schedule:
    """Stage 2's schedule over `total` optimizer steps, counted from 0.

    Attributes:
        alpha_max: the weight of the label loss after the warm-up.
        warmup: share of the steps over which alpha grows linearly from 0.
        transition: share of the steps after the warm-up over which the share of predicted labels grows.
        cap: the greatest share of explanation prompts that hold the model's own label.
        sampling: `ramp` is the paper's; `gold` and `predicted` keep to one kind of label throughout.
    """

    total: int
    alpha_max: float = 0.7
    warmup: float = 0.05
    transition: float = 0.60
    cap: float = 0.9
    sampling: Sampling = "ramp"

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"a schedule needs at least one step, not {self.total}")
        for name in ("alpha_max", "warmup", "transition", "cap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if self.warmup + self.transition > 1:
            raise ValueError("warm-up and transition together exceed the training")

    @property
    def warmup_end(self) -> float:
        """The step (not rounded) at which the warm-up is over."""
        return self.warmup * self.total

    @property
    def transition_end(self) -> float:
        """The step (not rounded) at which the share of predicted labels has reached its cap."""
        return (self.warmup + self.transition) * self.total

    def alpha(self, step: int) -> float:
        """The weight of the label loss at a step; the rationale loss has the rest."""
        if step >= self.warmup_end:
            return self.alpha_max
        return self.alpha_max * step / self.warmup_end

    def predicted_share(self, step: int) -> float:
        """The share of explanation prompts that hold the model's own predicted label at a step."""
        if self.sampling != "ramp":
            return float(self.sampling == "predicted")
        if step <= self.warmup_end:
            return 0.0
        if step >= self.transition_end:
            return self.cap
        return self.cap * (step - self.warmup_end) / (self.transition_end - self.warmup_end)

    def selects(self, step: int) -> bool:
        """Whether an evaluation at this step counts for early stopping and the best checkpoint."""
        return step >= (self.transition_end if self.sampling == "ramp" else self.warmup_end)
