"""The model's own labels: for scheduled sampling and for macro-F1 while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r2d_edge.bundle import Decoding
from r2d_edge.engines import Engine
from r2d_edge.engines.transformers import TransformersEngine
from r2d_edge.label_scores import score_labels
from r2d_edge.metrics import accuracy, macro_f1
from r2d_edge.task import PromptEncoder
from train.data import Example, normal


def predict_labels(
    engine: Engine, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], batch_size: int = 32
) -> list[str]:
    """The most probable label for each label prompt; for an open label set, the label that the model writes."""
    labels = [""] * len(prompts)
    for rows in _batches(prompts, batch_size):
        for row, label in zip(rows, _labels(engine, encoder, [prompts[row] for row in rows]), strict=True):
            labels[row] = label
    return labels


def predict_with_confidence(
    engine: TransformersEngine, encoder: PromptEncoder, prompts: Sequence[Sequence[int]], batch_size: int = 32
) -> list[tuple[str, float]]:
    """The same labels, each with exp of the mean log-probability of its tokens, its end token included.

    Unlike a label's calibrated probability, this counts what the model would write beside the labels too: it is
    the confidence of Reason2Decide-C (see `train.confidence`).
    """
    limit = encoder.task.limits.label
    results = [("", 0.0)] * len(prompts)
    for rows in _batches(prompts, batch_size):
        batch = [prompts[row] for row in rows]
        labels = _labels(engine, encoder, batch)
        tokens = engine.sequence_log_probabilities(batch, [encoder.target_ids(label, limit) for label in labels])
        for row, label, scores in zip(rows, labels, tokens, strict=True):
            results[row] = (label, float(np.exp(np.mean(scores))))
    return results


def _batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The prompts' numbers, in batches of about one length."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _labels(engine: Engine, encoder: PromptEncoder, batch: Sequence[Sequence[int]]) -> list[str]:
    if encoder.task.labels.kind == "open":
        written = engine.generate(batch, max_tokens=encoder.task.limits.label, decoding=Decoding())
        return [encoder.decode(ids).strip() for ids in written]
    names = encoder.task.labels.labels
    return [names[int(best)] for best in score_labels(engine, encoder, batch).argmax(axis=1)]


def label_metrics(engine: Engine, encoder: PromptEncoder, examples: Sequence[Example]) -> dict[str, float]:
    """`macro_f1` and `accuracy` on one validation set.

    For an open label set every gold label is a class of its own, and a label that is written otherwise than
    its gold form, but for case and blanks, is wrong.
    """
    predicted = predict_labels(engine, encoder, [encoder.predict(example.text).ids for example in examples])
    gold = [example.label for example in examples]
    names = list(encoder.task.labels.labels)
    if encoder.task.labels.kind == "open":
        gold, predicted = [[normal(label) for label in labels] for labels in (gold, predicted)]
        names = sorted({*gold, *predicted})
    number = {name: index for index, name in enumerate(names)}
    truth, guess = (np.array([number[label] for label in labels]) for labels in (gold, predicted))
    return {"macro_f1": macro_f1(truth, guess, len(names)), "accuracy": accuracy(truth, guess)}
