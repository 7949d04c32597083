"""Exact label scores from next-token log-probabilities.

A label's probability is that of its whole token sequence under decoding that may write nothing but a
label: at each step the model's distribution is taken over the tokens with which some label can still
go on. Where the labels' first tokens differ, all but the first step are certain, so the first step's
logits, for the cost of one encode, are the whole answer; where labels share a beginning, one more
step is taken per shared beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from r2d_edge.engines import Engine
    from r2d_edge.task import PromptEncoder

Branches = dict[tuple[int, ...], list[int]]


def branches(sequences: Sequence[Sequence[int]]) -> Branches:
    """The prefixes after which more than one token may follow, each with those tokens.

    Args:
        sequences: each label's ids, closed by the end token, so that no label is a prefix of another.

    Raises:
        ValueError: two labels are written with the same tokens.
    """
    if len({tuple(sequence) for sequence in sequences}) < len(sequences):
        raise ValueError("two labels have the same tokens in this vocabulary")
    following: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for position, token in enumerate(sequence):
            following.setdefault(tuple(sequence[:position]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in following.items() if len(tokens) > 1}


def score_labels(engine: Engine, encoder: PromptEncoder, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Log-probabilities of every label for every prompt.

    Args:
        prompts: n prompts as `PromptEncoder.predict(...).ids` gives them.

    Returns:
        [n, labels], each row's probabilities summing to 1.
    """
    sequences = [[*encoder.label_ids(label), encoder.end_id] for label in encoder.task.labels.labels]
    scores = np.zeros((len(prompts), len(sequences)))
    for prefix, tokens in branches(sequences).items():
        following = engine.next_log_probabilities(prompts, [prefix] * len(prompts))[:, tokens].astype(np.float64)
        following -= np.logaddexp.reduce(following, axis=1, keepdims=True)
        for column, sequence in enumerate(sequences):
            if tuple(sequence[: len(prefix)]) == prefix:
                scores[:, column] += following[:, tokens.index(sequence[len(prefix)])]
    return scores
