"""Batches of similar length, the same for the same seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from r2d_edge.engines.transformers import pad

IGNORED = -100


class LengthBucketedSampler(Sampler[int]):
    """Indices in an order in which each batch holds rows of about one length.

    Rows are shuffled, cut into buckets of `batches_per_bucket` batches, sorted by length inside a
    bucket, and the batches shuffled again. The order depends on (seed, epoch) alone.

    Args:
        lengths: of the rows.
        batch_size: rows of one optimizer step.
        seed: of the order.
        batches_per_bucket: more make the batches more alike in length, and less random.
        padding: how many indices beyond the rows' come last, for data sets that are filled up to an even share
            for each process.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, batches_per_bucket: int = 50, *, padding: int = 0
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._padding = padding
        self._batch_size = batch_size
        self._bucket = batch_size * batches_per_bucket
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) + self._padding

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch])
        order = rng.permutation(len(self._lengths))
        batches: list[list[int]] = []
        for first in range(0, len(order), self._bucket):
            bucket = order[first : first + self._bucket]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches += [
                bucket[start : start + self._batch_size].tolist() for start in range(0, len(bucket), self._batch_size)
            ]
        # The short last batch stays last, so that every other keeps its rows together.
        short = [batch for batch in batches if len(batch) < self._batch_size]
        full = [batch for batch in batches if len(batch) == self._batch_size]
        rng.shuffle(full)
        for batch in [*full, *short]:
            yield from batch
        yield from range(len(self._lengths), len(self))


def collate(prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """One batch for a seq2seq LM: input_ids and attention_mask [n, input], labels [n, target].

    Labels are -100 where padded; an empty target is padding alone.
    """
    return {
        "input_ids": pad(prompts, pad_id),
        "attention_mask": pad([[1] * len(prompt) for prompt in prompts], 0),
        "labels": pad([target or [IGNORED] for target in targets], IGNORED),
    }
