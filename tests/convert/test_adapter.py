"""What is shipped of a checkpoint trained with LoRA: written whole, proven, and only if it is base plus adapter."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from convert.__main__ import main
from convert.adapter import AdapterResult, Smoothing, write_parts
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.golden import sample_rows
from convert.smoothing import smoothing_scales
from r2d_edge.assembly import ASSEMBLY
from r2d_edge.assembly.llama import LlamaBase
from r2d_edge.assembly.parts import ADAPTER, read_parts
from r2d_edge.assembly.store import assemble
from r2d_edge.bundle import GOLDEN
from r2d_edge.decide import Decider
from r2d_edge.engines import EngineOptions
from r2d_edge.integrity.golden import rescore
from r2d_edge.task import PromptEncoder
from tests.tiny_models import TINY_CHAT_TASK
from tests.tiny_parts import GGUF, IMPORT_NAME, PACKAGE, VERSION, add_adapter, load_base, write_checkpoint, write_site

FLOAT32 = ConversionOptions(quantization="float32", name="tiny", licence="Apache-2.0")
EXACT = 1e-3  # nats; float32 in another order of summation


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_golden(
        write_checkpoint(site, tmp_path_factory.mktemp("trained") / "tiny", add_adapter(load_base(site), seed=1))
    )


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)


def with_golden(checkpoint: Path) -> Path:
    rows = [json.dumps({"id": row.id, "text": row.text}) + "\n" for row in sample_rows()[:3]]
    (checkpoint / GOLDEN).write_text("".join(rows), encoding="utf-8")
    return checkpoint


def write(checkpoint: Path, output: Path, options: ConversionOptions = FLOAT32, **more: Any) -> AdapterResult:
    return write_parts(checkpoint, output, options, package=PACKAGE, **more)


def test_what_is_shipped_says_what_it_is(trained: Path, site: Path, tmp_path: Path) -> None:
    result = write(trained, tmp_path / "parts")
    parts = read_parts(tmp_path / "parts")
    manifest = parts.manifest
    assert {path.name for path in parts.folder.iterdir()} == {ASSEMBLY, *manifest.files}
    assert (parts.base.package, parts.base.version, parts.base.file) == (PACKAGE, VERSION, f"{IMPORT_NAME}/{GGUF}")
    assert parts.lora_scale == 2.0
    assert manifest.task == TINY_CHAT_TASK
    assert manifest.extra["licence"] == "Apache-2.0"
    assert manifest.extra["provenance"]["method"] == "random"
    assert manifest.extra["adapter"] == {"lora_scale": 2.0, "rank": 4, "type": "float16", "smoothing": "all"}
    assert manifest.extra["parity"]["bound"] == parts.bound
    assert 0 < manifest.extra["parity"]["measured"] < EXACT
    assert str(tmp_path) not in (parts.folder / ASSEMBLY).read_text(encoding="utf-8")
    assert result.size == sum(path.stat().st_size for path in parts.folder.iterdir())
    assert result.bundle_size > result.size


def test_adapters_of_two_stages_are_shipped_as_one(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    stage1 = write_checkpoint(site, tmp_path / "stage1", add_adapter(load_base(site), seed=1))
    between = AutoModelForCausalLM.from_pretrained(stage1, dtype=torch.float32)
    final = with_golden(write_checkpoint(site, tmp_path / "final", add_adapter(between, seed=2, rank=2)))
    result = write(final, tmp_path / "found")
    assert result.parity.labels.value < EXACT
    assert read_parts(tmp_path / "found").manifest.extra["adapter"]["rank"] == 6
    moved = stage1.rename(tmp_path / "elsewhere")
    with pytest.raises(ConversionError, match="--adapter FOLDER"):
        write(final, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()
    write(final, tmp_path / "named", earlier=[moved / "adapter"])
    assert read_parts(tmp_path / "named").manifest.files == read_parts(tmp_path / "found").manifest.files


def test_a_bfloat16_base_in_training_is_only_rounding(site: Path, tmp_path: Path) -> None:
    model = add_adapter(load_base(site), seed=1)
    rounded = copy.deepcopy(model)
    for name, parameter in rounded.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16().float()
    checkpoint = with_golden(write_checkpoint(site, tmp_path / "tiny", rounded))
    bound = ConversionOptions(quantization="float32", bound=0.5, token_bound=0.5)
    assert write(checkpoint, tmp_path / "parts", bound).parity.labels.value > EXACT


def change_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def change_weights(checkpoint: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    weights[name] = weights[name] * 1.1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: change_config(folder, use_dora=True), "use_dora is not supported"),
        (lambda folder: change_config(folder, bias="all"), "only plain LoRA"),
        (lambda folder: change_config(folder, peft_type="IA3"), "only plain LoRA"),
        (lambda folder: change_config(folder, lora_alpha=16), "not the base with its adapter"),
        (lambda folder: change_weights(folder, "model.norm.weight"), "norm is 0.1 of its norm away"),
        (lambda folder: change_weights(folder, "model.embed_tokens.weight"), "embed_tokens"),
        (lambda folder: shutil.rmtree(folder / "adapter"), "not an adapter as PEFT writes it"),
        (lambda folder: (folder / "r2d_task.json").unlink(), "r2d_task.json"),
        (lambda folder: (folder / "casing.json").write_text("{}", encoding="utf-8"), "casing.json"),
    ],
)
def test_what_is_not_base_plus_adapter_is_refused(
    own: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    damage(own)
    with pytest.raises(ConversionError, match=words):
        write(own, tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_every_reason_is_said_at_once(own: Path, tmp_path: Path) -> None:
    change_config(own, use_dora=True)
    (own / "config.json").unlink()
    with pytest.raises(ConversionError) as caught:
        write_parts(own, tmp_path / "parts", FLOAT32, package="no-such-package")
    assert "pip install --no-deps no-such-package" in str(caught.value)
    assert len(caught.value.reasons) == 3


def test_a_bound_that_is_not_kept_writes_nothing(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        write(trained, tmp_path / "parts", ConversionOptions(quantization="int8", bound=1e-9))
    assert list(tmp_path.iterdir()) == []


def test_golden_rows_hold_what_was_assembled_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far int8 is from PyTorch is the conversion's affair, and its bound's."""
    spiky = write_site(tmp_path / "spiky", spike=8.0)
    monkeypatch.setattr(sys, "path", [str(spiky), *sys.path[1:]])
    checkpoint = with_golden(write_checkpoint(spiky, tmp_path / "tiny", add_adapter(load_base(spiky), seed=1)))
    options = ConversionOptions(quantization="int8", token_bound=100)
    written = write(checkpoint, tmp_path / "parts", options, smoothing="none")
    (tmp_path / "bundle").mkdir()
    bundle = assemble(read_parts(written.output), spiky / IMPORT_NAME / GGUF, tmp_path / "bundle")
    check = rescore(Decider(bundle, EngineOptions(device="cpu")))
    assert check.worst is not None
    assert check.worst < 1e-5 < written.parity.labels.value


def test_only_parts_are_replaced_and_only_when_told(trained: Path, tmp_path: Path) -> None:
    write(trained, tmp_path / "parts")
    with pytest.raises(ConversionError, match="--force"):
        write(trained, tmp_path / "parts")
    forced = ConversionOptions(quantization="float32", version="0.2.0", force=True)
    write(trained, tmp_path / "parts", forced)
    assert read_parts(tmp_path / "parts").manifest.version == "0.2.0"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("", encoding="utf-8")
    with pytest.raises(ConversionError, match="not a model in parts"):
        write(trained, tmp_path / "notes", forced)


def test_smoothing_brings_int8_closer_where_a_few_channels_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spiky = write_site(tmp_path / "spiky", spike=4.0)
    monkeypatch.setattr(sys, "path", [str(spiky), *sys.path[1:]])
    checkpoint = with_golden(write_checkpoint(spiky, tmp_path / "tiny", add_adapter(load_base(spiky), seed=1)))
    options = ConversionOptions(quantization="int8", bound=100, token_bound=100)
    off = {
        smoothing: write(checkpoint, tmp_path / smoothing, options, smoothing=smoothing).parity
        for smoothing in get_args(Smoothing)
    }
    assert off["blocks"].labels.value < 0.7 * off["none"].labels.value
    assert off["all"].labels.value < 0.7 * off["none"].labels.value
    assert off["all"].tokens.value < off["blocks"].tokens.value < off["none"].tokens.value


def test_scales_follow_the_large_channels(site: Path) -> None:
    model = load_base(site)
    with torch.no_grad():
        model.model.norm.weight[:2] *= 100
        model.model.layers[1].input_layernorm.weight[:2] *= 100
    encoder = PromptEncoder.from_file(site.parent / "llama" / "tokenizer.json", TINY_CHAT_TASK)
    shape = LlamaBase(site / IMPORT_NAME / GGUF).shape
    scales = smoothing_scales(model, encoder, [row.text for row in sample_rows()[:3]], shape, head=True)
    for name, factor in (
        ("smooth.head", 10.0),
        ("layers.1.smooth.attention", 10.0),
        ("layers.0.smooth.attention", 1.0),
    ):
        ratio = scales[name][:2].mean() / scales[name][2:].mean()
        assert factor / 2 < ratio < factor * 2  # the square root of the activations' factor


@pytest.mark.parametrize(("smoothing", "count"), [("all", 9), ("blocks", 8), ("none", 0)])
def test_what_is_smoothed_can_be_chosen(trained: Path, tmp_path: Path, smoothing: Any, count: int) -> None:
    result = write(trained, tmp_path / "parts", smoothing=smoothing)
    assert result.parity.labels.value < EXACT
    with np.load(tmp_path / "parts" / ADAPTER) as arrays:
        assert sum("smooth" in name for name in arrays.files) == count


def test_the_command(trained: Path, tmp_path: Path) -> None:
    arguments = ["adapter", str(trained), "-o", str(tmp_path / "parts"), "--package", PACKAGE, "--smoothing", "blocks"]
    done = CliRunner().invoke(main, [*arguments, "--no-repeat-ngram", "4", "--version", "1.2"])
    assert done.exit_code == 0, done.output
    manifest = read_parts(tmp_path / "parts").manifest
    assert (manifest.name, manifest.version, manifest.decoding.no_repeat_ngram) == ("tiny", "1.2", 4)
    assert json.loads(done.stdout)["parity"]["rows"] == 3
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--force" in again.stderr
