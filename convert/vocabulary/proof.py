"""The proof that a trimmed checkpoint reads, spells and computes what the whole one does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.errors import ParityError
from convert.rewriting import next_logits
from convert.vocabulary.corpus import Row, prompts_of, sequences_of
from r2d_edge.errors import R2DError
from r2d_edge.label_scores import score_labels

if TYPE_CHECKING:
    from r2d_edge.task import PromptEncoder

BOUND = 1e-3  # nats; float32 and another order of summation alone
PROBES = 24  # counted rows, and as many others, that the logits are compared on
LABEL_ROWS = 256  # other rows that the labels are compared on
ANSWER_TOKENS = 32
_BATCH = 8
_UNEQUAL = "the trimmed model is not the whole one's equal"


class SpellingError(ParityError):
    """The trimmed tokenizer reads or spells a text otherwise than the whole one. `row` says which."""

    def __init__(self, said: str, row: str) -> None:
        R2DError.__init__(self, f"{said}, for one that of row {row!r}; nothing was written")
        self.row = row


@dataclass(frozen=True)
class Reading:
    """How notes that were not counted are read afterwards.

    Attributes:
        notes: how many there are.
        same: how many are split into the same tokens.
        tokens_before: tokens of a label prompt on average, with the whole vocabulary.
        tokens_after: the same with the trimmed one.
    """

    notes: int
    same: int
    tokens_before: float
    tokens_after: float


@dataclass(frozen=True)
class Labels:
    """How the labels of notes that were not counted compare.

    Attributes:
        same: the greatest difference of a label's log-probability on notes that are read the same, in nats.
        other_rows: how many are read otherwise.
        other_same_label: on how many of these the likeliest label is the same.
        other_mean: half the sum of the labels' differences of probability, on average over these.
        other_largest: the same of the worst.
    """

    rows: int
    same: float
    other_rows: int
    other_same_label: int
    other_mean: float
    other_largest: float


@dataclass(frozen=True)
class Computing:
    """How the networks compare.

    Attributes:
        rows: how many rows their logits were compared on.
        logits: the greatest difference of a kept token's logit for the same tokens in.
        removed: the greatest probability that the removed tokens had together before some answer token.
        labels: how the labels compare on notes that were not counted; None for an open label set.
    """

    rows: int
    logits: float
    removed: float
    labels: Labels | None


def prove_counted(old: PromptEncoder, new: PromptEncoder, new_of: Mapping[int, int], rows: Sequence[Row]) -> None:
    """Checks that all that was counted is read as the same tokens and spelled as the same text.

    Raises:
        SpellingError: something is not.
    """

    def differ(before: Iterator[list[int]], after: Iterator[list[int]]) -> bool:
        return any([new_of.get(index) for index in ids] != other for ids, other in zip(before, after, strict=True))

    if differ(prompts_of(old), prompts_of(new)):
        raise SpellingError("the trimmed tokenizer reads the task's own words otherwise", "none")
    wrong = [row.id for row in rows if differ(sequences_of(old, row), sequences_of(new, row))]
    if wrong:
        raise SpellingError(f"the trimmed tokenizer reads {len(wrong)} counted rows otherwise", wrong[0])
    _prove_spelling(old, new, rows, "counted rows")


def prove_unseen(old: PromptEncoder, new: PromptEncoder, new_of: Mapping[int, int], rows: Sequence[Row]) -> Reading:
    """Checks that notes that were not counted are spelled as the same text, and says how they are read.

    Raises:
        SpellingError: a text is not the same after encoding and decoding.
    """
    _prove_spelling(
        old, new, rows, "rows that were not counted (count them too with --corpus; for T5's sentinels --keep-sentinels)"
    )
    before = [old.predict(row.text).ids for row in rows]
    after = [new.predict(row.text).ids for row in rows]
    return Reading(
        notes=len(rows),
        same=sum([new_of.get(i) for i in ids] == other for ids, other in zip(before, after, strict=True)),
        tokens_before=sum(map(len, before)) / len(rows),
        tokens_after=sum(map(len, after)) / len(rows),
    )


def _prove_spelling(old: PromptEncoder, new: PromptEncoder, rows: Sequence[Row], what: str) -> None:
    wrong = [
        row.id
        for row in rows
        if any(old.decode(old.text_ids(text)) != new.decode(new.text_ids(text)) for text in row.texts)
    ]
    if wrong:
        raise SpellingError(f"encoding and decoding no longer give the text of {len(wrong)} {what}", wrong[0])


def prove_network(
    models: tuple[Any, Any],
    encoders: tuple[PromptEncoder, PromptEncoder],
    start_ids: tuple[int | None, int | None],
    keep: Sequence[int],
    rows: Sequence[Row],
    label_rows: Sequence[Row],
) -> Computing:
    """Compares the whole and the trimmed network.

    Both are given the same tokens, those that the trimmed tokenizer makes, and every kept token's logit is compared
    along labels and rationales. Then each reads the rows by its own tokenizer and scores the labels.

    Args:
        models: whole and trimmed, in float32 and evaluation mode.
        encoders: theirs.
        start_ids: with what their decoders start; None for a decoder-only model.
        keep: the old ids that stay, in their new order.
        rows: what the logits are compared on.
        label_rows: what the labels are compared on.

    Raises:
        ParityError: a difference is beyond `BOUND`, or not a number.
    """
    import torch

    whole, trimmed = models
    kept = torch.tensor(keep)
    worst, worst_row, removed = 0.0, rows[0].id, 0.0
    for number, row in enumerate(rows):
        for prompt, answer in _probes(encoders[1], row, number):
            got = next_logits(trimmed, start_ids[1], prompt, answer)
            old_ids = ([keep[index] for index in prompt], [keep[index] for index in answer])
            everything = next_logits(whole, start_ids[0], *old_ids)
            expected = everything.index_select(1, kept)
            difference = float((got - expected).abs().max())
            if not difference <= worst:  # so written that a NaN is the worst
                worst, worst_row = difference, row.id
            removed = max(removed, float((1 - everything.softmax(1).index_select(1, kept).sum(1)).max()))
    if not worst <= BOUND:
        raise ParityError(_UNEQUAL, "kept tokens' logits", worst_row, worst, BOUND)
    labels = _compare_labels(models, encoders, keep, label_rows) if encoders[0].task.labels.labels else None
    return Computing(len(rows), _rounded(worst), _rounded(removed), labels)


def _probes(encoder: PromptEncoder, row: Row, number: int) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts with answers: a label, and the row's first rationale or, where it has none, the note itself."""
    labels = encoder.task.labels.labels
    label = row.label or (labels[number % len(labels)] if labels else "")
    room = encoder.task.limits
    yield encoder.predict(row.text).ids, encoder.label_ids(label)[: room.label]
    written = encoder.text_ids(row.texts[-1])[: min(ANSWER_TOKENS, room.rationale)]
    if encoder.task.prompts.explain is None:
        yield encoder.rationale(row.text).ids, written
    else:
        yield encoder.explain(row.text, label).ids, written


def _compare_labels(
    models: tuple[Any, Any], encoders: tuple[PromptEncoder, PromptEncoder], keep: Sequence[int], rows: Sequence[Row]
) -> Labels:
    from r2d_edge.engines.transformers import transformers_engine

    prompts: list[list[list[int]]] = []
    scores = []
    for model, encoder in zip(models, encoders, strict=True):
        prompts.append([encoder.predict(row.text).ids for row in rows])
        engine = transformers_engine(model, encoder)
        batches = [prompts[-1][first : first + _BATCH] for first in range(0, len(rows), _BATCH)]
        scores.append(np.concatenate([score_labels(engine, encoder, batch) for batch in batches]))
    same = np.array([one == [keep[i] for i in other] for one, other in zip(*prompts, strict=True)])
    difference = np.abs(scores[0] - scores[1]).max(axis=1)
    worst, worst_row = 0.0, rows[0].id
    for row, is_same, value in zip(rows, same, difference, strict=True):
        if is_same and not value <= worst:
            worst, worst_row = float(value), row.id
    if not worst <= BOUND:
        raise ParityError(_UNEQUAL, "label log-probabilities", worst_row, worst, BOUND)
    other = [score[~same] for score in scores]
    moved = np.abs(np.exp(other[0]) - np.exp(other[1])).sum(axis=1) / 2
    return Labels(
        rows=len(rows),
        same=_rounded(worst),
        other_rows=len(moved),
        other_same_label=int((other[0].argmax(axis=1) == other[1].argmax(axis=1)).sum()),
        other_mean=_rounded(float(moved.mean())) if len(moved) else 0.0,
        other_largest=_rounded(float(moved.max(initial=0.0))),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
