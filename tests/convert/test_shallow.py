"""A shallow student has its teacher's layers, and is its teacher where it has all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from convert import shallow
from convert.__main__ import main
from convert.bundling import convert_to_ctranslate2
from convert.checkpoint import load_model, read_checkpoint
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.rewriting import next_logits
from convert.shallow import make_shallow, spread
from tests.tiny_models import TEXTS, write_tiny_bart, write_tiny_causal, write_tiny_t5

Tiny = Callable[[str], Path]
DEEP: dict[str, Callable[[Path], Path]] = {
    "t5": lambda folder: write_tiny_t5(folder, num_layers=3, num_decoder_layers=5),
    "mt5": lambda folder: write_tiny_t5(folder, tied=False, gated=True, mt5=True, num_layers=3, num_decoder_layers=5),
    "bart": lambda folder: write_tiny_bart(folder, encoder_layers=3, decoder_layers=5),
    "llama": lambda folder: write_tiny_causal(folder, num_hidden_layers=5),
    "gemma3": lambda folder: write_tiny_causal(
        folder,
        "Gemma3",
        num_hidden_layers=5,
        query_pre_attn_scalar=8,
        layer_types=[*["sliding_attention", "full_attention"] * 2, "sliding_attention"],
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": base}
            for kind, base in (("sliding_attention", 500.0), ("full_attention", 20_000.0))
        },
    ),
}


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    made: dict[str, Path] = {}

    def get(shape: str) -> Path:
        if shape not in made:
            made[shape] = DEEP[shape](tmp_path_factory.mktemp("deep") / shape)
        return made[shape]

    return get


def log_probabilities(folder: Path) -> torch.Tensor:
    checkpoint = read_checkpoint(folder)
    prompt = checkpoint.encoder.predict(TEXTS[1]).ids
    answer = checkpoint.encoder.text_ids(TEXTS[2])[:6]
    return next_logits(load_model(checkpoint), checkpoint.start_id, prompt, answer).log_softmax(-1)


def test_layers_are_spread() -> None:
    assert spread(12, 6) == (0, 2, 4, 7, 9, 11)  # DistilBERT's, and Shleifer and Rush's
    assert spread(12, 3) == (0, 6, 11)
    assert spread(6, 2) == (0, 5)
    assert spread(16, 1) == (0,)
    for layers in range(1, 25):
        for wanted in range(1, layers + 1):
            kept = spread(layers, wanted)
            assert list(kept) == sorted(set(kept))
            assert len(kept) == wanted
            assert kept[0] == 0
            assert wanted == 1 or kept[-1] == layers - 1
        assert spread(layers, layers) == tuple(range(layers))
    for wanted in (0, 4, -1):
        with pytest.raises(ValueError, match="from 3"):
            spread(3, wanted)


@pytest.mark.parametrize("shape", DEEP)
def test_with_all_layers_the_student_is_the_teacher(shape: str, deep: Tiny, tmp_path: Path) -> None:
    result = make_shallow(deep(shape), tmp_path / "out", decoder_layers=5)
    assert result.decoder == (0, 1, 2, 3, 4)
    assert result.parameters[0] == result.parameters[1]
    assert result.measured < 1e-5
    assert (log_probabilities(tmp_path / "out") - log_probabilities(deep(shape))).abs().max() < 1e-5


@pytest.mark.parametrize("shape", DEEP)
def test_kept_layers_are_the_teachers_bit_for_bit(shape: str, deep: Tiny, tmp_path: Path) -> None:
    kept = {"decoder_kept": (1, 3, 4)}  # not the first, which has T5's relative positions
    causal = shape in ("llama", "gemma3")
    if not causal:
        kept["encoder_kept"] = (1, 2)
    result = make_shallow(deep(shape), tmp_path / "out", **kept)
    assert result.encoder == (None if causal else (1, 2))
    assert result.measured < 1e-5
    teacher, student = (load_file(path / "model.safetensors") for path in (deep(shape), tmp_path / "out"))
    # Through transformers' own modules, not by the names that the code under test works with.
    big, small = load_model(read_checkpoint(deep(shape))), load_model(read_checkpoint(tmp_path / "out"))
    for stack, layers in stacks(big, causal).items():
        chosen = (1, 3, 4) if stack == "decoder" else (1, 2)
        written = stacks(small, causal)[stack]
        assert len(written) == len(chosen)
        for number, layer in zip(chosen, written, strict=True):
            old = {k: v for k, v in layers[number].state_dict().items() if "relative" not in k}
            new = {k: v for k, v in layer.state_dict().items() if "relative" not in k}
            assert old.keys() == new.keys()
            assert all(torch.equal(old[name], new[name]) for name in old)
    rest = [name for name in teacher if not any(part.isdigit() for part in name.split("."))]
    relative = [name for name in teacher if "relative_attention_bias" in name]
    assert len(relative) == (2 if shape.endswith("t5") else 0)
    assert rest
    assert all(torch.equal(teacher[name], student[name]) for name in [*rest, *relative])
    saved = sum(t.numel() for t in teacher.values()) - sum(t.numel() for t in student.values())
    assert result.parameters[0] - result.parameters[1] == saved > 0
    assert (log_probabilities(tmp_path / "out") - log_probabilities(deep(shape))).abs().max() > 0.1
    if shape == "gemma3":
        assert small.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]


def stacks(model: Any, causal: bool) -> dict[str, Any]:
    if causal:
        return {"decoder": model.model.layers}
    parts = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    return {name: part.block if hasattr(part, "block") else part.layers for name, part in parts.items()}


def test_an_encoder_alone_can_be_cut_where_the_decoders_depth_was_left_unsaid(tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path / "t5", num_layers=3, num_decoder_layers=3)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["num_decoder_layers"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = make_shallow(folder, tmp_path / "out", encoder_layers=1)
    assert (result.encoder, result.decoder) == ((0,), (0, 1, 2))
    written = read_checkpoint(tmp_path / "out").config
    assert (written.num_layers, written.num_decoder_layers) == (1, 3)


@pytest.mark.parametrize("shape", ["t5", "bart", "llama"])
def test_a_student_becomes_a_bundle(shape: str, deep: Tiny, tmp_path: Path) -> None:
    make_shallow(deep(shape), tmp_path / "out", decoder_layers=2)
    options = ConversionOptions(quantization="float32")
    assert convert_to_ctranslate2(tmp_path / "out", tmp_path / "bundle", options).parity.labels.value <= 1e-3


def test_what_travels_with_the_weights(deep: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(deep("bart"), tmp_path / "bart"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}), encoding="utf-8")
    make_shallow(folder, tmp_path / "out", decoder_layers=2, encoder_layers=2)
    out = tmp_path / "out"
    provenance = json.loads((out / "r2d_provenance.json").read_text(encoding="utf-8"))["shallow"]
    assert (provenance["decoder_layers"], provenance["encoder_layers"]) == ([0, 4], [0, 2])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (deep("bart") / name).read_bytes()
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["decoder_layers"], config["encoder_layers"], config["num_hidden_layers"]) == (2, 2, 2)


def test_every_reason_is_said(deep: Tiny, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError) as error:
        make_shallow(deep("bart"), tmp_path / "out", decoder_layers=6, encoder_kept=(2, 1))
    assert len(error.value.reasons) == 3
    for what in ("--force", "6 layers cannot be taken from 5", "ascending numbers from 0 to 2, not 2, 1"):
        assert what in str(error.value)
    for named in ((), (-1, 0), (0, 5), (1, 1)):
        with pytest.raises(ConversionError, match="ascending numbers from 0 to 4"):
            make_shallow(deep("bart"), tmp_path / "new", decoder_kept=named)
    with pytest.raises(ConversionError, match="3 layers are asked for and 2 named"):
        make_shallow(deep("bart"), tmp_path / "new", decoder_layers=3, decoder_kept=(0, 1))
    with pytest.raises(ConversionError, match="llama has no encoder"):
        make_shallow(deep("llama"), tmp_path / "new", encoder_layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_written_where_the_proof_fails(deep: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = shallow._rename

    def swapped(tensors: Any, stacks: Any, kept: Any) -> Any:
        return rename(tensors, stacks, {**kept, "decoder": kept["decoder"][::-1]})

    monkeypatch.setattr(shallow, "_rename", swapped)
    with pytest.raises(ParityError, match="without its other layers"):
        make_shallow(deep("bart"), tmp_path / "out", decoder_layers=2)
    assert list(tmp_path.iterdir()) == []


def test_the_command(deep: Tiny, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["shallow", str(deep("bart")), "-o", str(tmp_path / "out"), *arguments])

    assert run().exit_code == 2
    assert run("--keep", "0,x").exit_code == 2
    done = run("--keep", "0,3", "--encoder-layers", "2")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["decoder"], result["encoder"], result["needs_training"]) == ([0, 3], [0, 2], True)
    assert "must be trained" in done.stderr
    assert run("--decoder-layers", "1").exit_code == 1
    assert run("--decoder-layers", "1", "--force").exit_code == 0
