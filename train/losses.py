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
