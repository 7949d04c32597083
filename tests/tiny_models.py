"""Tiny models of every supported shape, made in a second, for all tests.

Their weights are random but large enough that logits are far from flat: an error in the network's
wiring shows in the probabilities.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from r2d_edge.task import CTAS_LEVELS, LabelSet, Limits, Task, Template

TEXTS = (
    "explain: predict: given label: resuscitation, emergent, urgent, less urgent, non-urgent, explain:",
    "The patient has chest pain and is short of breath, which makes this emergent.",
    "A sprained ankle with little swelling can wait; the vital signs are normal.",
    "Unresponsive, not breathing, no pulse: resuscitation was started at once.",
    "Fever of 39.2 C for two days, drinking well, no rash, alert and playing.",
    "Abdominal pain since yesterday, vomited twice, guarding on the right side. HR 104, BP 118/76.",
    "Wants a repeat prescription and feels well. Nothing here needs care today.",
    "Sudden weakness of the left arm and slurred speech an hour ago, blood pressure 190/100.",
    "Small cut on the finger, bleeding has stopped, tetanus up to date; less urgent.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:!?()/%<>°'\"+-=",
)

TINY_TASK = Task(LabelSet(CTAS_LEVELS, "ordered"), limits=Limits(input=96, label=24, rationale=32))
PIECES = 240  # of the WordPiece vocabulary, at most
CHAT_TEMPLATE = Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
TINY_CHAT_TASK = Task(TINY_TASK.labels, limits=TINY_TASK.limits, template=CHAT_TEMPLATE)


def unigram_tokenizer(path: Path, sentinels: int = 4) -> int:
    """Writes a T5-like tokenizer.json; returns the number of its tokens.

    Its pieces are counted here instead of trained: the library's Unigram training is not the same twice.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = Counter(f"\u2581{word}" for text in TEXTS for word in text.split())
    characters = Counter(character for word in words.elements() for character in word)
    pieces = [(piece, math.log(count) - 8) for piece, count in sorted(characters.items())]
    pieces += [(piece, math.log(count) - 4) for piece, count in sorted(words.items()) if count > 1]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*specials, *pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokens = [piece for piece, _ in specials] + [f"<extra_id_{index}>" for index in range(sentinels)]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def wordpiece_tokenizer(path: Path) -> int:
    """Writes a BERT-like tokenizer.json; returns the number of its tokens.

    Its pieces are the signs and the commonest words of `TEXTS`. The library's trainer numbers them otherwise every
    time, and with them the networks here would differ.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    signs = sorted({sign for word in words for sign in word})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *signs, *(f"##{sign}" for sign in signs)]
    long = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *long[: PIECES - len(pieces)]])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def byte_bpe_tokenizer(path: Path) -> int:
    """Writes a GPT-like tokenizer.json with a chat's special tokens; returns the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))
    return int(tokenizer.get_vocab_size())


def write_tiny_t5(
    folder: Path, *, tied: bool = True, gated: bool = False, mt5: bool = False, seed: int = 7, **config: Any
) -> Path:
    """Writes a tiny T5 checkpoint: `tied` is v1.0's shape, untied and `gated` v1.1's and Flan's."""
    from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    size = unigram_tokenizer(folder / "tokenizer.json")
    _write_tokenizer_config(folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    settings = {
        # Like the real ones: more embedding rows than tokens, and heads that do not add up to d_model.
        "vocab_size": size + 9,
        "d_model": 32,
        "d_kv": 8,
        "num_heads": 3,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": tied,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.0,
        **config,
    }
    if mt5:
        model = MT5ForConditionalGeneration(MT5Config(**settings))
    else:
        model = T5ForConditionalGeneration(T5Config(**settings))
    _randomize(model, seed)
    # Tied T5 scales its logits by d_model^-0.5 and so has embeddings of scale 1; untied heads do it themselves.
    model.get_input_embeddings().weight.data.mul_(1 / 0.35)
    if not tied:
        _untie(model, seed, 0.3)
    _save(model, folder)
    return folder


def write_tiny_bart(folder: Path, *, seed: int = 7, **config: Any) -> Path:
    """Writes a tiny BART-shaped checkpoint with a WordPiece vocabulary, like the warm-started models."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    size = wordpiece_tokenizer(folder / "tokenizer.json")
    _write_tokenizer_config(
        folder,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )
    settings = {
        "vocab_size": size,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
        **config,
    }
    model = BartForConditionalGeneration(BartConfig(**settings))
    _randomize(model, seed)
    model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=_generator(seed)) * 0.5)
    _save(model, folder)
    return folder


def write_tiny_causal(folder: Path, family: str = "Llama", *, tied: bool = True, seed: int = 7, **config: Any) -> Path:
    """Writes a tiny decoder-only checkpoint: `family` is what transformers' classes are called by."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = byte_bpe_tokenizer(folder / "tokenizer.json")
    _write_tokenizer_config(folder, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    settings = {
        "vocab_size": size + 9,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **config,
    }
    model_class = getattr(transformers, f"{family}ForCausalLM")
    model = model_class(model_class.config_class(**settings))
    _randomize(model, seed)
    if not tied:
        _untie(model, seed, 0.3)
    _save(model, folder, TINY_CHAT_TASK)
    return folder


def write_tiny_encoder(folder: Path, *, layers: int = 2) -> Path:
    """Writes a tiny MPNet-shaped encoder without a head, as sentence encoders come."""
    import torch
    from transformers import MPNetConfig, MPNetModel

    folder.mkdir(parents=True, exist_ok=True)
    size = wordpiece_tokenizer(folder / "tokenizer.json")
    _write_tokenizer_config(folder, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    torch.manual_seed(7)  # transformers' own small weights: this one is trained, not compared
    model = MPNetModel(
        MPNetConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=130,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )
    model.eval().save_pretrained(folder)
    return folder


def gemma3_rope(local: float, whole: float) -> dict[str, Any]:
    """Rotary bases of two layers, one of each kind."""
    kinds = {"sliding_attention": local, "full_attention": whole}
    parameters = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in kinds.items()}
    return {"layer_types": list(kinds), "rope_parameters": parameters}


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _randomize(model: Any, seed: int) -> None:
    """Matrices keep their inputs' scale, embeddings are of 0.35, norms near 1, biases visible."""
    import torch

    generator = _generator(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed" in name or "shared" in name or "lm_head" in name:
                parameter.copy_(noise * 0.35)
            elif "relative_attention_bias" in name:
                parameter.copy_(noise)
            elif parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)


def _untie(model: Any, seed: int, scale: float) -> None:
    import torch

    weight = torch.randn(model.lm_head.weight.shape, generator=_generator(seed + 1)) * scale
    model.lm_head.weight = torch.nn.Parameter(weight)


def _write_tokenizer_config(folder: Path, **specials: str) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save(model: Any, folder: Path, task: Task = TINY_TASK) -> None:
    model.eval().save_pretrained(folder)
    (folder / "r2d_task.json").write_text(json.dumps(task.to_json(), indent=2) + "\n", encoding="utf-8")
