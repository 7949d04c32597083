"""Losses over padded targets."""

from __future__ import annotations

from typing import Any

import torch

from train.batching import IGNORED


def token_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy (nats) per target token.

    Args:
        logits: [n, length, vocabulary].
        labels: [n, length], -100 where padded.
        smoothing: share of the target's mass spread over the vocabulary.
    """
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


def seq2seq_loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
    """Mean target-token loss (nats) of a batch with input_ids, attention_mask and labels.

    The decoder's inputs are shifted here, so that the model does not work out a loss of its own.
    """
    bare = getattr(model, "module", model)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=bare.prepare_decoder_input_ids_from_labels(batch["labels"]),
        use_cache=False,
    ).logits
    return token_loss(logits, batch["labels"], smoothing)
