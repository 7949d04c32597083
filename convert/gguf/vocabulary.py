"""tokenizer.json in GGUF's words, for other llama.cpp tools: r2d-edge itself feeds token ids.

Pieces are written where llama.cpp has a tokenizer of the same kind: Unigram with its scores, and byte-level BPE
with its merges where the rule that splits a text before is one that llama.cpp knows by name. Of any other
vocabulary only the size is written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import gguf

from convert.checkpoint import Checkpoint
from r2d_edge.bundle import TOKENIZER

# How a text is split before the merges: the pattern in tokenizer.json, and llama.cpp's name for it.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "llama-bpe",
}
_UNUSED_SCORE = -10_000.0  # never the best way to write anything


def write_vocabulary(writer: Any, checkpoint: Checkpoint) -> str:
    """Adds the vocabulary to a `gguf.GGUFWriter`, a piece for every row of the embedding matrix.

    Returns:
        The kind that was written: `t5` (Unigram), `gpt2` (byte-level BPE) or `no_vocab`.
    """
    data = json.loads((checkpoint.folder / TOKENIZER).read_text(encoding="utf-8"))
    if data["model"]["type"] == "Unigram":
        kind = "t5"
        _write_unigram(writer, data, checkpoint)
    elif (rule := _split_rule(data)) is not None:
        kind = "gpt2"
        writer.add_tokenizer_pre(rule)
        writer.add_token_merges([_merge(merge) for merge in data["model"]["merges"]])
        writer.add_add_space_prefix(False)
    else:
        kind = "no_vocab"
    writer.add_tokenizer_model(kind)
    if kind == "no_vocab":
        return kind
    writer.add_token_list(checkpoint.vocabulary)
    writer.add_token_types(_types(data, checkpoint))
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(checkpoint.encoder.end_id)
    for name, add in (("bos_token_id", writer.add_bos_token_id), ("pad_token_id", writer.add_pad_token_id)):
        index = getattr(checkpoint.config, name, None)
        if index is not None:
            add(index)
    return kind


def _write_unigram(writer: Any, data: dict[str, Any], checkpoint: Checkpoint) -> None:
    scores = [_UNUSED_SCORE] * len(checkpoint.vocabulary)
    for index, (_, score) in enumerate(data["model"]["vocab"]):
        scores[index] = score
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    writer.add_add_eos_token(True)
    splitters = list(_flat(data.get("pre_tokenizer"), "pretokenizers"))
    prefixes = [part.get("prepend_scheme", "always") for part in splitters if part["type"] == "Metaspace"]
    writer.add_add_space_prefix("never" not in prefixes)
    writer.add_remove_extra_whitespaces(any(part["type"] == "WhitespaceSplit" for part in splitters))
    if data["model"].get("unk_id") is not None:
        writer.add_unk_token_id(data["model"]["unk_id"])
    for part in _flat(data.get("normalizer"), "normalizers"):
        if part["type"] == "Precompiled" and part.get("precompiled_charsmap"):
            writer.add_precompiled_charsmap(base64.b64decode(part["precompiled_charsmap"]))


def _split_rule(data: dict[str, Any]) -> str | None:
    """llama.cpp's name of the rule that splits a text for byte-level BPE; None where it knows none."""
    if data["model"]["type"] != "BPE" or data["model"].get("byte_fallback"):
        return None
    # llama.cpp composes no characters; Qwen's vocabularies are known to it all the same.
    if any(part["type"] != "NFC" for part in _flat(data.get("normalizer"), "normalizers")):
        return None
    parts = list(_flat(data.get("pre_tokenizer"), "pretokenizers"))
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    whole = parts[-1].get("use_regex", True)
    before = parts[:-1]
    if not before:
        return "gpt-2" if whole else None
    if len(before) > 1:
        return None
    if before[0]["type"] == "Digits":
        return "smollm" if whole and before[0].get("individual_digits") else None
    if before[0]["type"] == "Split" and before[0].get("behavior") == "Isolated" and not whole:
        return _SPLITS.get(before[0]["pattern"].get("Regex", ""))
    return None


def _types(data: dict[str, Any], checkpoint: Checkpoint) -> list[gguf.TokenType]:
    """What every row of the embedding matrix is: a piece, a special token, a byte or without a token."""
    added = {entry["id"]: entry for entry in data.get("added_tokens", [])}
    vocabulary = data["model"]["vocab"]
    known = set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
    bytes_fall_back = data["model"].get("byte_fallback", False)
    types = []
    for index, token in enumerate(checkpoint.vocabulary):
        if token == checkpoint.unknown and data["model"]["type"] == "Unigram":
            kind = gguf.TokenType.UNKNOWN
        elif index in added:
            kind = gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED
        elif token not in known:
            kind = gguf.TokenType.UNUSED
        elif bytes_fall_back and len(token) == 6 and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        types.append(kind)
    return types


def _merge(merge: Any) -> str:
    """A merge as "first second"; tokenizer.json has it so or as a pair."""
    return merge if isinstance(merge, str) else " ".join(merge)


def _flat(part: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """A step of tokenizer.json and, if it is a sequence, all of its steps."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for step in part[inner]:
            yield from _flat(step, inner)
    else:
        yield part
