"""Quantization-aware training: activations rounded as an int8 engine rounds them.

CTranslate2 multiplies int8 by int8: each token's activations are scaled by their greatest magnitude and
rounded to -127..127. A few channels of BERT-born networks are far larger than the rest, and what is
small beside them is lost. Trained with the same rounding in the forward pass and none in the backward
pass (the straight-through estimator of Bengio et al. 2013, arXiv 1308.3432), a model learns to do without.
"""

from __future__ import annotations

from typing import Any

import torch

LEVELS = 127


def round_activations(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., width] rounded to int8 with one scale a row; the gradient passes as if it were not."""
    with torch.no_grad():
        scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LEVELS
        error = torch.round(x / scale) * scale - x
    return x + error


def _linear_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    from peft.tuners.lora import LoraLayer

    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    parts = {part for module in adapted for part in module.modules()}
    plain = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module not in parts]
    return [*adapted, *plain]


class Int8Activations:
    """Rounds the input of every linear layer of a model while `enabled`.

    A layer with a low-rank adapter counts as the one layer that it is merged into: the base and the adapter read
    the same rounded input, and what passes between the adapter's two factors is not rounded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.enabled = False
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        for module in _linear_layers(model):
            module.register_forward_pre_hook(self._round)

    def _round(self, _module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.enabled:
            return None
        x = inputs[0]
        # Query, key and value projections share their input: it is rounded once.
        if self._last is None or self._last[0] is not x:
            self._last = (x, round_activations(x))
        return (self._last[1], *inputs[1:])

    def forget(self) -> None:
        """Drops the last activations, which would else be kept alive between steps."""
        self._last = None
