"""Label scores equal those of scoring each label whole, from plain forward passes of the PyTorch model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from r2d_edge.engines.transformers import TransformersEngine
from r2d_edge.label_scores import branches, score_labels
from r2d_edge.task import CTAS_LEVELS, LabelSet, Limits, PromptEncoder, Task
from tests.tiny_models import TEXTS, write_tiny_bart, write_tiny_t5

SHARED = ("urgent", "urgent care", "urgent care now", "non-urgent", "non-emergent")


def test_branches() -> None:
    sequences = [[5, 1], [5, 6, 1], [7, 8, 1], [7, 9, 1]]
    assert branches(sequences) == {(): [5, 7], (5,): [1, 6], (7,): [8, 9]}
    assert branches([[5, 6, 1], [7, 1]]) == {(): [5, 7]}
    with pytest.raises(ValueError, match="same tokens"):
        branches([[5, 1], [5, 1]])


def _whole_label_scores(model, encoder: PromptEncoder, prompt: list[int]) -> np.ndarray:
    """Each label teacher-forced whole; at each token, the probability among the tokens a label allows there."""
    labels = [[*encoder.label_ids(label), encoder.end_id] for label in encoder.task.labels.labels]
    scores = []
    for label in labels:
        decoder = torch.tensor([[model.config.decoder_start_token_id, *label[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0].double()
        total = 0.0
        for position, token in enumerate(label):
            allowed = sorted({other[position] for other in labels if other[:position] == label[:position]})
            total += float(torch.log_softmax(logits[position, allowed], 0)[allowed.index(token)])
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize("shape", ["bart", "t5"])
@pytest.mark.parametrize("labels", [CTAS_LEVELS, SHARED], ids=["first tokens differ", "shared beginnings"])
def test_equal_to_scoring_each_label_whole(shape: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    folder = write_tiny_bart(tmp_path) if shape == "bart" else write_tiny_t5(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    encoder = PromptEncoder.from_file(
        folder / "tokenizer.json", Task(LabelSet(labels), limits=Limits(input=96, label=24, rationale=32))
    )
    prompts = [encoder.predict(text).ids for text in TEXTS[1:5]]
    scores = score_labels(TransformersEngine(model, encoder), encoder, prompts)
    expected = np.stack([_whole_label_scores(model, encoder, prompt) for prompt in prompts])
    assert np.abs(scores - expected).max() < 1e-4
    assert np.exp(scores).sum(axis=1) == pytest.approx(np.ones(4))
    assert np.ptp(scores) > 0.5  # the comparison is of numbers that differ
