"""What a conversion writes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import pytest
from click.testing import CliRunner

from convert.__main__ import main
from convert.bundling import convert_to_ctranslate2
from convert.checkpoint import read_checkpoint
from convert.commands.ctranslate2 import QUANTIZATIONS
from convert.ct2 import COMPUTE_TYPES, GPU_COMPUTE_TYPES
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.golden import read_rows, sample_rows
from convert.parity import BOUNDS
from r2d_edge.bundle import Decoding, open_bundle
from r2d_edge.casing import Caser
from r2d_edge.decide import load
from tests.convert.conftest import GOLDEN_ROWS
from tests.tiny_models import TEXTS

Tiny = Callable[[str], Path]


def refused(checkpoint: Path, output: Path, **options: object) -> tuple[str, ...]:
    before = sorted(output.parent.iterdir())
    with pytest.raises(ConversionError) as caught:
        convert_to_ctranslate2(checkpoint, output, ConversionOptions(**options))  # type: ignore[arg-type]
    assert sorted(output.parent.iterdir()) == before
    return caught.value.reasons


def change_config(checkpoint: Path, **fields: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def test_the_bundle_holds_all_that_was_given(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    (checkpoint / "r2d_provenance.json").write_text('{"method": "by hand"}', encoding="utf-8")
    Caser.learn(TEXTS).save(checkpoint / "casing.json")
    files = {
        "golden": '{"id": "g1", "text": "chest pain"}\n\n{"text": "a cut, 2 cm, 39.2 °C"}\n',
        "calibration": '{"temperature": 1.5, "abstain_below": 0.4, "source": "validation", "settings": {"ward": 2.5}}',
        "metrics": '{"macro_f1": 0.5}',
        "card": "# A card\r\nas it is, ü\n",
    }
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(text.encode("utf-8"))
    options = ConversionOptions(
        name="tiny",
        version="1.2.3",
        licence="Apache-2.0",
        decoding=Decoding(2, 1.3, 3, only_numbers_of_the_note=True),
        golden=paths["golden"],
        calibration=paths["calibration"],
        metrics=paths["metrics"],
        card=paths["card"],
    )
    steps: list[str] = []
    result = convert_to_ctranslate2(checkpoint, tmp_path / "bundle", options, progress=steps.append)
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert set(manifest.files) == {
        "README.md",
        "casing.json",
        "golden.jsonl",
        "model/config.json",
        "model/model.bin",
        "model/shared_vocabulary.json",
        "tokenizer.json",
    }
    assert (manifest.name, manifest.version, manifest.engine, manifest.compute_type) == (
        "tiny",
        "1.2.3",
        "ctranslate2",
        "int8",
    )
    assert manifest.decoding == Decoding(2, 1.3, 3, only_numbers_of_the_note=True)
    assert (manifest.calibration.temperature, manifest.calibration.abstain_below) == (1.5, 0.4)
    assert manifest.calibration.settings == {"ward": 2.5}
    assert manifest.extra["licence"] == "Apache-2.0"
    assert manifest.extra["metrics"] == {"macro_f1": 0.5}
    assert manifest.extra["provenance"]["method"] == "by hand"
    conversion = manifest.extra["provenance"]["conversion"]
    assert conversion["ctranslate2"] == ctranslate2.__version__
    assert set(conversion["checkpoint_sha256"]) == {"model.safetensors"}
    assert manifest.extra["parity"] == result.parity.to_json()
    assert manifest.extra["parity"]["rows"] == 2
    assert bundle.path("README.md").read_bytes() == files["card"].encode("utf-8")
    assert [(row["id"], row["text"]) for row in bundle.golden()] == [
        ("g1", "chest pain"),
        ("3", "a cut, 2 cm, 39.2 °C"),
    ]
    assert result.digest == bundle.digest
    assert result.size == sum(path.stat().st_size for path in (tmp_path / "bundle").rglob("*") if path.is_file())
    assert len(steps) == 3
    assert str(tmp_path) not in (tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8")


def test_the_runtime_scores_the_golden_rows_as_the_conversion_did(tiny: Tiny, tmp_path: Path) -> None:
    convert_to_ctranslate2(tiny("t5-untied-gated"), tmp_path / "bundle")
    assert max(load(tmp_path / "bundle").golden_differences()) < 1e-4


def test_the_exported_configuration_frames_no_prompt_again(tiny: Tiny, tmp_path: Path) -> None:
    for shape, start in (("t5-tied", "<pad>"), ("bart", "[CLS]")):
        convert_to_ctranslate2(tiny(shape), tmp_path / shape)
        config = json.loads((tmp_path / shape / "model" / "config.json").read_text(encoding="utf-8"))
        assert (config["add_source_bos"], config["add_source_eos"]) == (False, False)
        assert config["decoder_start_token"] == start


def test_rows_without_a_token_get_names_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny("t5-tied"))
    convert_to_ctranslate2(tiny("t5-tied"), tmp_path / "bundle")
    vocabulary = json.loads((tmp_path / "bundle" / "model" / "shared_vocabulary.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == len(set(vocabulary)) == checkpoint.config.vocab_size
    assert vocabulary.count("<extra_id_0>") == 1
    assert vocabulary[-1].startswith("<unused_")


def test_positions_beyond_the_limits_are_left_out_and_all_within_serve(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    full = json.loads((checkpoint / "r2d_task.json").read_text(encoding="utf-8"))
    sizes = {}
    for limit in (128, 40):
        full["limits"] = {"input": limit, "label": 24, "rationale": 30}
        (checkpoint / "r2d_task.json").write_text(json.dumps(full), encoding="utf-8")
        output = tmp_path / str(limit)
        sizes[limit] = convert_to_ctranslate2(checkpoint, output, ConversionOptions(quantization="float32")).size
    assert sizes[128] - sizes[40] == pytest.approx((128 - 40) * 32 * 4, abs=600)
    decision = load(tmp_path / "40").decide("chest pain " * 50)
    assert decision.truncated
    assert decision.label is not None


def test_zip_holds_the_same_bundle(tiny: Tiny, tmp_path: Path) -> None:
    result = convert_to_ctranslate2(tiny("bart"), tmp_path / "bundle.zip", ConversionOptions(as_zip=True))
    assert zipfile.is_zipfile(tmp_path / "bundle.zip")
    assert open_bundle(tmp_path / "bundle.zip").digest == result.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.zip"]


def test_an_existing_output_is_replaced_only_when_told(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    first = convert_to_ctranslate2(tiny("bart"), output)
    assert "--force" in refused(tiny("bart"), output)[0]
    assert open_bundle(output).digest == first.digest
    second = convert_to_ctranslate2(tiny("bart"), output, ConversionOptions(name="second", force=True))
    assert open_bundle(output).digest == second.digest != first.digest
    assert list(tmp_path.iterdir()) == [output]


def test_force_never_replaces_what_is_no_bundle(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert "not a bundle" in refused(tiny("bart"), folder, force=True)[0]
    assert "not a bundle" in refused(tiny("bart"), folder / "thesis.txt", force=True)[0]
    assert (folder / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    with zipfile.ZipFile(folder / "papers.zip", "w") as archive:
        archive.writestr("thesis.txt", "years of work")
    assert "not a bundle" in refused(tiny("bart"), folder / "papers.zip", force=True, as_zip=True)[0]


def test_the_checkpoint_is_never_the_output(own: Tiny) -> None:
    checkpoint = own("bart")
    for output in (checkpoint, checkpoint.parent):
        with pytest.raises(ConversionError, match="holds the checkpoint"):
            convert_to_ctranslate2(checkpoint, output, ConversionOptions(force=True))
    assert (checkpoint / "model.safetensors").is_file()


def test_a_failed_proof_leaves_nothing_and_keeps_what_was_there(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(ParityError):
        convert_to_ctranslate2(tiny("bart"), output, ConversionOptions(bound=1e-9))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ParityError, match="--token-bound"):
        convert_to_ctranslate2(tiny("bart"), output, ConversionOptions(token_bound=1e-9))
    assert list(tmp_path.iterdir()) == []
    good = convert_to_ctranslate2(tiny("bart"), output)
    with pytest.raises(ParityError):
        convert_to_ctranslate2(tiny("bart"), output, ConversionOptions(bound=1e-9, force=True))
    assert open_bundle(output).digest == good.digest
    assert list(tmp_path.iterdir()) == [output]


def test_pickled_weights_are_refused_unread(own: Tiny, tmp_path: Path) -> None:
    import pickle

    checkpoint = own("bart")
    (checkpoint / "model.safetensors").unlink()
    witness = tmp_path / "witness"

    class _Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (witness,))

    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap()))
    [reason] = refused(checkpoint, tmp_path / "bundle")
    assert "safetensors" in reason
    assert not witness.exists()


def test_weights_that_are_not_all_there_are_refused(own: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = own("bart")
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.decoder.layers.1.fc1.weight"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert "model.decoder.layers.1.fc1.weight" in refused(checkpoint, tmp_path / "bundle")[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2'"),
        ({"model_type": None}, "architecture None"),
        ({"architectures": ["BartForSequenceClassification"]}, "BartForSequenceClassification"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "code of its own"),
        ({"activation_function": "tanh"}, "activation 'tanh'"),
        ({"encoder_attention_heads": 2}, "attention heads"),
        ({"max_position_embeddings": 64}, "64 positions"),
        ({"eos_token_id": 4}, "eos_token_id is 4"),
        ({"vocab_size": 100}, "do not belong together"),
        ({"decoder_start_token_id": 239_000}, "not in the tokenizer"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
    ],
)
def test_unsupported_checkpoints_are_refused(
    changes: dict[str, object], expected: str, own: Tiny, tmp_path: Path
) -> None:
    checkpoint = own("bart")
    change_config(checkpoint, **changes)
    assert any(expected in reason for reason in refused(checkpoint, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ("llama", {"model_type": "mistral"}, "architecture 'mistral'"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("llama", {"head_dim": 16}, "do not add up to hidden_size"),
        ("llama", {"max_position_embeddings": 100}, "128 tokens for prompt and answer"),
        ("llama", {"quantization_config": {"quant_method": "gguf"}}, "quantized already"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope_type 'yarn'",
        ),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, "sliding attention"),
        ("gemma", {"attention_bias": True}, "attention_bias"),
        ("gemma", {"hidden_act": "relu"}, "activation 'relu'"),
        ("gemma3", {"sliding_window": 64}, "sliding window is 64"),
        ("gemma3", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar 256"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ],
)
def test_unsupported_decoder_only_checkpoints_are_refused(
    shape: str, changes: dict[str, object], expected: str, own: Tiny, tmp_path: Path
) -> None:
    checkpoint = own(shape)
    change_config(checkpoint, **changes)
    assert any(expected in reason for reason in refused(checkpoint, tmp_path / "bundle"))


def test_a_template_is_for_decoder_only_models_and_they_need_one(own: Tiny, tmp_path: Path) -> None:
    plain, chat = own("t5-tied"), own("llama")
    tasks = {folder: (folder / "r2d_task.json").read_text(encoding="utf-8") for folder in (plain, chat)}
    (plain / "r2d_task.json").write_text(tasks[chat], encoding="utf-8")
    (chat / "r2d_task.json").write_text(tasks[plain], encoding="utf-8")
    [reason] = refused(plain, tmp_path / "bundle")
    assert "t5 is none" in reason
    [reason] = refused(chat, tmp_path / "bundle")
    assert "must hold a template" in reason


def test_a_template_whose_end_is_no_token_is_refused(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("llama")
    task = json.loads((checkpoint / "r2d_task.json").read_text(encoding="utf-8"))
    task["template"]["end"] = "<end_of_turn>"
    (checkpoint / "r2d_task.json").write_text(json.dumps(task), encoding="utf-8")
    [reason] = refused(checkpoint, tmp_path / "bundle")
    assert "'<end_of_turn>' is not a token" in reason


def test_a_decoder_only_bundle_decides(tiny: Tiny, tmp_path: Path) -> None:
    convert_to_ctranslate2(tiny("llama-untied"), tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert "model/vocabulary.json" in manifest.files
    assert manifest.task.template is not None
    decider = load(tmp_path / "bundle")
    assert max(decider.golden_differences()) < 1e-4
    decision = decider.decide(TEXTS[1])
    assert decision.label in manifest.task.labels.labels
    assert decision.rationale


def test_every_reason_is_said_at_once(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    for name in ("tokenizer.json", "model.safetensors", "r2d_task.json"):
        (checkpoint / name).unlink()
    change_config(checkpoint, auto_map={}, activation_function="tanh")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "calibration").write_text('{"temperature": -1}', encoding="utf-8")
    (tmp_path / "golden").write_text('{"text": ""}\n[]\n', encoding="utf-8")
    reasons = refused(
        checkpoint,
        tmp_path / "bundle",
        quantization="int4",
        calibration=tmp_path / "calibration",
        golden=tmp_path / "golden",
    )
    for expected in (
        "exists",
        "int4",
        "temperature must be a number",
        "line 1 has a blank text; line 2",
        "tokenizer.json is missing",
        "model.safetensors is missing",
        "r2d_task.json is missing",
        "auto_map",
        "activation",
    ):
        assert sum(expected in reason for reason in reasons) == 1, expected


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="with a GPU float16 is proven, not refused")
def test_float16_is_refused_without_a_gpu_to_prove_it_on(tiny: Tiny, tmp_path: Path) -> None:
    for quantization in ("float16", "int8_float16"):
        assert "overflow" in refused(tiny("t5-tied"), tmp_path / "bundle", quantization=quantization)[0]
        reason = refused(tiny("bart"), tmp_path / "bundle", quantization=quantization)[0]
        assert "NVIDIA GPU" in reason
        assert "overflow" not in reason


def test_labels_must_be_writable(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    task = json.loads((checkpoint / "r2d_task.json").read_text(encoding="utf-8"))
    task["labels"] = ["\u4e2d", "urgent", "ürgent", "emergent"]
    task["limits"]["label"] = 1
    (checkpoint / "r2d_task.json").write_text(json.dumps(task), encoding="utf-8")
    reasons = refused(checkpoint, tmp_path / "bundle")
    assert any("cannot be written" in reason for reason in reasons)
    assert any("have the same tokens" in reason for reason in reasons)
    assert any("label limit is 1" in reason for reason in reasons)


def test_an_adapter_and_a_folder_without_weights_are_told_apart(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    (checkpoint / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refused(checkpoint, tmp_path / "bundle")
    (checkpoint / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "merge" in refused(checkpoint, tmp_path / "bundle")[0]


def test_sharded_weights_and_their_faults(own: Tiny, tmp_path: Path) -> None:
    from convert.checkpoint import load_model

    checkpoint = own("bart")
    model = load_model(read_checkpoint(checkpoint))
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="50KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    result = convert_to_ctranslate2(checkpoint, tmp_path / "bundle", ConversionOptions(quantization="float32"))
    provenance = open_bundle(result.output).manifest.extra["provenance"]
    assert len(provenance["conversion"]["checkpoint_sha256"]) == len(shards)
    shards[0].unlink()
    assert shards[0].name in refused(checkpoint, tmp_path / "other")[0]


def test_sample_rows_differ_in_length_and_id() -> None:
    rows = sample_rows()
    assert len(rows) == len({row.id for row in rows}) == len({row.text for row in rows}) == 16
    assert len({len(row.text) for row in rows}) > 10


def test_rows_come_from_the_option_or_the_checkpoint_or_are_built_in(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    counts = []
    for golden in (tmp_path / "golden.jsonl", None, None):
        if golden:
            golden.write_text('{"text": "one row"}\n', encoding="utf-8")
        output = tmp_path / f"bundle{len(counts)}"
        counts.append(convert_to_ctranslate2(checkpoint, output, ConversionOptions(golden=golden)).parity.rows)
        if golden is None:
            (checkpoint / "golden.jsonl").unlink(missing_ok=True)
    assert counts == [1, GOLDEN_ROWS, len(sample_rows())]


def test_golden_files_say_all_their_faults(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"id": 1, "text": "a"}\nno json\n{"id": "1", "text": "b"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 is no JSON.*line 3 repeats id '1'.*line 4"):
        read_rows(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row"):
        read_rows(path)


def test_the_command_offers_what_the_export_can() -> None:
    offered = (*COMPUTE_TYPES, *GPU_COMPUTE_TYPES)
    assert offered == QUANTIZATIONS
    assert set(BOUNDS) == set(offered)


def test_the_command_prints_one_json_line_to_a_pipe(tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    arguments = ["ctranslate2", str(tiny("bart")), "-o", str(output), "--quantization", "float32", "--name", "b"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["sha256"] == open_bundle(output).digest
    assert summary["parity"]["measured"] <= 1e-3
    assert "exporting as float32" in done.stderr

    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert again.stdout == ""
    assert "--force" in again.stderr

    failed = CliRunner().invoke(main, [*arguments, "--force", "--bound", "1e-12"])
    assert failed.exit_code == 5
    assert "not the checkpoint's equal" in " ".join(failed.stderr.split())
