import pytest
import torch

from train.int8 import Int8Activations, round_activations


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
    from tests.tiny_models import write_tiny_bart
    from tests.train.test_methods import make_trainer

    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base"), int8_from=0.65), steps=100)
    trainer.state.global_step = step
    rows = trainer.train_dataset[:2]
    assert trainer.int8 is not None
    for work in (trainer.evaluate, lambda: trainer.compute_loss(trainer.model, {"items": rows})):
        trainer.int8.enabled = not enabled
        work()
        assert trainer.int8.enabled is enabled
