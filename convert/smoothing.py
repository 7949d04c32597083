"""Scales that even out a Llama's activations, so that int8 loses less of them.

In such networks a few channels are tens to thousands of times larger than the others, and int8 rounds a
token's whole activation to steps of its largest channel. SmoothQuant (Xiao et al., ICML 2023,
arXiv 2211.10438) divides each channel by a scale and multiplies the next layer's column by it; the scale
shares the difficulty evenly between the two. The runtime folds these scales into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.assembly.adapter import HEAD, spread_over_heads
from r2d_edge.assembly.llama import LlamaShape
from r2d_edge.task import PromptEncoder

FloatArray = npt.NDArray[np.float32]

ALPHA = 0.5  # the share of the difficulty that goes into the weights; the paper's own
_SMALLEST = 1e-5
_WATCHED = {
    "attention": "self_attn.q_proj",
    "attention_output": "self_attn.o_proj",
    "feed_forward": "mlp.gate_proj",
    "feed_forward_output": "mlp.down_proj",
}


def smoothing_scales(
    model: Any, encoder: PromptEncoder, texts: Sequence[str], shape: LlamaShape, *, head: bool
) -> dict[str, FloatArray]:
    """The scales as adapter.npz holds them, measured on some notes.

    Args:
        model: the trained network, a transformers LlamaForCausalLM in float32.
        encoder: makes the prompts.
        texts: notes like those the model will read.
        shape: the network's numbers.
        head: also smooth the output's input, which then cannot share its weights with the embeddings.
    """
    largest = _largest_activations(model, encoder, texts)
    found: dict[str, FloatArray] = {}
    for layer, block in enumerate(model.model.layers):
        query, key, value, out, gate, up, down = (
            _array(module.weight)
            for module in (
                block.self_attn.q_proj,
                block.self_attn.k_proj,
                block.self_attn.v_proj,
                block.self_attn.o_proj,
                block.mlp.gate_proj,
                block.mlp.up_proj,
                block.mlp.down_proj,
            )
        )
        # What leaves a pair of layers is scaled first: it changes the weights that the inner scales look at.
        outer = _shared(largest[f"{layer}.attention_output"], out, shape)
        value = value / outer[:, np.newaxis]
        hidden = _scales(largest[f"{layer}.feed_forward_output"], _columns(down))
        up = up / hidden[:, np.newaxis]
        found[f"layers.{layer}.smooth.attention_output"] = outer
        found[f"layers.{layer}.smooth.feed_forward_output"] = hidden
        found[f"layers.{layer}.smooth.attention"] = _scales(
            largest[f"{layer}.attention"], _columns(np.concatenate([query, key, value]))
        )
        found[f"layers.{layer}.smooth.feed_forward"] = _scales(
            largest[f"{layer}.feed_forward"], _columns(np.concatenate([gate, up]))
        )
    if head:
        found[f"smooth.{HEAD}"] = _scales(largest[HEAD], _columns(_array(model.lm_head.weight)))
    return found


def _largest_activations(model: Any, encoder: PromptEncoder, texts: Sequence[str]) -> dict[str, FloatArray]:
    """The largest absolute value of each channel, by layer and site, over the prompts of both tasks."""
    import torch

    largest: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            channels = inputs[0].abs().flatten(0, -2).amax(dim=0)
            largest[name] = torch.maximum(largest[name], channels) if name in largest else channels

        return hook

    hooks = [model.lm_head.register_forward_pre_hook(watch(HEAD))]
    for layer, block in enumerate(model.model.layers):
        for site, module in _WATCHED.items():
            hooks.append(block.get_submodule(module).register_forward_pre_hook(watch(f"{layer}.{site}")))
    labels = encoder.task.labels.labels
    try:
        with torch.inference_mode():
            for number, text in enumerate(texts):
                prompts = [encoder.predict(text), encoder.rationale(text)]
                if labels:
                    label = labels[number % len(labels)]
                    prompts = [encoder.predict(text), encoder.explain(text, label)]
                for prompt in prompts:
                    model(input_ids=torch.tensor([prompt.ids]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _array(value) for name, value in largest.items()}


def _shared(largest: FloatArray, out: FloatArray, shape: LlamaShape) -> FloatArray:
    """Scales of the value channels: the query heads that read a channel have one scale for it."""
    grouped = (shape.key_heads, shape.heads // shape.key_heads, -1)
    activations = largest.reshape(grouped).max(axis=1).reshape(-1)
    weights = _columns(out).reshape(grouped).max(axis=1).reshape(-1)
    scales = _scales(activations, weights)
    assert spread_over_heads(scales, shape).shape == largest.shape
    return scales


def _scales(activations: FloatArray, weights: FloatArray) -> FloatArray:
    ratio = np.maximum(activations, _SMALLEST) ** ALPHA / np.maximum(weights, _SMALLEST) ** (1 - ALPHA)
    return np.maximum(ratio, _SMALLEST).astype(np.float32)


def _columns(weight: FloatArray) -> FloatArray:
    """The largest absolute value in each column of [out, in]."""
    result: FloatArray = np.abs(weight).max(axis=0)
    return result


def _array(tensor: Any) -> FloatArray:
    result: FloatArray = tensor.detach().float().cpu().numpy()
    return result
