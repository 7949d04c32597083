"""What is written as GGUF: every tensor, its shape and type, the vocabulary, the adapter; without llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from convert.bundling import convert_to_gguf
from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.commands.gguf import QUANTIZATIONS as OFFERED
from convert.errors import ConversionError
from convert.extras import ConversionOptions
from convert.gguf.adapter import Lora, find, write_adapter
from convert.gguf.architectures import CORRECTIONS, corrections_for, unsupported
from convert.gguf.export import AS_IS
from convert.gguf.files import QUANTIZATIONS, Fallback, file_type, measure, write_model
from convert.golden import sample_rows
from convert.parity import GGUF_BOUNDS, bound_of
from tests.convert.test_merge import with_adapter
from tests.tiny_models import TEXTS, write_tiny_bart, write_tiny_causal, write_tiny_t5

Tiny = Callable[[str], Path]

T5 = {"relative_attention_max_distance": 128}  # llama.cpp knows no other
SHAPES: dict[str, Callable[[Path], Path]] = {
    "t5-tied": lambda folder: write_tiny_t5(folder, **T5),
    "t5-untied-gated": lambda folder: write_tiny_t5(folder, tied=False, gated=True, **T5),
    "t5-other-epsilon": lambda folder: write_tiny_t5(folder, layer_norm_epsilon=0.05, **T5),
    "t5-shallow": lambda folder: write_tiny_t5(folder, num_decoder_layers=1, **T5),
    "mt5": lambda folder: write_tiny_t5(folder, tied=False, gated=True, mt5=True, **T5),
    "llama": write_tiny_causal,
    "llama-untied": lambda folder: write_tiny_causal(folder, tied=False),
    "llama-biased": lambda folder: write_tiny_causal(folder, attention_bias=True, mlp_bias=True, rms_norm_eps=0.05),
    "llama-linear-rope": lambda folder: write_tiny_causal(
        folder, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "qwen2": lambda folder: write_tiny_causal(folder, "Qwen2", tied=False, rms_norm_eps=0.05),
    "qwen3": lambda folder: write_tiny_causal(folder, "Qwen3", head_dim=12),
}


def write_shape(shape: str, folder: Path) -> Path:
    """A tiny checkpoint with a few golden rows."""
    SHAPES[shape](folder)
    lines = [json.dumps({"id": row.id, "text": row.text}) + "\n" for row in sample_rows()[:3]]
    (folder / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_trained(base: Path, folder: Path, **options: Any) -> Path:
    """A checkpoint as training with LoRA leaves it: merged weights, and the adapter by itself."""
    folder.mkdir(parents=True)
    adapted = with_adapter(base, folder / "adapter", **options)
    adapted.merge_and_unload().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "r2d_task.json", "golden.jsonl"):
        if (base / name).is_file():
            (folder / name).write_bytes((base / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Tiny checkpoints that llama.cpp can run, each made once; not to be changed."""
    made: dict[str, Path] = {}

    def get(shape: str) -> Path:
        if shape not in made:
            made[shape] = write_shape(shape, tmp_path_factory.mktemp("checkpoint") / shape)
        return made[shape]

    return get


def written(checkpoint: Path, path: Path, quantization: str = "F32") -> tuple[Checkpoint, Any, gguf.GGUFReader]:
    """The checkpoint, its network and the file that was made of them."""
    read = read_checkpoint(checkpoint)
    model = load_model(read)
    write_model(path, read, model, quantization, corrections_for(read.config), "tiny")
    return read, model, gguf.GGUFReader(path)


def tensor(reader: gguf.GGUFReader, name: str) -> Any:
    found = next(tensor for tensor in reader.tensors if tensor.name == name)
    return gguf.quants.dequantize(found.data, found.tensor_type)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@pytest.mark.parametrize("shape", ["llama", "llama-untied", "qwen2"])  # Qwen3's head width it does not read
def test_another_reader_finds_the_same_decoder(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    """transformers reads GGUF on its own: names, shapes, the rotary order and the vocabulary must all be right."""
    _, model, _ = written(shapes(shape), tmp_path / "model.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = (network(input_ids=ids).logits for network in (model, theirs))
    assert float(expected.std()) > 0.5
    assert float((expected - found).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", ["t5-tied", "t5-untied-gated", "t5-shallow", "mt5"])
def test_every_weight_of_a_t5_is_written_under_its_name(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    read, model, reader = written(shapes(shape), tmp_path / "model.gguf")
    parts = {"SelfAttention": "attn", "EncDecAttention": "cross_attn"}
    expected = {"token_embd.weight": model.shared.weight}
    for side, prefix in (("encoder", "enc"), ("decoder", "dec")):
        expected[f"{prefix}.output_norm.weight"] = model.get_submodule(side).final_layer_norm.weight
        for number, block in enumerate(model.get_submodule(side).block):
            name = f"{prefix}.blk.{number}"
            for layer in block.layer:
                for part, theirs in parts.items():
                    if not hasattr(layer, part):
                        continue
                    attention = getattr(layer, part)
                    expected[f"{name}.{theirs}_norm.weight"] = layer.layer_norm.weight
                    expected |= {f"{name}.{theirs}_{x}.weight": getattr(attention, x).weight for x in "qkvo"}
                    if attention.has_relative_attention_bias:
                        expected[f"{name}.{theirs}_rel_b.weight"] = attention.relative_attention_bias.weight
            feed = block.layer[-1].DenseReluDense
            expected[f"{name}.ffn_norm.weight"] = block.layer[-1].layer_norm.weight
            expected[f"{name}.ffn_down.weight"] = feed.wo.weight
            if read.config.is_gated_act:
                expected[f"{name}.ffn_gate.weight"] = feed.wi_0.weight
                expected[f"{name}.ffn_up.weight"] = feed.wi_1.weight
            else:
                expected[f"{name}.ffn_up.weight"] = feed.wi.weight
    head = model.lm_head.weight * (read.config.d_model**-0.5 if shape in ("t5-tied", "t5-shallow") else 1)
    expected["output.weight"] = head
    assert {found.name for found in reader.tensors} == set(expected)
    for name, weight in expected.items():
        assert np.array_equal(tensor(reader, name), weight.detach().numpy()), name
    assert value(reader, "t5.decoder_start_token_id") == 0
    assert value(reader, "t5.block_count") == read.config.num_layers
    assert value(reader, "t5.decoder_block_count") == read.config.num_decoder_layers
    assert value(reader, "t5.attention.key_length") == read.config.d_kv
    assert value(reader, "t5.attention.relative_buckets_count") == 8
    assert value(reader, "t5.attention.layer_norm_rms_epsilon") == pytest.approx(read.config.layer_norm_epsilon)


def test_a_tied_llama_has_no_second_matrix(shapes: Tiny, tmp_path: Path) -> None:
    for shape, expected in (("llama", False), ("llama-untied", True)):
        _, _, reader = written(shapes(shape), tmp_path / f"{shape}.gguf")
        assert any(found.name == "output.weight" for found in reader.tensors) is expected


def test_the_rotary_settings_are_written(shapes: Tiny, tmp_path: Path) -> None:
    _, _, reader = written(shapes("llama-linear-rope"), tmp_path / "model.gguf")
    assert value(reader, "llama.rope.freq_base") == 10_000
    assert value(reader, "llama.rope.scaling.type") == "linear"
    assert value(reader, "llama.rope.scaling.factor") == 4
    _, _, reader = written(shapes("llama"), tmp_path / "other.gguf")
    assert value(reader, "llama.rope.freq_base") == 100_000
    assert value(reader, "llama.rope.scaling.type") is None


@pytest.mark.parametrize("shape", ["t5-tied", "llama"])
def test_eight_bits_are_near_and_say_what_they_are(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    _, _, whole = written(shapes(shape), tmp_path / "whole.gguf")
    _, _, reader = written(shapes(shape), tmp_path / "model.gguf", "Q8_0")
    bits = elements = 0
    for found in reader.tensors:
        expected, got = (tensor(one, found.name) for one in (whole, reader))
        if len(expected.shape) == 1 or "rel_b" in found.name:
            assert np.array_equal(expected, got)
            bits += 32 * expected.size
        elif expected.shape[1] % 32:
            # Three heads of eight: a row of 24 fills no block of 32.
            assert found.tensor_type == gguf.GGMLQuantizationType.F16
            bits += 16 * expected.size
        else:
            blocks = np.abs(expected).reshape(-1, 32).max(axis=1, keepdims=True)
            assert (np.abs(expected - got).reshape(-1, 32) <= blocks * (0.5 / 127 + 2**-11)).all()
            bits += 34 * 8 * expected.size // 32
        elements += expected.size
    weights = measure(tmp_path / "model.gguf", "Q8_0")
    assert weights.bits_per_weight == pytest.approx(bits / elements)
    assert sum(weights.tensors.values()) == len(reader.tensors)
    assert file_type(tmp_path / "model.gguf") == "Q8_0"
    if shape == "llama":
        assert weights.fell_back == ()
    else:
        names = ("dec.blk.*.attn_o.weight", "dec.blk.*.cross_attn_o.weight", "enc.blk.*.attn_o.weight")
        assert weights.fell_back == tuple(Fallback(name, 24, "F16", 2) for name in names)
        assert "6 tensors are F16" in weights.said()
        assert weights.to_json()["fell_back"][0] == {
            "tensor": names[0],
            "row": 24,
            "type": "F16",
            "count": 2,
        }


def test_half_precision_keeps_vectors_whole(shapes: Tiny, tmp_path: Path) -> None:
    _, _, reader = written(shapes("llama"), tmp_path / "model.gguf", "F16")
    kinds = {len(found.shape): found.tensor_type.name for found in reader.tensors}
    assert kinds == {1: "F32", 2: "F16"}
    assert measure(tmp_path / "model.gguf", "F16").fell_back == ()


def test_a_unigram_vocabulary_is_written_with_its_scores(shapes: Tiny, tmp_path: Path) -> None:
    read, _, reader = written(shapes("t5-tied"), tmp_path / "model.gguf")
    model = json.loads((shapes("t5-tied") / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert value(reader, "tokenizer.ggml.model") == "t5"
    assert tokens == list(read.vocabulary)
    assert len(tokens) == read.config.vocab_size == len(model["vocab"]) + 4 + 9
    scores = value(reader, "tokenizer.ggml.scores")
    assert scores[: len(model["vocab"])] == pytest.approx([score for _, score in model["vocab"]])
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:4] == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.NORMAL]
    assert types[-10:] == [gguf.TokenType.CONTROL, *[gguf.TokenType.UNUSED] * 9]
    assert value(reader, "tokenizer.ggml.eos_token_id") == 1
    assert value(reader, "tokenizer.ggml.unknown_token_id") == 2


def change_tokenizer(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    change(data)
    (checkpoint / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUT = {**BYTES, "use_regex": False}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ([BYTES], "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTES], "smollm"),
        ([{"type": "Digits", "individual_digits": False}, BYTES], None),
        ([split_by(QWEN), CUT], "qwen2"),
        ([split_by(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), CUT], "llama-bpe"),
        ([split_by(r"\w+"), CUT], None),
        ([{"type": "Punctuation", "behavior": "Isolated"}, BYTES], None),
        ([{**BYTES, "add_prefix_space": True}], None),
    ],
)
def test_merges_are_written_where_llama_cpp_splits_alike(
    steps: list[dict[str, Any]], rule: str | None, tmp_path: Path
) -> None:
    checkpoint = write_tiny_causal(tmp_path / "llama")
    change_tokenizer(checkpoint, lambda data: data.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps}))
    read, _, reader = written(checkpoint, tmp_path / "model.gguf")
    assert value(reader, "llama.vocab_size") == read.config.vocab_size
    if rule is None:
        assert value(reader, "tokenizer.ggml.model") == "no_vocab"
        assert value(reader, "tokenizer.ggml.tokens") is None
        return
    assert value(reader, "tokenizer.ggml.model") == "gpt2"
    assert value(reader, "tokenizer.ggml.pre") == rule
    merges = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert value(reader, "tokenizer.ggml.merges") == [" ".join(merge) for merge in merges]
    assert value(reader, "tokenizer.ggml.tokens") == list(read.vocabulary)
    assert value(reader, "tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert value(reader, "tokenizer.ggml.eos_token_id") == read.encoder.end_id == 2


def test_another_normalizer_leaves_only_the_size(tmp_path: Path) -> None:
    checkpoint = write_tiny_causal(tmp_path / "llama")
    for normalizer, kind in (({"type": "NFC"}, "gpt2"), ({"type": "Lowercase"}, "no_vocab")):
        change_tokenizer(checkpoint, lambda data, chosen=normalizer: data.update(normalizer=chosen))
        _, _, reader = written(checkpoint, tmp_path / f"{kind}.gguf")
        assert value(reader, "tokenizer.ggml.model") == kind


@pytest.mark.parametrize("shape", ["llama", "t5-tied", "t5-untied-gated"])
def test_an_adapter_adds_what_peft_adds(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    """Base file plus adapter file is the merged checkpoint's file, tensor by tensor."""
    trained = write_trained(shapes(shape), tmp_path / "trained")
    reasons: list[str] = []
    base, loras = find(trained, None, reasons)
    assert reasons == []
    assert base is not None
    assert (base.name, base.path, len(loras)) == (shape, shapes(shape), 1)
    read, _, before = written(shapes(shape), tmp_path / "base.gguf")
    _, _, merged = written(trained, tmp_path / "merged.gguf")
    reorder = "llama-rotary-order" in corrections_for(read.config)
    assert write_adapter(tmp_path / "adapter.gguf", read.config, loras, "F32", reorder=reorder) == 4
    adapter = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert value(adapter, "general.type") == "adapter"
    assert value(adapter, "adapter.type") == "lora"
    alpha = value(adapter, "adapter.lora.alpha")
    assert alpha == 8
    names = {found.name.rpartition(".lora_")[0] for found in adapter.tensors}
    changed = set()
    for found in before.tensors:
        expected, got = tensor(merged, found.name), tensor(before, found.name)
        if found.name in names:
            a, b = tensor(adapter, f"{found.name}.lora_a"), tensor(adapter, f"{found.name}.lora_b")
            assert np.abs(got - expected).max() > 0.01
            got = got + alpha / len(a) * b @ a
            changed.add(found.name)
        assert np.abs(got - expected).max() < 1e-5, found.name
    assert changed == names
    a = next(iter(loras[0].a))
    assert np.array_equal(tensor(adapter, gguf_name(read, a) + ".lora_a"), loras[0].a[a])


def gguf_name(read: Checkpoint, module: str) -> str:
    from convert.gguf.architectures import tensor_names

    return str(tensor_names(read.config).get_name(f"{module}.weight", try_suffixes=(".weight",)))


def test_adapters_of_several_ranks_and_scales_become_one(shapes: Tiny, tmp_path: Path) -> None:
    read = read_checkpoint(shapes("llama"))
    random = np.random.default_rng(3)
    both, once = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"

    def lora(rank: int, scale: float, *modules: str) -> Lora:
        a = {module: random.normal(size=(rank, 32)).astype(np.float32) for module in modules}
        b = {module: random.normal(size=(64, rank)).astype(np.float32) for module in modules}
        return Lora(a, b, scale, "")

    loras = [lora(2, 0.5, both), lora(3, 4.0, both, once)]
    assert write_adapter(tmp_path / "adapter.gguf", read.config, loras, "F32", reorder=True) == 5
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    alpha = value(reader, "adapter.lora.alpha")
    for module, name in ((both, "blk.0.ffn_up.weight"), (once, "blk.1.ffn_up.weight")):
        a, b = tensor(reader, f"{name}.lora_a"), tensor(reader, f"{name}.lora_b")
        expected = sum(one.scale * one.b[module] @ one.a[module] for one in loras if module in one.a)
        assert alpha / len(a) * b @ a == pytest.approx(expected, abs=1e-4)
    write_adapter(tmp_path / "half.gguf", read.config, loras, "Q8_0", reorder=True)
    assert {found.tensor_type.name for found in gguf.GGUFReader(tmp_path / "half.gguf").tensors} == {"F16"}


def test_the_adapters_between_checkpoint_and_base_are_found(shapes: Tiny, tmp_path: Path) -> None:
    first = write_trained(shapes("llama"), tmp_path / "first")
    second = write_trained(first, tmp_path / "second")
    reasons: list[str] = []
    near, one = find(second, None, reasons)
    far, two = find(second, str(shapes("llama")), reasons)
    assert reasons == []
    assert near is not None
    assert far is not None
    assert (near.name, len(one)) == ("first", 1)
    assert (far.name, len(two)) == ("llama", 2)
    assert two[0].sha256 == one[0].sha256
    assert two[1].sha256 == find(first, None, reasons)[1][0].sha256


def test_a_base_read_from_a_gguf_file_is_found_again(shapes: Tiny, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    written(shapes("llama"), tmp_path / "package" / "base.gguf")
    trained = write_trained(shapes("llama"), tmp_path / "trained")
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "package")
    (trained / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    reasons: list[str] = []
    base, _ = find(trained, None, reasons)
    assert reasons == []
    assert base is not None
    assert (base.name, base.path) == ("base.gguf", tmp_path / "package" / "base.gguf")


def refused(checkpoint: Path, output: Path, quantization: str = "Q8_0", **more: Any) -> str:
    before = sorted(output.parent.iterdir())
    with pytest.raises(ConversionError) as caught:
        convert_to_gguf(checkpoint, output, ConversionOptions(quantization=quantization), **more)
    assert sorted(output.parent.iterdir()) == before
    return "; ".join(caught.value.reasons)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_tiny_bart, "llama.cpp has no such network"),
        (lambda folder: write_tiny_causal(folder, "Gemma"), "'gemma' is not written as GGUF"),
        (lambda folder: write_tiny_causal(folder, "Qwen3", attention_bias=True), "attention_bias"),
        (lambda folder: write_tiny_t5(folder, **{**T5, "relative_attention_max_distance": 64}), "always takes 128"),
        (lambda folder: write_tiny_t5(folder, feed_forward_proj="gelu_new", **T5), "llama.cpp takes relu"),
        (lambda folder: write_tiny_t5(folder, feed_forward_proj="gated-silu", **T5), "llama.cpp takes gelu_new"),
        (lambda folder: write_tiny_t5(folder, num_decoder_layers=3, **T5), "no place for more"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(write: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    assert reason in refused(write(tmp_path / "checkpoint"), tmp_path / "bundle")


def test_every_reason_is_said_at_once(tmp_path: Path) -> None:
    checkpoint = write_tiny_bart(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "golden.jsonl").write_text("no json\n", encoding="utf-8")
    said = refused(checkpoint, tmp_path / "bundle", "Q3_K", keep_adapter=True)
    for reason in ("no such network", "'Q3_K' is not supported", "not an adapter as PEFT", "no JSON", "safetensors is"):
        assert reason in said


def test_without_llama_cpp_python_the_extra_is_named(
    shapes: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else known(name, *rest)
    )
    assert "pip install 'r2d-edge[gguf]'" in refused(shapes("llama"), tmp_path / "bundle", "Q4_K_M")


def test_only_plain_lora_is_kept_apart(shapes: Tiny, tmp_path: Path) -> None:
    dora = write_trained(shapes("llama"), tmp_path / "dora", use_dora=True)
    assert "use_dora is not supported" in refused(dora, tmp_path / "bundle", keep_adapter=True)
    plain = tmp_path / "plain"
    model = AutoModelForSeq2SeqLM.from_pretrained(shapes("t5-tied"))
    head = peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="SEQ_2_SEQ_LM")
    peft.get_peft_model(model, head).save_pretrained(plain / "adapter")
    assert "belongs to no linear layer of a block" in refused(plain, tmp_path / "bundle", keep_adapter=True)
    assert "is not installed" in refused(dora, tmp_path / "bundle", keep_adapter=True, base="package:no-such-package")
    assert "--base goes with --keep-adapter" in refused(shapes("llama"), tmp_path / "bundle", base="x")
    assert "as-is is for a base" in refused(shapes("llama"), tmp_path / "bundle", AS_IS)


def test_the_command_offers_what_the_export_can() -> None:
    assert (*QUANTIZATIONS, AS_IS) == OFFERED
    assert set(GGUF_BOUNDS) == set(QUANTIZATIONS)
    assert bound_of("Q4_1") == GGUF_BOUNDS["Q4_K_M"]


def test_only_what_a_model_needs_is_put_right(shapes: Tiny) -> None:
    needed = {shape: set(corrections_for(read_checkpoint(shapes(shape)).config)) for shape in SHAPES}
    assert set().union(*needed.values()) == set(CORRECTIONS)
    assert needed["t5-tied"] == {"t5-output-scale"}
    assert needed["t5-untied-gated"] == needed["mt5"] == needed["qwen2"] == set()
    assert needed["llama"] == {"llama-rotary-order"}


def test_what_cannot_be_read_is_left_to_the_reader() -> None:
    assert unsupported(None, None) == []
    assert unsupported("t5", None) == []


def test_writing_needs_no_llama_cpp() -> None:
    code = "import sys, convert.gguf.export, convert.gguf.files; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


def test_texts_have_something_to_encode(shapes: Tiny) -> None:
    """The proofs compare prompts of many lengths: one is beyond the first exact relative distances."""
    encoder = read_checkpoint(shapes("t5-tied")).encoder
    assert max(len(encoder.predict(text).ids) for text in TEXTS) > 40
