"""Losses over padded targets."""

from __future__ import annotations

import torch

from train.batching import IGNORED


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, *, total: bool = False
) -> torch.Tensor:
    """Cross-entropy (nats) of the target tokens, their mean or their sum.

    Args:
        logits: [n, length, vocabulary].
        labels: [n, length], -100 where padded.
        smoothing: share of the target's mass spread over the vocabulary.
        total: the sum, for who divides by the tokens of a greater batch.
    """
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum" if total else "mean",
    )


def soft_label_loss(scores: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Divergence (nats) of the teacher's label distributions from the student's, summed over the rows.

    Hinton et al. 2015 (arXiv 1503.02531), section 2: both distributions are softened by the temperature T, and
    the loss is multiplied by T², so that its gradient keeps its size beside that of the gold labels.

    Args:
        scores: the student's log-probabilities or logits of the labels, [n, labels].
        teacher: the teacher's probabilities, [n, labels], not softened; zeros are allowed.
        temperature: T, above 0.
    """
    soft = torch.softmax(teacher.log() / temperature, dim=-1)
    own = torch.log_softmax(scores.float() / temperature, dim=-1)
    # kl_div takes 0 · log 0 for 0.
    return temperature**2 * torch.nn.functional.kl_div(own, soft, reduction="sum")
