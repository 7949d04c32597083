"""Reason2Decide-C: gate, confidence and cycle against values worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import write_tiny_bart, write_tiny_t5
from tests.train.test_methods import explained, make_trainer
from train.confidence import ConfidenceGate
from train.cycle import gumbel_noise, gumbel_temperature, soft_prompt
from train.methods import fit
from train.trainer import last_checkpoint


def test_gate_by_hand() -> None:
    gate = ConfidenceGate(slope=10.0, refresh=1000)
    gate.advance(0, warmup_end=50)
    assert gate.passes(1.0) == 0.0  # no threshold yet, no predicted label
    gate.observe(0.9 + 0.7, 2)
    gate.advance(50, warmup_end=50)
    assert gate.threshold is None  # the warm-up's last step
    gate.observe(0.5, 1)
    gate.advance(51, warmup_end=50)
    assert gate.threshold == pytest.approx(0.7)  # (0.9 + 0.7 + 0.5) / 3
    assert gate.passes(0.7) == pytest.approx(0.5)
    assert gate.passes(0.8) == pytest.approx(1 / (1 + math.exp(-1)))
    assert gate.passes(0.4) == pytest.approx(1 / (1 + math.exp(3)))


def test_threshold_is_refreshed_from_what_came_since() -> None:
    gate = ConfidenceGate(refresh=1000)
    gate.observe(0.6, 1)
    gate.advance(51, warmup_end=50)
    gate.observe(0.9 + 0.8, 2)
    gate.advance(1050, warmup_end=50)
    assert gate.threshold == pytest.approx(0.6)
    gate.advance(1051, warmup_end=50)
    assert gate.threshold == pytest.approx(0.85)
    gate.advance(2051, warmup_end=50)
    assert gate.threshold == pytest.approx(0.85)  # nothing new was seen


def test_temperature_falls_exponentially() -> None:
    assert [gumbel_temperature(step, 100, 0.5) for step in (0, 50, 100)] == pytest.approx([1.0, math.sqrt(0.5), 0.5])


def test_gumbel_noise_is_gumbel_s() -> None:
    """Mean and variance of the distribution, and the Gumbel-max trick: the largest sum is drawn as softmax says."""
    torch.manual_seed(13)
    logits = torch.tensor([0.0, math.log(2.0), math.log(5.0)], dtype=torch.bfloat16).expand(100_000, 3)
    noise = gumbel_noise(logits)
    assert noise.dtype == torch.float32
    assert bool(noise.isfinite().all())
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    drawn = (logits + noise).argmax(dim=1).bincount(minlength=3) / 100_000
    assert drawn.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)


def test_soft_prompt_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces, no noise: the soft token is the mixture of their embeddings, behind the head's own."""
    monkeypatch.setattr("train.cycle.gumbel_noise", lambda like: torch.zeros_like(like, dtype=torch.float32))
    table = torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
    logits = torch.tensor([[[math.log(3.0), 0.0, -1e9], [0.0, 0.0, 0.0]]])
    embeds, mask = soft_prompt(table, [2], logits, torch.tensor([[0, -100]]), temperature=1.0)
    assert torch.allclose(embeds[0, 0], torch.tensor([5.0, 5.0]))
    assert torch.allclose(embeds[0, 1], torch.tensor([0.75, 0.25]))
    assert mask.tolist() == [[1, 1, 0]]  # what lies behind the rationale's end is hidden
    colder = soft_prompt(table, [2], logits, torch.tensor([[0, -100]]), temperature=0.5)[0]
    assert torch.allclose(colder[0, 1], torch.tensor([0.9, 0.1]))  # 3² to 1


@pytest.fixture(params=["bart", "t5"])
def trainer(request: Any, fit_recipe, tmp_path: Path) -> Any:
    if request.param == "bart":
        base = write_tiny_bart(tmp_path / "base", scale_embedding=True)
    else:
        base = write_tiny_t5(tmp_path / "base", tied=True, gated=False)
    trainer = make_trainer(fit_recipe(base, method="r2d-c", dropout=0.0), steps=1000)
    trainer.state.global_step = 500
    return trainer


def test_cycle_on_certain_logits_is_the_label_loss_of_the_written_text(trainer: Any) -> None:
    """One-hot soft tokens make the cycle's prompt the label prompt of the rationale's own text."""
    items = explained(trainer, 2)
    labels = [item.label for item in items]
    batch = trainer.collate(trainer.prompts(items, labels), [item.rationale for item in items])
    vocabulary = trainer.family.logits(trainer.model, batch).shape[-1]
    certain = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), vocabulary) * 1e4
    found = float(trainer.cycle_loss(trainer.model, certain, batch["labels"], labels).detach())
    expected = 0.0
    for item in items:
        prompt = trainer.encoder.predict_head() + item.rationale
        expected += float(trainer.target_loss(trainer.model, [prompt], [item.label_target], len(item.label_target)))
    assert found == pytest.approx(expected, rel=1e-4)


def test_gradient_of_the_cycle_reaches_the_rationale(trainer: Any) -> None:
    items = explained(trainer, 3)
    labels = [item.label for item in items]
    batch = trainer.collate(trainer.prompts(items, labels), [item.rationale for item in items])
    logits = trainer.family.logits(trainer.model, batch)
    logits.retain_grad()
    trainer.cycle_loss(trainer.model, logits, batch["labels"], labels).backward()
    written = batch["labels"] != -100
    assert (logits.grad[written].abs().sum(dim=-1) > 0).all()
    assert not logits.grad[~written].any()
    decoder = [p for name, p in trainer.model.named_parameters() if "decoder" in name and "norm" not in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder)


def test_loss_is_the_weighted_sum_of_three(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "prompt_labels", lambda items, step: [item.label for item in items])
    trainer.args.logging_steps = 1
    torch.manual_seed(0)
    loss = float(trainer.compute_loss(trainer.model, {"items": explained(trainer)}).detach())
    parts = trainer.parts
    expected = 0.7 * parts["loss_label"] + 0.3 * parts["loss_rationale"] + 0.1 * parts["loss_cycle"]
    assert loss == pytest.approx(expected, rel=1e-5)


def test_gated_share(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way up the schedule (0.45), rows at the threshold take their own label at half of that."""
    from train.methods.joint import LabelledItem

    items = [LabelledItem(row, "pain", "gold", [5, 1], [1], [1]) for row in range(2000)]
    monkeypatch.setattr(trainer, "own_labels_with_confidence", lambda drawn: [("own", 0.8)] * len(drawn))
    assert set(trainer.prompt_labels(items, 20)) == {"gold"}  # the warm-up observes and takes none
    assert trainer.gate.count == 2000
    for confidence, factor in ((0.8, 0.5), (0.9, 1 / (1 + math.exp(-1))), (0.5, 1 / (1 + math.exp(3)))):
        own = [("own", confidence)]
        monkeypatch.setattr(trainer, "own_labels_with_confidence", lambda drawn, own=own: own * len(drawn))
        trainer.gate.threshold = 0.8
        labels = trainer.prompt_labels(items, 350)
        assert labels.count("own") / 2000 == pytest.approx(0.45 * factor, abs=0.03)


def test_a_resumed_run_has_its_threshold(fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    settings = {"method": "r2d-c", "dropout": 0.0, "patience": 0, "cycle_weight": 0.0, "epochs": 4.0}
    whole = fit_recipe(base, output=tmp_path / "whole", **settings)
    fit(whole)
    cut = fit_recipe(base, output=tmp_path / "cut", **settings)
    fit(cut, stop_after=12)
    gate = (Path(last_checkpoint(cut) or "") / "confidence_gate.json").read_text(encoding="utf-8")
    assert '"threshold": null' not in gate
    fit(cut)
    logs = [_losses(recipe.output) for recipe in (whole, cut)]
    assert len(logs[0]) == 20
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


def _losses(output: Path) -> list[float]:
    import json

    log = json.loads((output / "history.json").read_text(encoding="utf-8"))["log"]
    return [entry["loss"] for entry in log if "loss" in entry]
