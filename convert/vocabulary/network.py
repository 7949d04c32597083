"""A checkpoint's tensors and settings for a vocabulary that was cut down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Tensors with a row for every token, by the end of their names.
_BY_TOKEN = (
    "shared.weight",
    "embed_tokens.weight",
    "lm_head.weight",
    "lm_head.bias",
    "final_logits_bias",
)
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_UNMAPPED = ("forced_decoder_ids", "sequence_bias")


def token_tensors(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors with a row for every token."""
    return [name for name in tensors if name.endswith(_BY_TOKEN)]


def cut(tensor: torch.Tensor, name: str, keep: Sequence[int]) -> torch.Tensor:
    """The rows (for BART's bias: columns) of the tokens that stay."""
    import torch

    return tensor.index_select(_axis(name), torch.tensor(keep))


def check_tensors(tensors: Mapping[str, torch.Tensor], size: int, reasons: list[str]) -> None:
    """Adds a reason for every tensor that does not hold `size` tokens."""
    for name in token_tensors(tensors):
        if tensors[name].shape[_axis(name)] != size:
            reasons.append(f"{name} is of shape {list(tensors[name].shape)}, the configuration has {size} tokens")


def _axis(name: str) -> int:
    return 1 if name.endswith("final_logits_bias") else 0


def named_ids(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """The ids that a configuration names, by key: with what to start, end and fill up."""
    return {
        key: list(value) if isinstance(value, list) else [value]
        for key, value in config.items()
        if key.endswith(("_token_id", "_token_ids")) and value is not None
    }


def check_config(config: Mapping[str, Any], tokens: Mapping[int, str], name: str, reasons: list[str]) -> None:
    """Adds a reason for all that a configuration says of tokens and that cannot be carried over."""
    for key, ids in named_ids(config).items():
        reasons += [f"{name}: {key} {index} is not in the tokenizer" for index in ids if index not in tokens]
    reasons += [f"{name}: {key} is not carried over: remove it" for key in _UNMAPPED if config.get(key)]


def renumbered(config: Mapping[str, Any], new_of: Mapping[int, int]) -> dict[str, Any]:
    """A configuration with new ids; what forbids a token that is gone goes too."""
    result = dict(config)
    if "vocab_size" in result:
        result["vocab_size"] = len(new_of)
    for key, ids in named_ids(config).items():
        result[key] = [new_of[index] for index in ids] if isinstance(config[key], list) else new_of[ids[0]]
    for key in _SUPPRESSED:
        if config.get(key):
            result[key] = [new_of[index] for index in config[key] if index in new_of]
    if config.get("bad_words_ids"):
        result["bad_words_ids"] = [
            [new_of[index] for index in word] for word in config["bad_words_ids"] if all(i in new_of for i in word)
        ]
    return result


def tokenizer_settings(
    settings: Mapping[str, Any] | None, config: Mapping[str, Any], tokens: Mapping[int, str], new_of: Mapping[int, int]
) -> dict[str, Any]:
    """The tokenizer_config.json with which transformers takes tokenizer.json as it is.

    A class of a model's own would add what it misses: T5's its sentinels, beyond the embedding matrix.

    Args:
        settings: the old file; None where there is none.
        config: the old configuration, which then says what starts, ends and fills up.
        tokens: old ids with their tokens.
        new_of: old ids that stay with their new ones.
    """
    if settings is None:
        named = named_ids(config)
        settings = {
            f"{what}_token": tokens[named[f"{what}_token_id"][0]]
            for what in ("pad", "bos", "eos")
            if f"{what}_token_id" in named
        }
    gone = {token for index, token in tokens.items() if index not in new_of}
    result = without_tokens(settings, gone)
    for name in ("auto_map", "extra_ids"):
        result.pop(name, None)
    if "added_tokens_decoder" in result:
        entries = result["added_tokens_decoder"].items()
        result["added_tokens_decoder"] = {
            str(new_of[int(index)]): entry for index, entry in entries if int(index) in new_of
        }
    result["tokenizer_class"] = "PreTrainedTokenizerFast"
    result["model_input_names"] = ["input_ids", "attention_mask"]
    return result


def without_tokens(settings: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """The settings without the names of tokens that are gone, in the lists of further special tokens."""
    result = dict(settings)
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(result.get(key), list):
            result[key] = [token for token in result[key] if _content(token) not in gone]
        elif isinstance(result.get(key), dict):
            result[key] = {name: token for name, token in result[key].items() if _content(token) not in gone}
    return result


def _content(token: Any) -> Any:
    return token["content"] if isinstance(token, dict) else token
