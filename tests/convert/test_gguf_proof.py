"""Exports to GGUF compute what the checkpoints compute, as llama.cpp runs them, and the proof notices where not."""

from __future__ import annotations

import ctypes
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from convert.__main__ import main
from convert.bundling import ConversionResult, convert_to_gguf
from convert.checkpoint import load_model, read_checkpoint
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.gguf.architectures import CORRECTIONS, corrections_for
from convert.gguf.export import AS_IS
from convert.gguf.files import QUANTIZATIONS, measure, quantize, write_model
from convert.parity import GGUF_BOUNDS
from r2d_edge.bundle import GOLDEN, open_bundle
from r2d_edge.engines import EngineOptions, open_engine
from r2d_edge.label_scores import score_labels
from r2d_edge.task import PromptEncoder
from tests.convert.test_gguf import SHAPES, Tiny, write_shape, write_trained
from tests.tiny_models import TEXTS, write_tiny_causal

pytestmark = pytest.mark.gguf

EXACT = 1e-3  # nats; float32 in another order of summation
TABLE = 1e-2  # the same where a GELU is read from llama.cpp's table in half precision
# What rounding costs these models, with room for another processor's arithmetic.
TINY = {"F16": 0.05, "Q8_0": 0.5, "Q6_K": 0.5, "Q5_K_M": 3.0, "Q4_K_M": 3.0}
# The correction, and a model that is wrong without it.
NEEDED_BY = {"t5-output-scale": "t5-tied", "llama-rotary-order": "llama"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    made: dict[str, Path] = {}

    def get(shape: str) -> Path:
        if shape not in made:
            made[shape] = write_shape(shape, tmp_path_factory.mktemp("checkpoint") / shape)
        return made[shape]

    return get


def export(checkpoint: Path, output: Path, quantization: str = "F32", **more: Any) -> ConversionResult:
    return convert_to_gguf(checkpoint, output, ConversionOptions(quantization=quantization), **more)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_same(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    parity = export(shapes(shape), tmp_path / "bundle").parity
    allowed = TABLE if shape in ("t5-untied-gated", "mt5") else EXACT
    assert parity.bound == GGUF_BOUNDS["F32"]
    assert max(parity.labels.value, parity.tokens.value) <= allowed
    assert parity.same_label == parity.rows == 3
    # The comparison is of models that say something: neither flat nor the same for every row.
    assert np.ptp(parity.golden, axis=1).min() > 0.3
    assert np.ptp(parity.golden, axis=0).max() > 0.3


@pytest.mark.parametrize("shape", ["t5-tied", "t5-untied-gated", "llama"])
@pytest.mark.parametrize("quantization", [one for one in QUANTIZATIONS if one != "F32"])
def test_rounded_types_stay_within_their_bound(shape: str, quantization: str, shapes: Tiny, tmp_path: Path) -> None:
    parity = export(shapes(shape), tmp_path / "bundle", quantization).parity
    assert parity.bound == GGUF_BOUNDS[quantization]
    assert 1e-4 < parity.tokens.value < TINY[quantization]


def test_every_correction_has_its_test() -> None:
    assert set(NEEDED_BY) == set(CORRECTIONS)


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
@pytest.mark.parametrize("correction", sorted(CORRECTIONS))
def test_without_a_correction_there_is_no_bundle(
    correction: str, quantization: str, shapes: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(ParityError) as caught:
        export(shapes(NEEDED_BY[correction]), tmp_path / "bundle", quantization, corrections=set())
    assert caught.value.measured > caught.value.bound
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_says_what_it_is(shapes: Tiny, tmp_path: Path) -> None:
    steps: list[str] = []
    result = export(shapes("t5-tied"), tmp_path / "bundle", "Q4_K_M", progress=steps.append)
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert (manifest.engine, manifest.compute_type) == ("llama.cpp", "Q4_K_M")
    assert sorted(name for name in manifest.files if name.startswith("model/")) == ["model/model.gguf"]
    conversion = manifest.extra["provenance"]["conversion"]
    assert conversion["corrections"] == ["t5-output-scale"]
    assert {"gguf", "llama-cpp-python", "transformers", "torch"} <= set(conversion)
    weights = manifest.extra["weights"]
    assert weights == measure(bundle.path("model/model.gguf"), "Q4_K_M").to_json()
    # Rows of 32, 64 and 24 fill no block of 256: all matrices fell back, and four bits are nearly eight.
    assert weights["bits_per_weight"] > 7
    assert set(weights["tensors"]) == {"F16", "F32", "Q5_0", "Q8_0"}
    assert {entry["row"] for entry in weights["fell_back"]} == {24, 32, 64}
    assert any("do not fill whole blocks" in step for step in steps)
    summary = result.to_json()
    assert summary["weights"] == weights
    assert (summary["engine"], summary["sha256"]) == ("llama.cpp", bundle.digest)
    card = bundle.path("README.md").read_text(encoding="utf-8")
    assert "llama.cpp, Q4_K_M" in card
    assert f"| Bits per weight | {weights['bits_per_weight']:.2f}" in card


def test_whole_blocks_get_the_bits_that_were_asked_for(tmp_path: Path) -> None:
    checkpoint = write_tiny_causal(
        tmp_path / "wide", hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32
    )
    read = read_checkpoint(checkpoint)
    write_model(tmp_path / "f32.gguf", read, load_model(read), "F32", corrections_for(read.config), "wide")
    found = {}
    for quantization in ("Q6_K", "Q5_K_M", "Q4_K_M"):
        path = tmp_path / f"{quantization}.gguf"
        quantize(tmp_path / "f32.gguf", path, quantization, threads=1)
        weights = measure(path, quantization)
        assert weights.fell_back == ()
        found[quantization] = weights
    assert found["Q6_K"].bits_per_weight == pytest.approx(6.56, abs=0.1)
    assert 5.5 < found["Q5_K_M"].bits_per_weight < found["Q6_K"].bits_per_weight
    assert 4.5 < found["Q4_K_M"].bits_per_weight < found["Q5_K_M"].bits_per_weight
    assert set(found["Q4_K_M"].tensors) == {"F32", "Q4_K", "Q6_K"}


def test_what_llama_cpp_says_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ConversionError, match=r"llama\.cpp cannot quantize to Q4_K_M: .*quantize"):
        quantize(tmp_path / "broken.gguf", tmp_path / "out.gguf", "Q4_K_M")
    assert capfd.readouterr().err == ""


def scores(bundle: Path) -> Any:
    opened = open_bundle(bundle)
    encoder = PromptEncoder.from_file(opened.path("tokenizer.json"), opened.manifest.task)
    engine = open_engine(opened, encoder, EngineOptions(device="cpu"))
    return score_labels(engine, encoder, [encoder.predict(row["text"]).ids for row in opened.golden()])


def golden(bundle: Path) -> Any:
    lines = (bundle / GOLDEN).read_text(encoding="utf-8").splitlines()
    return np.array([list(json.loads(line)["log_probabilities"].values()) for line in lines])


@pytest.mark.parametrize("shape", ["llama", "t5-tied", "t5-untied-gated"])
def test_an_adapter_merged_and_kept_apart_is_the_same_model(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    trained = write_trained(shapes(shape), tmp_path / "trained")
    merged = export(trained, tmp_path / "merged")
    apart = export(trained, tmp_path / "apart", keep_adapter=True)
    assert "adapter" not in merged.extra
    assert apart.extra["adapter"]["base"] == shape
    assert apart.extra["adapter"]["rank"] == 4
    assert merged.parity.tokens.value < TABLE
    assert apart.parity.tokens.value < TABLE
    files = open_bundle(tmp_path / "apart").manifest.files
    assert {"model/model.gguf", "model/adapter.gguf"} <= set(files)
    assert np.abs(golden(tmp_path / "apart") - golden(tmp_path / "merged")).max() < TABLE
    assert np.abs(scores(tmp_path / "apart") - golden(tmp_path / "apart")).max() < 1e-4
    # The adapter is not for nothing: added to what it was merged into, it makes another model.
    with pytest.raises(ParityError):  # twice is not once
        export(trained, tmp_path / "wrong", keep_adapter=True, base=str(trained))
    assert not (tmp_path / "wrong").exists()


def test_two_stages_of_adapters_beside_the_first_base(shapes: Tiny, tmp_path: Path) -> None:
    first = write_trained(shapes("llama"), tmp_path / "first")
    second = write_trained(first, tmp_path / "second")
    result = export(second, tmp_path / "bundle", keep_adapter=True, base=str(shapes("llama")))
    assert result.extra["adapter"]["rank"] == 8
    assert len(result.extra["adapter"]["sha256"]) == 2
    assert result.parity.tokens.value < EXACT


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_K_M"])
def test_a_base_that_is_a_gguf_file_is_taken_as_it_is(quantization: str, shapes: Tiny, tmp_path: Path) -> None:
    """The adapter was trained on what the file holds: nothing is rounded but activations."""
    from transformers import AutoModelForCausalLM

    read = read_checkpoint(shapes("llama"))
    write_model(tmp_path / "f32.gguf", read, load_model(read), "F32", corrections_for(read.config), "base")
    package = tmp_path / "package"
    package.mkdir()
    quantize(tmp_path / "f32.gguf", package / "base.gguf", quantization, threads=1)
    base = tmp_path / "base"
    shutil.copytree(shapes("llama"), base)
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file="base.gguf")
    model.is_quantized, model.hf_quantizer = False, None
    del model.config.quantization_config
    model.save_pretrained(base)
    trained = write_trained(base, tmp_path / "trained")
    result = export(trained, tmp_path / "bundle", AS_IS, keep_adapter=True, base=str(package / "base.gguf"))
    assert result.compute_type == quantization
    assert result.extra["adapter"]["base"] == "base.gguf"
    assert (tmp_path / "bundle" / "model" / "model.gguf").read_bytes() == (package / "base.gguf").read_bytes()
    assert result.extra["weights"]["fell_back"] == []
    assert result.parity.labels.value < 0.2
    again = export(trained, tmp_path / "whole", "F32", keep_adapter=True, base=str(package / "base.gguf"))
    assert again.parity.tokens.value < EXACT


def test_a_base_of_another_shape_is_refused(shapes: Tiny, tmp_path: Path) -> None:
    trained = write_trained(shapes("llama"), tmp_path / "trained")
    other = write_tiny_causal(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(ConversionError, match="num_hidden_layers 1 for 2"):
        export(trained, tmp_path / "bundle", keep_adapter=True, base=str(other))
    assert not (tmp_path / "bundle").exists()


def native_ids(path: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp's own tokenizer makes of texts."""
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode("utf-8"), parameters)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    rows = []
    for text in texts:
        raw = text.encode("utf-8")
        ids = (llama_cpp.llama_token * 512)()
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, 512, False, False)
        rows.append(list(ids[:count]))
    llama_cpp.llama_model_free(model)
    return rows


@pytest.mark.parametrize("shape", ["llama", "t5-tied"])
def test_llama_cpp_reads_the_vocabulary_as_we_do(shape: str, shapes: Tiny, tmp_path: Path) -> None:
    read = read_checkpoint(shapes(shape))
    write_model(tmp_path / "model.gguf", read, load_model(read), "F32", corrections_for(read.config), "tiny")
    texts = list(TEXTS[:-1])
    assert native_ids(tmp_path / "model.gguf", texts) == [read.encoder.text_ids(text) for text in texts]


def test_a_vocabulary_of_no_known_kind_serves_as_well(tmp_path: Path) -> None:
    checkpoint = write_shape("llama", tmp_path / "llama")
    data = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "Lowercase"}
    (checkpoint / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert export(checkpoint, tmp_path / "bundle").parity.tokens.value < EXACT


def test_zip_and_force(shapes: Tiny, tmp_path: Path) -> None:
    options = ConversionOptions(quantization="Q8_0", as_zip=True)
    convert_to_gguf(shapes("llama"), tmp_path / "bundle.zip", options)
    assert np.abs(scores(tmp_path / "bundle.zip")).max() > 0
    with pytest.raises(ConversionError, match="--force"):
        convert_to_gguf(shapes("llama"), tmp_path / "bundle.zip", options)
    convert_to_gguf(shapes("llama"), tmp_path / "bundle.zip", replace(options, force=True))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.zip"]


def test_the_command(shapes: Tiny, tmp_path: Path) -> None:
    arguments = ["gguf", str(shapes("llama")), "-o", str(tmp_path / "bundle"), "--quantization", "Q5_K_M"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["compute_type"] == "Q5_K_M"
    assert summary["weights"]["fell_back"]
    assert "bits per weight" in done.stderr
    failed = CliRunner().invoke(main, [*arguments, "--force", "--bound", "1e-12"])
    assert failed.exit_code == 5
    refused = CliRunner().invoke(main, [*arguments, "--force", "--keep-adapter"])
    assert refused.exit_code == 1
    assert "adapter" in refused.stderr


def test_the_log_is_handed_back(shapes: Tiny, tmp_path: Path) -> None:
    """Quantizing listens to llama.cpp's log; who listened before must go on doing so."""
    import llama_cpp

    heard: list[bytes] = []

    @llama_cpp.llama_log_callback
    def listen(level: int, text: bytes, _: Any) -> None:
        heard.append(text)

    before, user = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user))
    llama_cpp.llama_log_set(listen, None)
    try:
        read = read_checkpoint(shapes("llama"))
        write_model(tmp_path / "f32.gguf", read, load_model(read), "F32", corrections_for(read.config), "tiny")
        quantize(tmp_path / "f32.gguf", tmp_path / "out.gguf", "Q6_K", threads=1)
        assert heard == []
        native_ids(tmp_path / "out.gguf", ["a"])
        assert heard
    finally:
        llama_cpp.llama_log_set(before, user)
