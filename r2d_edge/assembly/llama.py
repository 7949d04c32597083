"""A base model of Llama's architecture, read from a GGUF file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.errors import BundleError

FloatArray = npt.NDArray[np.float32]

# The linear layers of a block by their names in transformers (and in adapters) and in GGUF.
LINEAR = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_EMBEDDINGS, _FINAL_NORM, _OUTPUT = "token_embd.weight", "output_norm.weight", "output.weight"


@dataclass(frozen=True)
class LlamaShape:
    """A network's numbers; `key_heads` is the number of key and of value heads."""

    layers: int
    heads: int
    key_heads: int
    hidden: int
    feed_forward: int
    vocabulary: int
    rotary_base: float
    epsilon: float


class LlamaBase:
    """Weights in float32, dequantized anew when asked for, and laid out as transformers has them."""

    def __init__(self, path: Path) -> None:
        """Opens a GGUF file.

        Raises:
            BundleError: it is no Llama, or has what is not supported.
        """
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise BundleError(f"{path.name} is not a GGUF file that can be read: {error}") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.shape = self._read_shape(path.name)

    @property
    def tied(self) -> bool:
        """Whether the output shares the embeddings' weights."""
        return _OUTPUT not in self._tensors

    def embeddings(self) -> FloatArray:
        """[vocabulary, hidden]."""
        return self._dequantized(_EMBEDDINGS)

    def output(self) -> FloatArray:
        """The output's weights [vocabulary, hidden]."""
        return self._dequantized(_EMBEDDINGS if self.tied else _OUTPUT)

    def final_norm(self) -> FloatArray:
        """[hidden]."""
        return self._dequantized(_FINAL_NORM)

    def norm(self, layer: int, name: str) -> FloatArray:
        """A block's norm [hidden], by its name in transformers."""
        return self._dequantized(f"blk.{layer}.{NORMS[name]}.weight")

    def linear(self, layer: int, name: str) -> FloatArray:
        """A block's linear layer [out, in], by its name in transformers."""
        weight = self._dequantized(f"blk.{layer}.{LINEAR[name]}.weight")
        if name == "self_attn.q_proj":
            return _halves_apart(weight, self.shape.heads)
        if name == "self_attn.k_proj":
            return _halves_apart(weight, self.shape.key_heads)
        return weight

    def tokens(self) -> list[str]:
        """The vocabulary, by id."""
        field = self._reader.fields["tokenizer.ggml.tokens"]
        return [bytes(field.parts[index]).decode("utf-8") for index in field.data]

    def _dequantized(self, name: str) -> FloatArray:
        from gguf import quants

        tensor = self._tensors[name]
        # What was not quantized comes as a view of the file, which is not to be written to.
        return np.require(quants.dequantize(tensor.data, tensor.tensor_type), np.float32, ["C", "W"])

    def _read_shape(self, file: str) -> LlamaShape:
        architecture = self._metadata("general.architecture", "")
        if architecture != "llama":
            raise BundleError(f"{file} has architecture {architecture!r}; only 'llama' can be assembled")
        try:
            heads = int(self._metadata("llama.attention.head_count"))
            shape = LlamaShape(
                layers=int(self._metadata("llama.block_count")),
                heads=heads,
                key_heads=int(self._metadata("llama.attention.head_count_kv", heads)),
                hidden=int(self._metadata("llama.embedding_length")),
                feed_forward=int(self._metadata("llama.feed_forward_length")),
                vocabulary=int(self._tensors[_EMBEDDINGS].shape[1]),
                rotary_base=float(self._metadata("llama.rope.freq_base", 10_000.0)),
                epsilon=float(self._metadata("llama.attention.layer_norm_rms_epsilon")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{file} does not say its shape: {error}") from None
        self._check(shape, file)
        return shape

    def _check(self, shape: LlamaShape, file: str) -> None:
        """Refuses what would be computed wrongly."""
        width = shape.hidden // shape.heads
        if any(key.startswith("llama.rope.scaling.") for key in self._reader.fields):
            raise BundleError(f"{file} scales its rotary positions, which is not supported")
        if shape.hidden % shape.heads or int(self._metadata("llama.rope.dimension_count", width)) != width:
            raise BundleError(f"{file} has heads that do not fill its width of {shape.hidden}")
        blocks = [f"blk.{layer}." for layer in range(shape.layers)]
        expected = {block + name + ".weight" for block in blocks for name in (*LINEAR.values(), *NORMS.values())}
        expected |= {_EMBEDDINGS, _FINAL_NORM}
        strange = expected ^ (set(self._tensors) - {_OUTPUT})
        if strange:
            raise BundleError(f"{file} lacks or adds {len(strange)} tensors, for one {min(strange)}")

    def _metadata(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise KeyError(key)
        return default


def _halves_apart(weight: FloatArray, heads: int) -> FloatArray:
    """Rows of a query or key projection [out, in] in transformers' order.

    Rotary positions turn pairs of rows. In GGUF a pair's rows are neighbours; in transformers (and in the engine) each
    is half a head away from the other.
    """
    out, inner = weight.shape
    turned: FloatArray = weight.reshape(heads, out // heads // 2, 2, inner).swapaxes(1, 2).reshape(out, inner)
    return turned
