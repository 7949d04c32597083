"""What llama.cpp knows of a network: its GGUF metadata, and its tensors by their GGUF names.

Names and keys come from the `gguf` library's own tables. What llama.cpp computes otherwise than transformers
is either put right in the tensors (`CORRECTIONS`) or a reason against the export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from convert.errors import ConversionError
from r2d_edge.task import Limits

FloatArray = npt.NDArray[np.float32]

# transformers' name of an architecture, and the gguf library's.
ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "t5": gguf.MODEL_ARCH.T5,
    "mt5": gguf.MODEL_ARCH.T5,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
ENCODER_DECODERS = ("t5", "mt5")

CORRECTIONS = {
    "t5-output-scale": (
        "T5 v1.0 multiplies the decoder's outputs by d_model^-0.5 before the tied embeddings make logits of them, "
        "llama.cpp does not: the output matrix is written by itself, scaled"
    ),
    "llama-rotary-order": (
        "transformers rotates the two halves of a head, llama.cpp's Llama neighbouring pairs: the rows of the query "
        "and key matrices are reordered"
    ),
}

# llama.cpp's T5 has no metadata for these.
_T5_MAX_DISTANCE = 128
_T5_GATED = ("gelu_new", "gelu_pytorch_tanh")
# One and the same matrix under names of its users.
_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


def unsupported(model_type: str | None, config: Any | None) -> list[str]:
    """Why llama.cpp cannot run a network; empty if it can.

    Args:
        model_type: transformers' name of the architecture; None where there is none to read.
        config: its configuration; None where it cannot be read.
    """
    if model_type is None:
        return []
    if model_type == "bart":
        return ["architecture 'bart': llama.cpp has no such network; export it to CTranslate2"]
    if model_type not in ARCHITECTURES:
        return [f"architecture {model_type!r} is not written as GGUF; supported: {', '.join(ARCHITECTURES)}"]
    if config is None:
        return []
    if model_type in ENCODER_DECODERS:
        return _unsupported_t5(config)
    if model_type == "qwen3" and config.attention_bias:
        return ["attention_bias is not supported for Qwen3: llama.cpp has no place for the output's"]
    return []


def _unsupported_t5(config: Any) -> list[str]:
    reasons = []
    if config.relative_attention_max_distance != _T5_MAX_DISTANCE:
        reasons.append(
            f"relative_attention_max_distance is {config.relative_attention_max_distance}: llama.cpp always takes "
            f"{_T5_MAX_DISTANCE}"
        )
    known = _T5_GATED if config.is_gated_act else ("relu",)
    if config.dense_act_fn not in known:
        kind = "gated" if config.is_gated_act else "plain"
        reasons.append(
            f"activation {config.dense_act_fn!r} of {kind} feed-forward layers: llama.cpp takes {known[0]} for them"
        )
    if config.num_decoder_layers > config.num_layers:
        reasons.append(
            f"{config.num_decoder_layers} decoder layers and {config.num_layers} encoder layers: llama.cpp has no "
            "place for more of the former"
        )
    return reasons


def corrections_for(config: Any) -> frozenset[str]:
    """Which of `CORRECTIONS` a model needs."""
    needed = set()
    # mT5's class has no such field and never scales.
    if config.model_type in ENCODER_DECODERS and getattr(config, "scale_decoder_outputs", False):
        needed.add("t5-output-scale")
    if config.model_type == "llama":
        needed.add("llama-rotary-order")
    return frozenset(needed)


def write_metadata(writer: Any, config: Any, limits: Limits) -> None:
    """Adds the network's shape to a `gguf.GGUFWriter`."""
    writer.add_vocab_size(config.vocab_size)
    if config.model_type in ENCODER_DECODERS:
        _write_t5(writer, config, limits)
    else:
        _write_decoder_only(writer, config)


def _write_t5(writer: Any, config: Any, limits: Limits) -> None:
    # Relative positions know no end; what stands here is only a hint to other tools.
    writer.add_context_length(max(getattr(config, "n_positions", 512), limits.input))
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.num_layers)
    writer.add_decoder_block_count(config.num_decoder_layers)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_decoder_start_token_id(config.decoder_start_token_id)


def _write_decoder_only(writer: Any, config: Any) -> None:
    width = head_width(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def head_width(config: Any) -> int:
    """The width of one attention head of a decoder-only model."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def tensor_names(config: Any) -> gguf.TensorNameMap:
    """The gguf library's names for the weights of this model."""
    if config.model_type in ENCODER_DECODERS:
        layers = max(config.num_layers, config.num_decoder_layers)
    else:
        layers = config.num_hidden_layers
    return gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], layers)


def tensors(model: Any, corrections: Set[str]) -> Iterator[tuple[str, FloatArray]]:
    """The model's weights by their GGUF names, as llama.cpp computes with them.

    A head that is the embedding matrix itself is left out: llama.cpp then takes the embeddings.

    Args:
        model: a transformers model, float32, of one of `ARCHITECTURES`.
        corrections: which of `CORRECTIONS` to apply, as `corrections_for` says.

    Raises:
        ConversionError: a weight has no place in GGUF.
    """
    config = model.config
    names = tensor_names(config)
    for key, tensor in model.state_dict().items():
        if key in _ALIASES or key == _HEAD:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConversionError([f"GGUF has no place for the weight {key}"])
        array = tensor.numpy()
        if "llama-rotary-order" in corrections:
            array = rotary_order(key, array, config)
        yield name, array
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    scaled = "t5-output-scale" in corrections
    if scaled or head.data_ptr() != embeddings.data_ptr():
        output = head.detach().numpy()
        yield "output.weight", output * np.float32(config.d_model**-0.5) if scaled else output


def rotary_order(key: str, array: FloatArray, config: Any) -> FloatArray:
    """Rows of a query's or key's projection [out, …] as llama.cpp's Llama rotates them; others as they are."""
    if ".q_proj." in key:
        heads = config.num_attention_heads
    elif ".k_proj." in key:
        heads = config.num_key_value_heads
    else:
        return array
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
