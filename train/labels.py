"""The model's own labels: for scheduled sampling and for macro-F1 while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r2d_edge.bundle import Decoding
from r2d_edge.engines.transformers import TransformersEngine
from r2d_edge.label_scores import score_labels
from r2d_edge.metrics import accuracy, macro_f1
from r2d_edge.task import PromptEncoder
from train.data import Example


def predict_labels(
    engine: TransformersEngine, encoder: PromptEncoder, texts: Sequence[str], batch_size: int = 32
) -> list[str]:
    """The most probable label of each note; for an open label set, the label that the model writes."""
    prompts = [encoder.predict(text).ids for text in texts]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    labels = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = [prompts[row] for row in rows]
        if encoder.task.labels.kind == "open":
            written = engine.generate(batch, max_tokens=encoder.task.limits.label, decoding=Decoding())
            found = [encoder.decode(ids).strip() for ids in written]
        else:
            names = encoder.task.labels.labels
            found = [names[int(best)] for best in score_labels(engine, encoder, batch).argmax(axis=1)]
        for row, label in zip(rows, found, strict=True):
            labels[row] = label
    return labels


def label_metrics(engine: TransformersEngine, encoder: PromptEncoder, examples: Sequence[Example]) -> dict[str, float]:
    """`macro_f1` and `accuracy` on one validation set.

    For an open label set every gold label is a class of its own, and a label that is written otherwise than
    its gold form is wrong.
    """
    predicted = predict_labels(engine, encoder, [example.text for example in examples])
    gold = [example.label for example in examples]
    names = list(encoder.task.labels.labels) or sorted({*gold, *predicted})
    number = {name: index for index, name in enumerate(names)}
    truth, guess = (np.array([number[label] for label in labels]) for labels in (gold, predicted))
    return {"macro_f1": macro_f1(truth, guess, len(names)), "accuracy": accuracy(truth, guess)}
