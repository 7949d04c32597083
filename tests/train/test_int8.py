import json

import pytest
import torch

from tests.tiny_models import write_tiny_bart, write_tiny_t5
from tests.train.test_methods import make_trainer
from train.checkpoint import load_for_training
from train.int8 import Int8Activations, round_activations
from train.methods import fit


def test_rounding_is_that_of_an_int8_engine() -> None:
    x = torch.tensor([[127.0, 0.4, -0.6, 3.0], [1.0, 0.5, -0.25, 0.0]])
    expected = torch.tensor([[127.0, 0.0, -1.0, 3.0], [1.0, 64 / 127, -32 / 127, 0.0]])
    assert torch.allclose(round_activations(x), expected)
    assert not round_activations(torch.zeros(2, 3)).any()


def test_gradient_passes_straight_through() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (round_activations(x) * torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0).expand(3, 8))


def test_only_while_enabled() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    x = torch.randn(4, 8) * torch.tensor([50.0] + [1.0] * 7)
    plain = model(x)
    rounding = Int8Activations(model)
    assert torch.equal(model(x), plain)
    rounding.enabled = True
    first = round_activations(x) @ model[0].weight.T + model[0].bias
    expected = round_activations(first.relu()) @ model[2].weight.T + model[2].bias
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert not torch.allclose(expected, plain, atol=1e-3)
    rounding.enabled = False
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(("step", "enabled"), [(0, False), (64, False), (65, True), (99, True)])
def test_training_rounds_late(step: int, enabled: bool, fit_recipe, tmp_path) -> None:
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base"), int8_from=0.65), steps=100)
    trainer.state.global_step = step
    rows = trainer.train_dataset[:2]
    assert trainer.int8 is not None
    for work in (trainer.evaluate, lambda: trainer.compute_loss(trainer.model, {"items": rows})):
        trainer.int8.enabled = not enabled
        work()
        assert trainer.int8.enabled is enabled


@pytest.mark.parametrize("shape", ["bart", "t5"])
def test_an_adapter_is_rounded_as_what_it_is_merged_into(shape: str, fit_recipe, tmp_path) -> None:
    if shape == "bart":
        base = write_tiny_bart(tmp_path / "base")
    else:
        base = write_tiny_t5(tmp_path / "base", tied=False, gated=True)
    model, _, _ = load_for_training(fit_recipe(base, lora_rank=4, lora_alpha=64.0))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter
            torch.nn.init.normal_(parameter, std=0.1)
    model.double().eval()  # so that no activation is rounded otherwise for the order of a sum
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "labels": torch.tensor([[8, 9, 1]])}
    with torch.inference_mode():
        plain = model(**inputs).logits
        rounding = Int8Activations(model)
        rounding.enabled = True
        adapted = model(**inputs).logits
        rounding.enabled = False
        whole = model.merge_and_unload()
        assert torch.allclose(whole(**inputs).logits, plain, atol=1e-5)
        Int8Activations(whole).enabled = True
        expected = whole(**inputs).logits
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert torch.allclose(adapted, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "int8_from", "first"), [("sft", 0.8, 80), ("dss", 0.8, 80), ("sft", 1.0, 0), ("r2d", 0.8, 80)]
)
@pytest.mark.parametrize("step", [0, 79, 80, 100])
def test_a_checkpoint_is_chosen_as_it_is_run(
    method: str, int8_from: float, first: int, step: int, fit_recipe, tmp_path
) -> None:
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), method=method, int8_from=int8_from)
    assert make_trainer(recipe, steps=100).selects(step) == (step >= first)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_what_is_kept_was_trained_with_rounding(lora_rank: int, fit_recipe, tmp_path) -> None:
    """A rate of next to nothing: the first evaluation, at step 2 of 10, would stay the best."""
    base = write_tiny_bart(tmp_path / "base")
    recipe = fit_recipe(base, method="sft", int8_from=0.65, learning_rate=1e-12, patience=1, lora_rank=lora_rank)
    fit(recipe)
    provenance = json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["best_step"] == 8
    assert provenance["steps"] == 10
