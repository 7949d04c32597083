"""Reading a transformers checkpoint folder, and every reason why it cannot be converted.

Only safetensors are read and only transformers' own model classes are used: a checkpoint is data, and
nothing in it is ever run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import ConversionError
from r2d_edge.bundle import TOKENIZER
from r2d_edge.hashing import file_sha256
from r2d_edge.task import TASK_FILE, PromptEncoder, Task

ENCODER_DECODERS = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}
DECODER_ONLY = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
MODEL_CLASSES = {**ENCODER_DECODERS, **DECODER_ONLY}
ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
# Where a decoder-only configuration names its activation, and which the engine's loaders know, whatever it says.
_CAUSAL_ACTIVATIONS = {
    "llama": ("hidden_act", ("silu",)),
    "qwen2": ("hidden_act", ("silu",)),
    "qwen3": ("hidden_act", ("silu",)),
    "gemma": ("hidden_act", ("gelu_pytorch_tanh",)),
    "gemma3_text": ("hidden_activation", ("gelu", "gelu_pytorch_tanh")),
}
ROPE_TYPES = ("default", "linear")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found fit for conversion.

    Attributes:
        config: transformers' configuration object.
        vocabulary: the token of every row of the embedding matrix; rows beyond the tokenizer have
            placeholders, each its own.
        unknown: the token for what has none.
        start_id: with what the decoder starts; None for a decoder-only model, which goes on from its prompt.
    """

    folder: Path
    config: Any
    task: Task
    encoder: PromptEncoder
    vocabulary: tuple[str, ...]
    unknown: str
    start_id: int | None
    weights: tuple[Path, ...]

    @property
    def model_type(self) -> str:
        """One of `MODEL_CLASSES`."""
        return str(self.config.model_type)

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of every weight file by name."""
        return {path.name: file_sha256(path) for path in self.weights}


def read_checkpoint(folder: Path, task_file: Path | None = None) -> Checkpoint:
    """Reads a checkpoint folder, without its weights.

    Args:
        folder: what `save_pretrained` wrote, tokenizer.json included.
        task_file: what `Task.to_json` wrote; default: the folder's own r2d_task.json.

    Raises:
        ConversionError: with every reason that speaks against a conversion.
    """
    reasons: list[str] = []
    if not folder.is_dir():
        raise ConversionError([f"{folder} is not a folder"])
    weights = _find_weights(folder, reasons)
    config = _read_config(folder, reasons)
    task = _read_task(folder, task_file, reasons)
    tokenizer = _read_tokenizer(folder, reasons)
    if config is not None:
        _check_network(config, task, reasons)
    if task is None or tokenizer is None or config is None:
        raise ConversionError(reasons)
    if (task.template is not None) != (config.model_type in DECODER_ONLY):
        if task.template is None:
            reasons.append(f"{config.model_type} is decoder-only: the task must hold a template for it")
        else:
            reasons.append(f"the task holds a template, which is for decoder-only models: {config.model_type} is none")
        raise ConversionError(reasons)
    vocabulary = _vocabulary(tokenizer, config, reasons)
    encoder = _encoder(tokenizer, task, reasons)
    if encoder is not None:
        _check_tokens(encoder, config, _unknown_token(folder), tokenizer, reasons)
    if reasons or encoder is None:
        raise ConversionError(reasons)
    unknown = _unknown_token(folder)
    return Checkpoint(
        folder=folder,
        config=config,
        task=task,
        encoder=encoder,
        vocabulary=tuple(vocabulary),
        unknown=unknown if unknown is not None else vocabulary[config.pad_token_id or 0],
        start_id=getattr(config, "decoder_start_token_id", None),
        weights=tuple(weights),
    )


def load_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint's network in float32, in evaluation mode.

    Raises:
        ConversionError: the weight files do not hold every weight of the network.
    """
    import torch
    import transformers

    model_class = getattr(transformers, MODEL_CLASSES[checkpoint.model_type])
    model, loading = model_class.from_pretrained(
        checkpoint.folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would fill them with random numbers.
        raise ConversionError([f"{len(missing)} weights are not in the checkpoint, for one {missing[0]}"])
    return model.eval()


def _find_weights(folder: Path, reasons: list[str]) -> list[Path]:
    index = folder / _WEIGHTS_INDEX
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            reasons.append(f"{index.name} is not an index of weight files")
            return []
        if any(Path(name).name != name for name in names):
            reasons.append(f"{index.name} names a file outside the folder")
            return []
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            reasons.append(f"weight files are missing: {', '.join(absent)}")
        return [folder / name for name in names]
    if (folder / "adapter_config.json").is_file():
        reasons.append("the folder holds an adapter: merge it into its base model first")
    elif any(path for pattern in PICKLES for path in folder.glob(pattern)):
        reasons.append(
            "the weights are not safetensors: pickled files can run code when read; "
            "save the model again with safe_serialization"
        )
    else:
        reasons.append(f"{_WEIGHTS} is missing")
    return []


def _read_config(folder: Path, reasons: list[str]) -> Any | None:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = raw.get("model_type")
    except (OSError, ValueError, AttributeError):
        reasons.append("config.json is missing or not a model configuration")
        return None
    if "auto_map" in raw:
        reasons.append("the configuration asks for code of its own (auto_map): only transformers' own models are read")
    if model_type not in MODEL_CLASSES:
        reasons.append(f"architecture {model_type!r} is not supported; supported: {', '.join(MODEL_CLASSES)}")
        return None
    wanted = MODEL_CLASSES[model_type]
    architectures = raw.get("architectures")
    if architectures and wanted not in architectures:
        reasons.append(f"architecture {', '.join(map(str, architectures))} is not supported; needed is {wanted}")
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' configuration checks raise whatever they like
        reasons.append(f"config.json is refused by transformers: {error}")
        return None


def _read_task(folder: Path, task_file: Path | None, reasons: list[str]) -> Task | None:
    path = task_file or folder / TASK_FILE
    try:
        return Task.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        hint = "" if task_file else "; name a task with --task FILE"
        reasons.append(f"{path.name} is missing or cannot be read{hint}")
    except ValueError as error:
        reasons.append(f"{path.name} is not a task: {error}")
    return None


def _read_tokenizer(folder: Path, reasons: list[str]) -> Any | None:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        reasons.append(f"{TOKENIZER} is missing: save the tokenizer with its fast class")
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        reasons.append(f"{TOKENIZER} cannot be read: {error}")
        return None


def _encoder(tokenizer: Any, task: Task, reasons: list[str]) -> PromptEncoder | None:
    try:
        return PromptEncoder(tokenizer, task)
    except (ValueError, IndexError) as error:
        reasons.append(f"{TOKENIZER} does not suit the model and its task: {error}")
        return None


def _check_network(config: Any, task: Task | None, reasons: list[str]) -> None:
    """What of a network of a supported architecture the engine cannot compute."""
    if getattr(config, "quantization_config", None):
        reasons.append("the checkpoint is quantized already: convert the full-precision one")
    if config.model_type in DECODER_ONLY:
        _check_decoder_only(config, task, reasons)
    else:
        _check_encoder_decoder(config, task, reasons)


def _check_encoder_decoder(config: Any, task: Task | None, reasons: list[str]) -> None:
    if config.model_type == "bart":
        activation = config.activation_function
        if config.encoder_attention_heads != config.decoder_attention_heads:
            reasons.append(
                f"{config.encoder_attention_heads} encoder and {config.decoder_attention_heads} decoder attention "
                "heads: the engine takes one number for both"
            )
        positions = config.max_position_embeddings
        limits = vars(task.limits) if task else {}
        for name, limit in limits.items():
            if limit > positions:
                reasons.append(f"the task's {name} limit is {limit} tokens, the model has {positions} positions")
    else:
        activation = config.dense_act_fn
    if activation not in ACTIVATIONS:
        reasons.append(f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    if config.decoder_start_token_id is None:
        reasons.append("config.json names no decoder_start_token_id")


def _check_decoder_only(config: Any, task: Task | None, reasons: list[str]) -> None:
    field, known = _CAUSAL_ACTIVATIONS[config.model_type]
    activation = getattr(config, field)
    if activation not in known:
        reasons.append(f"activation {activation!r} is not supported; supported: {', '.join(known)}")
    for rope in _rope_parameters(config):
        if rope.get("rope_type", "default") not in ROPE_TYPES:
            reasons.append(
                f"rope_type {rope['rope_type']!r} is not supported: the engine's rotary positions were found to differ "
                f"from transformers' or are unproven; supported: {', '.join(ROPE_TYPES)}"
            )
    width, heads = getattr(config, "head_dim", None), config.num_attention_heads
    if config.model_type in ("llama", "qwen2") and width is not None and width * heads != config.hidden_size:
        reasons.append(f"{heads} heads of width {width} do not add up to hidden_size {config.hidden_size}")
    if config.model_type.startswith("gemma") and config.attention_bias:
        reasons.append("attention_bias is not supported for Gemma: the loader leaves the biases out")
    if config.model_type == "gemma3_text" and config.query_pre_attn_scalar != width:
        reasons.append(
            f"query_pre_attn_scalar {config.query_pre_attn_scalar} is not the heads' width {width}: the engine scales "
            "attention by the latter"
        )
    if config.model_type.startswith("qwen") and set(config.layer_types) != {"full_attention"}:
        reasons.append("sliding attention is not supported for Qwen: the loader makes it full")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            reasons.append(f"{name} is set: the engine does not soft-cap")
    if task is None:
        return
    # One row of positions for prompt and answer.
    longest = task.limits.input + max(task.limits.label, task.limits.rationale)
    if longest > config.max_position_embeddings:
        reasons.append(
            f"the task's limits add up to {longest} tokens for prompt and answer, the model has "
            f"{config.max_position_embeddings} positions"
        )
    if config.model_type == "gemma3_text" and longest > config.sliding_window:
        reasons.append(
            f"the task's limits add up to {longest} tokens for prompt and answer, the model's sliding window is "
            f"{config.sliding_window}: beyond it the engine was found to compute otherwise"
        )


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary positions' parameters: one set, or one for each kind of layer."""
    parameters = config.rope_parameters or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _vocabulary(tokenizer: Any, config: Any, reasons: list[str]) -> list[str]:
    """The token of every embedding row, with a placeholder where the tokenizer has none."""
    tokens = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    highest = max(tokens)
    if highest >= config.vocab_size:
        reasons.append(
            f"the tokenizer goes up to id {highest}, the model embeds {config.vocab_size} tokens: "
            "they do not belong together"
        )
    start = getattr(config, "decoder_start_token_id", None)
    if start is not None and start not in tokens:
        reasons.append(f"decoder_start_token_id {start} is not in the tokenizer")
    names = set(tokens.values())
    vocabulary = []
    for index in range(config.vocab_size):
        token = tokens.get(index, f"<unused_{index}>")
        while index not in tokens and token in names:
            token = f"<{token}>"
        vocabulary.append(token)
    return vocabulary


def _unknown_token(folder: Path) -> str | None:
    model = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))["model"]
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    unknown = model.get("unk_token")
    return None if unknown is None else str(unknown)


def _check_tokens(encoder: PromptEncoder, config: Any, unknown: str | None, tokenizer: Any, reasons: list[str]) -> None:
    """Whether tokenizer, model and labels belong together."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # A template says itself what ends an answer, and the engine is told.
    if encoder.task.template is None and encoder.end_id not in ends:
        reasons.append(
            f"the tokenizer ends a text with id {encoder.end_id}, the model's eos_token_id is {config.eos_token_id}"
        )
    unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
    written: dict[tuple[int, ...], str] = {}
    for label in encoder.task.labels.labels:
        ids = encoder.label_ids(label)
        if not ids or unknown_id in ids:
            reasons.append(f"label {label!r} cannot be written with this vocabulary")
        elif len(ids) + 1 > encoder.task.limits.label:
            reasons.append(
                f"label {label!r} takes {len(ids) + 1} tokens, the task's label limit is {encoder.task.limits.label}"
            )
        if tuple(ids) in written:
            reasons.append(f"labels {written[tuple(ids)]!r} and {label!r} have the same tokens")
        written[tuple(ids)] = label
