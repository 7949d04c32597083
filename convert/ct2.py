"""Export to CTranslate2 with corrected loaders.

ctranslate2's loaders were written for earlier transformers; with transformers 5 some of their
assumptions are wrong. `CORRECTIONS` lists what is put right here. The loaders are ours and are handed
to our converter directly: ctranslate2's own table of loaders is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.converters.transformers import (
    BartLoader,
    Gemma3Loader,
    GemmaLoader,
    LlamaLoader,
    Qwen2Loader,
    Qwen3Loader,
    T5Loader,
    TransformersConverter,
)
from ctranslate2.specs.model_spec import OPTIONAL

from convert.checkpoint import Checkpoint, load_model
from convert.compact import compact_json
from convert.errors import ConversionError
from r2d_edge.task import Limits

COMPUTE_TYPES = ("float32", "int8", "int8_float32", "int8_bfloat16", "bfloat16")
# Only GPUs compute in these: a CPU would prove something else.
GPU_COMPUTE_TYPES = ("float16", "int8_float16")

CORRECTIONS = {
    "t5-output-scale": (
        "transformers 5 sets T5Config.tie_word_embeddings always and keeps the truth in scale_decoder_outputs; "
        "read from the former, the logits of untied models are scaled by d_model^-0.5"
    ),
    "t5-norm-epsilon": "the engine assumes 1e-6 unless the exported configuration states layer_norm_epsilon",
    "bart-post-norm": (
        "BartConfig has no normalize_before any more, and transformers' BART is post-norm whatever an old "
        "config.json says"
    ),
    "gemma-rope-base": (
        "transformers 5 keeps rope_theta in rope_parameters; the loaders look for it where it was and else take the "
        "bases of the published models"
    ),
    "gemma3-norm-epsilon": "the loader leaves rms_norm_eps out, and the engine assumes 1e-6",
}


def check_compute_type(compute_type: str, model_type: str | None) -> list[str]:
    """Why a compute type cannot be had; empty if it can."""
    if compute_type in COMPUTE_TYPES:
        return []
    if compute_type not in GPU_COMPUTE_TYPES:
        known = ", ".join((*COMPUTE_TYPES, *GPU_COMPUTE_TYPES))
        return [f"quantization {compute_type!r} is not supported; supported: {known}"]
    if ctranslate2.get_cuda_device_count():
        return []  # the proof runs there, and a score that is no number fails it
    why = "T5's feed-forward layers overflow float16, so it must be proven" if model_type in ("t5", "mt5") else "proven"
    return [f"{compute_type}: {why} on an NVIDIA GPU, and there is none here; take one of {', '.join(COMPUTE_TYPES)}"]


def export(
    checkpoint: Checkpoint, target: Path, compute_type: str, corrections: Set[str] = frozenset(CORRECTIONS)
) -> None:
    """Writes model.bin, config.json and the vocabulary to the new folder `target`.

    Learned positions that the task's limits cannot reach are left out.

    Args:
        checkpoint: what to export.
        target: a folder that does not exist.
        compute_type: one of `COMPUTE_TYPES`.
        corrections: which of `CORRECTIONS` to apply; fewer only to show what each is for.

    Raises:
        ConversionError: ctranslate2 cannot convert the model.
    """
    converter = _Converter(checkpoint, corrections)
    try:
        converter.convert(str(target), quantization=compute_type)
        for vocabulary in target.glob("*vocabulary.json"):  # of a decoder-only model it is not called shared
            compact_json(vocabulary)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConversionError([f"ctranslate2 refuses the model: {type(error).__name__}: {error}"]) from error


class _Converter(TransformersConverter):
    """ctranslate2's converter over our reading of the checkpoint and our loaders."""

    def __init__(self, checkpoint: Checkpoint, corrections: Set[str]) -> None:
        super().__init__(str(checkpoint.folder))
        self._checkpoint = checkpoint
        self._corrections = corrections

    def _load(self) -> Any:
        import torch

        loaders: dict[str, Callable[[], Any]] = {
            "t5": lambda: _T5Loader(self._corrections),
            "mt5": lambda: _T5Loader(self._corrections),
            "bart": lambda: _BartLoader(self._corrections, self._checkpoint.task.limits),
            "llama": LlamaLoader,
            "qwen2": Qwen2Loader,
            "qwen3": Qwen3Loader,
            "gemma": lambda: _GemmaLoader(self._corrections),
            "gemma3_text": lambda: _Gemma3Loader(self._corrections),
        }
        loader = loaders[self._checkpoint.model_type]()
        with torch.no_grad():
            return loader(load_model(self._checkpoint), _Tokens(self._checkpoint))


class _Tokens:
    """What the loaders ask of a transformers tokenizer, answered from the tokenizer.json that the runtime uses.

    The vocabulary is complete, so the loaders add no placeholders of their own (which could bear the
    names of tokens that exist).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vocabulary = checkpoint.vocabulary
        self.eos_token = checkpoint.vocabulary[checkpoint.encoder.end_id]
        self.unk_token = checkpoint.unknown
        # The engine never puts it before a prompt: prompts come framed. It must only exist.
        self.bos_token = self.pad_token = checkpoint.vocabulary[checkpoint.start_id or 0]

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._vocabulary)}

    def convert_ids_to_tokens(self, index: int) -> str:
        return self._vocabulary[index]


class _T5Loader(T5Loader):
    """T5, T5 v1.1, Flan-T5, mT5."""

    def __init__(self, corrections: Set[str]) -> None:
        self._corrections = corrections

    def get_model_spec(self, model: Any) -> Any:
        spec = super().get_model_spec(model)
        if "t5-output-scale" in self._corrections:
            # mT5's class has no such field and never scales.
            scaled = getattr(model.config, "scale_decoder_outputs", False)
            spec.decoder.scale_outputs = model.config.d_model**-0.5 if scaled else OPTIONAL
        return spec

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        super().set_config(config, model, tokenizer)
        if "t5-norm-epsilon" in self._corrections:
            config.add_attribute("layer_norm_epsilon", model.config.layer_norm_epsilon)


class _BartLoader(BartLoader):
    """BART and what has its shape."""

    def __init__(self, corrections: Set[str], limits: Limits) -> None:
        self._corrections = corrections
        self._limits = limits

    def get_model_spec(self, model: Any) -> Any:
        if "bart-post-norm" in self._corrections:
            model.config.normalize_before = False
            model.config.normalize_embedding = True
        spec = super().get_model_spec(model)
        for side, length in (
            (spec.encoder, self._limits.input),
            (spec.decoder, 1 + max(self._limits.label, self._limits.rationale)),
        ):
            side.position_encodings.encodings = side.position_encodings.encodings[:length]
        return spec


class _GemmaLoader(GemmaLoader):
    """Gemma 1."""

    def __init__(self, corrections: Set[str]) -> None:
        self._corrections = corrections

    def get_model_spec(self, model: Any) -> Any:
        spec = super().get_model_spec(model)
        if "gemma-rope-base" in self._corrections:
            for layer in spec.decoder.layer:
                layer.self_attention.rotary_base = np.float32(model.config.rope_parameters["rope_theta"])
        return spec


class _Gemma3Loader(Gemma3Loader):
    """Gemma 3, the text model."""

    def __init__(self, corrections: Set[str]) -> None:
        self._corrections = corrections

    def get_model_spec(self, model: Any) -> Any:
        spec = super().get_model_spec(model)
        if "gemma-rope-base" in self._corrections:
            for layer, kind in zip(spec.decoder.layer, model.config.layer_types, strict=True):
                layer.self_attention.rotary_base = np.float32(model.config.rope_parameters[kind]["rope_theta"])
        return spec

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
        super().set_config(config, model, tokenizer)
        if "gemma3-norm-epsilon" in self._corrections:
            config.layer_norm_epsilon = model.config.rms_norm_eps
