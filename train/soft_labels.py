"""A student's own label distribution, with its gradient, to be held against a teacher's.

The distribution is the runtime's (`r2d_edge.label_scores`): at each point where labels part, the next token's
distribution over the tokens with which some label goes on. The first such point lies on every label's path, so its
logits are those of the label pass; every other one (labels that share a beginning) takes the decoder once more over
the same encoder states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from r2d_edge.label_scores import branches
from r2d_edge.task import PromptEncoder
from train.recipe import RecipeError


class LabelDistribution:
    """The labels' log-probabilities out of a decoder's logits.

    Raises:
        RecipeError: two labels have the same tokens.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._sequences = [(*encoder.label_ids(label), encoder.end_id) for label in encoder.task.labels.labels]
        try:
            self._branches = branches(self._sequences)
        except ValueError as error:
            raise RecipeError(f"soft_labels: {error}") from None

    def log_probabilities(self, logits: torch.Tensor, decode: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of every label, [n, labels], each row's probabilities summing to 1.

        Args:
            logits: [n, length, vocabulary], those of decoding any labels of the set.
            decode: gives the logits [n, vocabulary] of the token after a beginning of a label.
        """
        scores = logits.new_zeros((len(logits), len(self._sequences)), dtype=torch.float32)
        for prefix, tokens in self._branches.items():
            place = len(prefix)
            shared = all(sequence[:place] == prefix for sequence in self._sequences)
            # A label limit may have cut the labels before they part.
            following = logits[:, place] if shared and place < logits.shape[1] else decode(prefix)
            chosen = torch.log_softmax(following[:, tokens].float(), dim=-1)
            column = {token: chosen[:, at] for at, token in enumerate(tokens)}
            zero = torch.zeros_like(chosen[:, 0])
            scores = scores + torch.stack(
                [column[label[place]] if label[:place] == prefix else zero for label in self._sequences], dim=1
            )
        return scores
