"""sacreBLEU's BLEU and chrF (Post 2018, WMT) as figures that can be resampled.

The counts of each row come from sacreBLEU, with its default settings; how sums of them become a score is
repeated here for whole arrays of sums, as 10,000 calls of its own would take minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from r2d_edge.bootstrap import Figure, Floats, divide

_BLEU_ORDER = 4
_CHRF_ORDER = 6
_CHRF_BETA = 2


def bleu(candidates: Sequence[str], references: Sequence[str]) -> tuple[Figure, str]:
    """Corpus BLEU (0 to 100) of n texts with one reference each, and sacreBLEU's signature."""
    from sacrebleu.metrics import BLEU

    return _figure(BLEU(), candidates, references, bleu_of)


def chrf(candidates: Sequence[str], references: Sequence[str]) -> tuple[Figure, str]:
    """Corpus chrF (0 to 100; Popović 2015, WMT) of n texts with one reference each, and the signature."""
    from sacrebleu.metrics import CHRF

    return _figure(CHRF(), candidates, references, chrf_of)


def bleu_of(sums: Floats) -> Floats:
    """BLEU with exponential smoothing.

    Args:
        sums: [..., 10]: length of the candidates and of the references in words, matching 1- to 4-grams,
            and all 1- to 4-grams of the candidates.
    """
    length, reference_length = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
    # Each order without a match counts as half a match, the next such as a quarter, and so on.
    halvings = np.cumsum(correct == 0, axis=-1)
    smoothed = np.where(correct > 0, correct, 0.5**halvings)
    precisions = divide(smoothed, total, 1.0)
    shortfall = 1 - divide(reference_length, length, 1.0)
    penalty = np.exp(np.minimum(0.0, shortfall))
    score = 100 * penalty * np.exp(np.log(precisions).mean(axis=-1))
    undefined = (correct.sum(axis=-1) == 0) | (total == 0).any(axis=-1)
    return np.where(undefined, 0.0, score)


def chrf_of(sums: Floats) -> Floats:
    """ChrF: the F-score of mean n-gram precision and recall.

    Args:
        sums: [..., 18]: for each of 1- to 6-grams of characters, how many the candidates have, how many the
            references have, and how many match.
    """
    counts = sums.reshape(*sums.shape[:-1], _CHRF_ORDER, 3)
    candidate, reference, matching = counts[..., 0], counts[..., 1], counts[..., 2]
    counted = (candidate > 0) & (reference > 0)
    orders = counted.sum(axis=-1)
    precision = divide((divide(matching, candidate, 0.0) * counted).sum(axis=-1), orders, 0.0)
    recall = divide((divide(matching, reference, 0.0) * counted).sum(axis=-1), orders, 0.0)
    weight = _CHRF_BETA**2
    return 100 * divide((1 + weight) * precision * recall, weight * precision + recall, 0.0)


def _figure(metric: Any, candidates: Sequence[str], references: Sequence[str], finish: Any) -> tuple[Figure, str]:
    counts = metric._extract_corpus_statistics(list(candidates), [list(references)])
    return Figure(np.array(counts, dtype=np.float64), finish), str(metric.get_signature())
