"""Both families' batched losses against one row at a time, worked out from the network itself."""

from pathlib import Path

import pytest
import torch

from tests.tiny_models import write_tiny_bart, write_tiny_causal, write_tiny_t5
from train.checkpoint import load_model
from train.families import DecoderOnly, EncoderDecoder
from train.losses import token_loss

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
TARGETS = [[20, 21], [22, 23, 24], [25]]


def test_decoder_only_counts_the_answer_alone(tmp_path: Path) -> None:
    model = load_model(str(write_tiny_causal(tmp_path / "base")), decoder_only=True).eval()
    family = DecoderOnly(0)
    batch = family.collate(PROMPTS, TARGETS)
    found = token_loss(family.logits(model, batch), batch["labels"], total=True)
    expected = 0.0
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        scores = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        expected -= sum(float(scores[len(prompt) - 1 + step, token]) for step, token in enumerate(target))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("write", [write_tiny_bart, write_tiny_t5])
def test_encoder_decoder(write, tmp_path: Path) -> None:
    base = write(tmp_path / "base") if write is write_tiny_bart else write(tmp_path / "base", tied=True, gated=False)
    model = load_model(str(base)).eval()
    family = EncoderDecoder(model.config.pad_token_id)
    batch = family.collate(PROMPTS, TARGETS)
    found = token_loss(family.logits(model, batch), batch["labels"], total=True)
    expected = 0.0
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        output = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target]))
        expected += float(output.loss.detach()) * len(target)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_token_loss_leaves_padding_out_and_smooths() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[0, -100]])
    right = torch.log(1 + torch.exp(torch.tensor(-2.0)))
    assert float(token_loss(logits, labels)) == pytest.approx(float(right))
    # A tenth of the mass spread over both: 0.95 on the right one, 0.05 on the other.
    assert float(token_loss(logits, labels, 0.1, total=True)) == pytest.approx(float(0.95 * right + 0.05 * (right + 2)))
