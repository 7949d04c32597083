"""Merging an adapter changes no number, and what cannot be merged is refused with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from convert import merge
from convert.__main__ import main
from convert.bundling import convert_to_ctranslate2
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.merge import merge_lora
from r2d_edge.bundle import Decoding
from r2d_edge.engines.transformers import transformers_engine
from r2d_edge.label_scores import score_labels
from r2d_edge.task import PromptEncoder, Task
from tests.tiny_models import TEXTS

Tiny = Callable[[str], Path]


def with_adapter(base: Path, folder: Path, **options: Any) -> Any:
    """The base with a random, not a zero, adapter, which is also written to `folder`."""
    task = Task.from_json(json.loads((base / "r2d_task.json").read_text(encoding="utf-8")))
    causal = task.template is not None
    model = (AutoModelForCausalLM if causal else AutoModelForSeq2SeqLM).from_pretrained(base)
    kind = "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind, **options)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapted.save_pretrained(folder)
    return adapted.eval()


def label_scores(model: Any, folder: Path) -> Any:
    task = Task.from_json(json.loads((folder / "r2d_task.json").read_text(encoding="utf-8")))
    encoder = PromptEncoder.from_file(folder / "tokenizer.json", task)
    engine = transformers_engine(model, encoder)
    return score_labels(engine, encoder, [encoder.predict(text).ids for text in TEXTS[1:5]])


@pytest.mark.parametrize("shape", ["llama", "llama-untied", "t5-tied", "bart"])
def test_the_merged_checkpoint_is_the_base_with_its_adapter(shape: str, tiny: Tiny, tmp_path: Path) -> None:
    adapted = with_adapter(tiny(shape), tmp_path / "adapter")
    steps: list[str] = []
    result = merge_lora(str(tiny(shape)), tmp_path / "adapter", tmp_path / "merged", progress=steps.append)
    assert result.measured <= 1e-4
    assert result.effect > 0.1  # the comparison is of models that differ
    assert (result.rows, len(steps)) == (16, 3)
    kind = type(adapted.get_base_model())
    merged = kind.from_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "r2d_task.json").read_bytes() == (tiny(shape) / "r2d_task.json").read_bytes()
    expected = label_scores(adapted, tiny(shape))
    assert np.abs(label_scores(merged, tmp_path / "merged") - expected).max() < 1e-4
    assert np.abs(label_scores(kind.from_pretrained(tiny(shape)), tiny(shape)) - expected).max() > 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_a_peft_model_answers_as_its_merged_self(tiny: Tiny, tmp_path: Path) -> None:
    adapted = with_adapter(tiny("llama-untied"), tmp_path / "adapter")
    merge_lora(str(tiny("llama-untied")), tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    task = Task.from_json(json.loads((tmp_path / "merged" / "r2d_task.json").read_text(encoding="utf-8")))
    encoder = PromptEncoder.from_file(tmp_path / "merged" / "tokenizer.json", task)
    prompts = [encoder.explain(text, "urgent").ids for text in TEXTS[1:4]]
    one, other = (
        transformers_engine(model, encoder).generate(prompts, max_tokens=10, decoding=Decoding(1, 1.3, 3))
        for model in (adapted, merged)
    )
    assert one == other
    assert len({tuple(ids) for ids in one}) == 3


def test_a_merged_checkpoint_becomes_a_bundle(tiny: Tiny, tmp_path: Path) -> None:
    with_adapter(tiny("llama"), tmp_path / "adapter", use_rslora=True, modules_to_save=["lm_head"])
    merge_lora(str(tiny("llama")), tmp_path / "adapter", tmp_path / "merged")
    options = ConversionOptions(quantization="float32")
    result = convert_to_ctranslate2(tmp_path / "merged", tmp_path / "bundle", options)
    assert result.parity.labels.value <= 1e-3


def test_side_files_come_from_the_adapters_checkpoint_first(own: Tiny, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = own("llama")
    task = json.loads((checkpoint / "r2d_task.json").read_text(encoding="utf-8"))
    task["limits"]["rationale"] = 16
    (checkpoint / "r2d_task.json").write_text(json.dumps(task), encoding="utf-8")
    (checkpoint / "r2d_provenance.json").write_text('{"method": "r2d"}', encoding="utf-8")
    with_adapter(tiny("llama"), checkpoint / "adapter")
    merge_lora(str(tiny("llama")), checkpoint / "adapter", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "r2d_task.json").read_text(encoding="utf-8")) == task
    provenance = json.loads((tmp_path / "merged" / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["method"] == "r2d"
    assert provenance["merge"]["base"] == "llama"
    assert str(tmp_path) not in json.dumps(provenance)


def write_gguf(checkpoint: Path, path: Path) -> None:
    """The tiny Llama as a float32 GGUF file, with its tokenizer."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    tokens += [f"<unused_{index}>" for index in range(len(tokens), config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        stem, suffix = name.rsplit(".", 1)
        array = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            # GGUF keeps the rotary halves interleaved.
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_may_be_the_base_also_inside_a_package(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_llama_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    write_gguf(tiny("llama"), package / "tiny.gguf")
    adapted = with_adapter(tiny("llama"), tmp_path / "adapter")
    shutil.copyfile(tiny("llama") / "r2d_task.json", tmp_path / "adapter" / "r2d_task.json")
    shutil.copyfile(tiny("llama") / "tokenizer.json", tmp_path / "adapter" / "tokenizer.json")
    expected = label_scores(adapted, tiny("llama"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    for number, base in enumerate((str(package / "tiny.gguf"), "package:tiny-llama-weights")):
        output = tmp_path / f"merged{number}"
        merge_lora(base, tmp_path / "adapter", output)
        merged = AutoModelForCausalLM.from_pretrained(output)
        assert np.abs(label_scores(merged, output) - expected).max() < 1e-3
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    merge_lora(base, tmp_path / "adapter", tmp_path / "merged2")
    assert np.abs(label_scores(merged, tmp_path / "merged2") - expected).max() < 1e-3


def refused(base: Path | str, adapter: Path, output: Path, **options: Any) -> str:
    before = sorted(output.parent.iterdir())
    with pytest.raises(ConversionError, match="cannot be merged") as caught:
        merge_lora(str(base), adapter, output, **options)
    assert sorted(output.parent.iterdir()) == before
    return "; ".join(caught.value.reasons)


def test_what_cannot_be_merged_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    good = tmp_path / "good"
    with_adapter(tiny("llama"), good)
    output = tmp_path / "merged"

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "adapter_config.json is missing" in refused(tiny("llama"), empty, output)
    pickled = damaged("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "pickled adapters are not read" in refused(tiny("llama"), pickled, output)
    other = damaged("other")
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}), encoding="utf-8")
    assert "of type 'IA3'" in refused(tiny("llama"), other, output)
    assert "neither a checkpoint folder" in refused(tmp_path / "nowhere", good, output)
    assert "not installed" in refused("package:no-such-package-here", good, output)


@pytest.mark.parametrize("fault", ["missing", "extra"])
def test_weights_that_do_not_fit_the_base_are_refused(fault: str, tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with_adapter(tiny("llama"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "layers.1" in name and "lora_B" in name)
    odd = name if fault == "missing" else name.replace("layers.1", "layers.7")
    if fault == "extra":
        weights[odd] = weights[name].clone()
    else:
        del weights[name]
    save_file(weights, file, {"format": "pt"})
    assert odd in refused(tiny("llama"), tmp_path / "adapter", tmp_path / "merged")


def test_an_untrained_adapter_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    assert "changes nothing" in refused(tiny("llama"), tmp_path / "adapter", tmp_path / "merged")


def test_an_existing_output_is_replaced_only_when_told_and_only_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    adapter, output = tmp_path / "adapter", tmp_path / "merged"
    with_adapter(tiny("llama"), adapter)
    merge_lora(str(tiny("llama")), adapter, output)
    (output / "mark").touch()
    assert "--force" in refused(tiny("llama"), adapter, output)
    assert (output / "mark").exists()
    merge_lora(str(tiny("llama")), adapter, output, force=True)
    assert not (output / "mark").exists()
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert "not a checkpoint" in refused(tiny("llama"), adapter, papers, force=True)
    assert "holds the checkpoint itself" in refused(tiny("llama"), adapter, adapter, force=True)
    assert "holds the checkpoint itself" in refused(tiny("llama"), adapter, tiny("llama").parent, force=True)


def test_a_wrong_merge_is_noticed_and_leaves_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_adapter(tiny("llama"), tmp_path / "adapter")
    monkeypatch.setattr(peft.tuners.lora.LoraModel, "merge_and_unload", _spoiled(peft.tuners.lora.LoraModel))
    with pytest.raises(ParityError, match="base with the adapter") as caught:
        merge_lora(str(tiny("llama")), tmp_path / "adapter", tmp_path / "merged")
    assert caught.value.measured > merge.BOUND
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def _spoiled(kind: Any) -> Callable[..., Any]:
    right = kind.merge_and_unload

    def merge_and_unload(self: Any, *args: Any, **options: Any) -> Any:
        model = right(self, *args, **options)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.05)
        return model

    return merge_and_unload


def test_the_command(tiny: Tiny, tmp_path: Path) -> None:
    with_adapter(tiny("llama"), tmp_path / "adapter")
    arguments = ["merge-lora", str(tiny("llama")), str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["measured"] <= 1e-3
    again = CliRunner().invoke(main, arguments)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "--force" in again.stderr
