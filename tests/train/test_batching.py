import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.batching import IGNORED, LengthBucketedSampler, collate


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5))
def test_every_row_once(lengths: list[int], batch: int, epoch: int) -> None:
    sampler = LengthBucketedSampler(lengths, batch, seed=3)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(len(lengths)))


def test_padding_comes_last() -> None:
    lengths = list(range(1, 19))
    plain, padded = (LengthBucketedSampler(lengths, 4, seed=1, padding=padding) for padding in (0, 2))
    assert list(padded) == [*plain, 18, 19]
    assert (len(plain), len(padded)) == (18, 20)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500).tolist()

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthBucketedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_batches_hold_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 800)
    order = list(LengthBucketedSampler(lengths.tolist(), 8, seed=1))
    padded = sum(8 * lengths[order[first : first + 8]].max() for first in range(0, 800, 8))
    shuffled = sum(8 * lengths[first : first + 8].max() for first in range(0, 800, 8))
    assert padded < 1.1 * lengths.sum() < shuffled


def test_collate() -> None:
    batch = collate([[5, 6, 7], [8]], [[1], [2, 3]], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, IGNORED], [2, 3]]


def test_a_row_without_a_target_is_padding() -> None:
    assert collate([[5], [6]], [[], [1]], pad_id=0)["labels"].tolist() == [[IGNORED], [1]]
    assert collate([[5], [6]], [[], []], pad_id=0)["labels"].tolist() == [[IGNORED], [IGNORED]]
