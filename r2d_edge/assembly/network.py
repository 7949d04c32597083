"""Writing an adapted base model for CTranslate2, with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge.assembly.adapter import Adapter, spread_over_heads
from r2d_edge.assembly.llama import FloatArray, LlamaBase


def write_network(
    base: LlamaBase, adapter: Adapter, target: Path, *, tokens: Sequence[str], end: str, compute_type: str
) -> None:
    """Writes model.bin, config.json and vocabulary.json to the folder `target`.

    Each matrix is quantized as soon as it is made, the largest first, so that little is held in float32.

    Args:
        base: the weights.
        adapter: what is folded into them.
        target: an empty folder.
        tokens: the vocabulary by id.
        end: the token that ends an answer.
        compute_type: of the file: "int8", or "float32" to compare with.
    """
    from ctranslate2.specs import Activation, TransformerDecoderModelSpec

    shape = base.shape
    spec = TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=shape.rotary_base,
        num_heads_kv=None if shape.key_heads == shape.heads else shape.key_heads,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    _set_weight(decoder.embeddings, base.embeddings(), compute_type)
    head = adapter.head_smoothing()
    decoder.layer_norm.gamma = _divided(base.final_norm(), head)
    shared = base.tied and head is None
    if shared:
        decoder.projection.weight = decoder.embeddings.weight
    else:
        _set_weight(decoder.projection, _scaled(base.output(), head), compute_type)
    for layer, block in enumerate(decoder.layer):
        _set_attention(block.self_attention, base, adapter, layer, compute_type)
        _set_feed_forward(block.ffn, base, adapter, layer, compute_type)

    # The engine adds tokens that the vocabulary lacks; none of these stands in a prompt by itself.
    spec.config.bos_token = spec.config.unk_token = tokens[0]
    spec.config.eos_token = end
    spec.config.layer_norm_epsilon = shape.epsilon
    spec.register_vocabulary(list(tokens))
    spec.validate()
    if shared:
        decoder.projection.weight = "decoder/embeddings/weight"  # the file holds it once, under two names
    spec.save(str(target))
    vocabulary = json.dumps(list(tokens), ensure_ascii=False, separators=(",", ":"))
    (target / "vocabulary.json").write_bytes(vocabulary.encode("utf-8"))
    config = (target / "config.json").read_text(encoding="utf-8")
    (target / "config.json").write_bytes(config.encode("utf-8"))  # the same bytes on every system


def _set_attention(attention: Any, base: LlamaBase, adapter: Adapter, layer: int, compute_type: str) -> None:
    query, key, value, out = (
        adapter.merged(base.linear(layer, name), layer, name)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    )
    inner, outer = adapter.smoothing(layer, "attention"), adapter.smoothing(layer, "attention_output")
    if outer is not None:
        value = value / outer[:, np.newaxis]
        out = out * spread_over_heads(outer, base.shape)
    attention.layer_norm.gamma = _divided(base.norm(layer, "input_layernorm"), inner)
    _set_weight(attention.linear[0], _scaled(np.concatenate([query, key, value]), inner), compute_type)
    _set_weight(attention.linear[1], out, compute_type)


def _set_feed_forward(feed_forward: Any, base: LlamaBase, adapter: Adapter, layer: int, compute_type: str) -> None:
    gate, up, down = (
        adapter.merged(base.linear(layer, name), layer, name)
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    inner, outer = adapter.smoothing(layer, "feed_forward"), adapter.smoothing(layer, "feed_forward_output")
    if outer is not None:
        up = up / outer[:, np.newaxis]
        down = down * outer
    feed_forward.layer_norm.gamma = _divided(base.norm(layer, "post_attention_layernorm"), inner)
    _set_weight(feed_forward.linear_0, _scaled(gate, inner), compute_type)
    _set_weight(feed_forward.linear_0_noact, _scaled(up, inner), compute_type)
    _set_weight(feed_forward.linear_1, down, compute_type)


def _set_weight(spec: Any, weight: FloatArray, compute_type: str) -> None:
    """Puts a matrix [out, in] into a layer's specification, quantized."""
    spec.weight = weight
    spec.validate()
    spec.optimize(compute_type)


def _scaled(weight: FloatArray, scales: FloatArray | None) -> FloatArray:
    """Multiplies the columns of [out, in] by scales, in place."""
    if scales is not None:
        weight *= scales
    return weight


def _divided(gamma: FloatArray, scales: FloatArray | None) -> FloatArray:
    return gamma if scales is None else gamma / scales
