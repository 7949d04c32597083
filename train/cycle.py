"""Reason2Decide-C's cycle: the label must be recoverable from the rationale that the model writes.

Hasan et al., Computers 2026, 15(5), 279. The rationale's logits become soft tokens by the Gumbel-softmax (Jang
et al., ICLR 2017, arXiv 1611.01144), the soft tokens mixtures of input embeddings, and these, behind
`predict: `, the input from which the label is to be predicted; so the label's loss reaches the rationale. The
logits are those of the rationale's own loss: each token's given the reference up to it, not a rationale written freely.
"""

from __future__ import annotations

from typing import Any

import torch

from train.batching import IGNORED


def gumbel_temperature(step: int, steps: int, end: float) -> float:
    """The temperature at a step of `steps`: from 1 down to `end`, exponentially."""
    return float(end ** (step / max(1, steps)))


def gumbel_noise(like: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise in the shape of `like`, in float32.

    From uniform numbers: `torch.nn.functional.gumbel_softmax` takes exponential ones, and over a whole vocabulary
    drawing these is a tenth of a training step on a CPU.
    """
    uniform = torch.empty_like(like, dtype=torch.float32).uniform_(torch.finfo(torch.float32).tiny, 1.0)
    return uniform.log_().neg_().log_().neg_()


def soft_prompt(
    embeddings: torch.nn.Module, head: list[int], logits: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft embeddings of the written rationales behind the ids of `head`.

    Args:
        embeddings: the model's input embedding.
        head: what stands before a note in the label prompt.
        logits: [n, length, vocabulary] of the rationales, their end token included.
        labels: [n, length], -100 where a rationale is over.
        temperature: of the Gumbel-softmax.

    Returns:
        Embeddings [n, head + length, width] and their mask [n, head + length].
    """
    # In the noise's own memory: a step's logits over a vocabulary are its largest tensors.
    soft = gumbel_noise(logits).add_(logits).div_(temperature).softmax(dim=-1)
    # BART-shaped models scale their embeddings by a factor that lives beside the weights.
    scale = getattr(embeddings, "embed_scale", None)
    weight: Any = embeddings.weight
    written = soft.to(weight.dtype) @ weight * (1.0 if scale is None else scale)
    ids = torch.tensor([head], device=logits.device).expand(len(logits), -1)
    before = embeddings(ids).detach()
    mask = torch.cat([torch.ones_like(ids), (labels != IGNORED).long()], dim=1)
    return torch.cat([before, written.to(before.dtype)], dim=1), mask
