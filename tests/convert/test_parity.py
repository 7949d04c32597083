"""Exports compute what the checkpoints compute, and the proof notices where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from convert.bundling import convert_to_ctranslate2
from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.ct2 import CORRECTIONS
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.golden import GoldenRow, sample_rows
from convert.parity import BOUNDS, Bound, label_log_probabilities, prove
from r2d_edge.engines.transformers import TransformersEngine
from tests.convert.conftest import GOLDEN_ROWS

CAUSAL_SHAPES = (
    "llama",
    "llama-untied",
    "llama-no-gqa",
    "llama-biased",
    "llama-linear-rope",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma3",
)
SHAPES = ("t5-tied", "t5-untied-gated", "t5-other-epsilon", "mt5", "bart", "bart-scaled-embedding", *CAUSAL_SHAPES)
# The correction, and a model that is wrong without it.
NEEDED_BY = {
    "t5-output-scale": "t5-untied-gated",
    "t5-norm-epsilon": "t5-other-epsilon",
    "bart-post-norm": "bart",
    "gemma-rope-base": "gemma",
    "gemma3-norm-epsilon": "gemma3",
}
# Far below the default bound: what int8 costs these models, with room for another processor's arithmetic.
TINY_INT8 = 0.6

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_same_within_a_thousandth(shape: str, tiny: Tiny, tmp_path: Path) -> None:
    result = convert_to_ctranslate2(tiny(shape), tmp_path / "bundle", ConversionOptions(quantization="float32"))
    parity = result.parity
    assert parity.bound == Bound(1e-3, 1e-3)
    assert parity.labels.value <= 1e-3
    assert parity.tokens.value <= 1e-3
    assert parity.same_label == parity.rows == GOLDEN_ROWS
    assert np.exp(parity.golden).sum(axis=1) == pytest.approx(np.ones(parity.rows))
    # The comparison is of models that say something: neither flat nor the same for every row.
    assert np.ptp(parity.golden, axis=1).min() > 0.3
    assert np.ptp(parity.golden, axis=0).max() > 0.3


@pytest.mark.parametrize("shape", ["t5-tied", "t5-untied-gated", "bart", "llama", "llama-untied"])
@pytest.mark.parametrize("compute_type", ["int8", "int8_bfloat16", "bfloat16"])
def test_rounded_types_stay_within_their_bound(shape: str, compute_type: str, tiny: Tiny, tmp_path: Path) -> None:
    result = convert_to_ctranslate2(tiny(shape), tmp_path / "bundle", ConversionOptions(quantization=compute_type))
    assert result.parity.bound == BOUNDS[compute_type]
    assert 1e-4 < result.parity.tokens.value < TINY_INT8
    assert result.parity.labels.value < TINY_INT8


def test_every_correction_has_its_test() -> None:
    assert set(NEEDED_BY) == set(CORRECTIONS)


@pytest.mark.parametrize(
    ("correction", "quantization"),
    [*((correction, "float32") for correction in sorted(CORRECTIONS)), ("t5-output-scale", "int8")],
)
def test_without_a_correction_there_is_no_bundle(
    correction: str, quantization: str, tiny: Tiny, tmp_path: Path
) -> None:
    options = ConversionOptions(quantization=quantization)
    with pytest.raises((ParityError, ConversionError)) as caught:
        convert_to_ctranslate2(
            tiny(NEEDED_BY[correction]), tmp_path / "bundle", options, corrections=set(CORRECTIONS) - {correction}
        )
    if correction == "bart-post-norm":
        assert "normalize_before" in str(caught.value)
    else:
        assert isinstance(caught.value, ParityError)
        assert caught.value.measured > caught.value.bound
    assert list(tmp_path.iterdir()) == []


def test_an_old_config_cannot_make_bart_pre_norm(own: Tiny, tmp_path: Path) -> None:
    checkpoint = own("bart")
    config = (checkpoint / "config.json").read_text(encoding="utf-8")
    (checkpoint / "config.json").write_text(config.replace("{", '{"normalize_before": true,', 1), encoding="utf-8")
    with pytest.raises(ConversionError):
        convert_to_ctranslate2(checkpoint, tmp_path / "wrong", corrections=set())
    convert_to_ctranslate2(checkpoint, tmp_path / "right", ConversionOptions(quantization="float32"))


def test_ctranslate2_keeps_its_own_loaders(tiny: Tiny, tmp_path: Path) -> None:
    from ctranslate2.converters import transformers as theirs

    before = dict(theirs._MODEL_LOADERS)
    convert_to_ctranslate2(tiny("bart"), tmp_path / "bundle")
    assert before == theirs._MODEL_LOADERS


class _Tampered(TransformersEngine):
    """The reference itself, with one fault."""

    fault = "none"

    def next_log_probabilities(self, prompts, prefixes):  # type: ignore[no-untyped-def]
        found = super().next_log_probabilities(prompts, prefixes).copy()
        if self.fault == "padding" and len({len(prompt) for prompt in prompts}) > 1:
            shortest = min(range(len(prompts)), key=lambda row: len(prompts[row]))
            found[shortest] = np.roll(found[shortest], 1)
        if self.fault == "alone" and len(prompts) == 1:
            found = np.roll(found, 1, axis=1)
        if self.fault == "late" and len(prefixes[0]) == 7:
            found = np.roll(found, 1, axis=1)
        if self.fault == "nan":
            found[0, :] = np.nan
        if self.fault == "width":
            found = found[:, :-1]
        return found


@pytest.fixture
def reference(tiny: Tiny) -> tuple[Checkpoint, object]:
    checkpoint = read_checkpoint(tiny("bart"))
    return checkpoint, load_model(checkpoint)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the NaN that is put in
@pytest.mark.parametrize("fault", ["none", "padding", "alone", "late", "nan", "width"])
def test_the_proof_sees_a_fault_wherever_it_sits(fault: str, reference: tuple[Checkpoint, object]) -> None:
    checkpoint, model = reference
    engine = _Tampered(model, checkpoint.encoder)
    engine.fault = fault
    arguments = (model, checkpoint.start_id, engine, checkpoint.encoder, sample_rows()[:4])
    if fault == "none":
        assert prove(*arguments, compute_type="float32").tokens.value < 1e-4
    else:
        with pytest.raises(ParityError):
            prove(*arguments, compute_type="int8")


def test_the_error_names_the_worst_row_and_never_its_text(reference: tuple[Checkpoint, object]) -> None:
    checkpoint, model = reference
    rows = [GoldenRow("good", "a cut on the finger"), GoldenRow("bad", "chest pain since yesterday")]
    bad = checkpoint.encoder.predict(rows[1].text).ids

    class _OneBadRow(TransformersEngine):
        def next_log_probabilities(self, prompts, prefixes):  # type: ignore[no-untyped-def]
            found = super().next_log_probabilities(prompts, prefixes).copy()
            for row, prompt in enumerate(prompts):
                if list(prompt) == bad:
                    found[row] -= 0.25
            return found

    with pytest.raises(ParityError, match="'bad'") as caught:
        prove(
            model,
            checkpoint.start_id,
            _OneBadRow(model, checkpoint.encoder),
            checkpoint.encoder,
            rows,
            compute_type="float32",
        )
    assert caught.value.row == "bad"
    assert caught.value.measured == pytest.approx(0.25, abs=1e-3)
    assert "chest" not in str(caught.value)


def test_label_log_probabilities_by_hand() -> None:
    # Labels "a" = 3 1, "a b" = 3 4 1, "c" = 5 1; probabilities after each prefix, over tokens 0..5.
    def logs(*probabilities: float) -> npt.NDArray[np.float64]:
        return np.log(np.array(probabilities))

    distributions = {
        (): logs(0.1, 0.1, 0.2, 0.3, 0.1, 0.2),
        (3,): logs(0.1, 0.1, 0.1, 0.1, 0.4, 0.2),
        (3, 4): logs(0.2, 0.1, 0.1, 0.2, 0.2, 0.2),
        (5,): logs(0.2, 0.1, 0.1, 0.2, 0.2, 0.2),
    }
    scores = np.exp(label_log_probabilities([(3, 1), (3, 4, 1), (5, 1)], distributions))
    assert scores == pytest.approx([0.6 * 0.2, 0.6 * 0.8, 0.4])


def test_an_open_label_set_is_proven_by_its_tokens(tiny: Tiny, tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    task.write_text(
        '{"labels": [], "label_kind": "open", "limits": {"input": 96, "label": 24, "rationale": 32}, '
        '"prompts": {"rationale": "explain: {text}", "predict": "predict: {text}", '
        '"explain": "given label: {label}, explain: {text}"}}',
        encoding="utf-8",
    )
    options = ConversionOptions(quantization="float32", task=task)
    parity = convert_to_ctranslate2(tiny("t5-tied"), tmp_path / "bundle", options).parity
    assert parity.golden.shape == (GOLDEN_ROWS, 0)
    assert 0 < parity.tokens.value <= 1e-3


def test_an_untied_checkpoint_stays_untied(tiny: Tiny) -> None:
    model = load_model(read_checkpoint(tiny("t5-untied-gated")))
    assert model.config.tie_word_embeddings is True  # transformers 5 says so of every T5
    assert model.config.scale_decoder_outputs is False
    assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_a_llamas_rotary_base_arrives(own: Tiny, tmp_path: Path) -> None:
    """SmolLM2's is 100000: read as the loader's default of 10000, the proof would fail."""
    checkpoint = own("llama")
    convert_to_ctranslate2(checkpoint, tmp_path / "right", ConversionOptions(quantization="float32"))
    from r2d_edge.engines.ct2 import CausalCTranslate2Engine
    from r2d_edge.threads import ThreadChoice

    config = (checkpoint / "config.json").read_text(encoding="utf-8")
    assert '"rope_theta": 100000.0' in config
    (checkpoint / "config.json").write_text(config.replace("100000.0", "10000.0"), encoding="utf-8")
    other = read_checkpoint(checkpoint)
    generator = ctranslate2.Generator(str(tmp_path / "right" / "model"), intra_threads=1)
    engine = CausalCTranslate2Engine(generator, other.encoder, ThreadChoice(1, "test"))
    with pytest.raises(ParityError):
        prove(load_model(other), None, engine, other.encoder, sample_rows()[:2], compute_type="float32")


@pytest.mark.parametrize("shape", ["llama", "llama-untied"])
def test_prompts_beyond_every_default_length_are_read_whole(shape: str, own: Tiny, tmp_path: Path) -> None:
    checkpoint = own(shape)
    for name, old, new in (("config.json", '_embeddings": 160', '_embeddings": 4096'), ("r2d_task.json", "96", "2400")):
        text = (checkpoint / name).read_text(encoding="utf-8")
        assert old in text
        (checkpoint / name).write_text(text.replace(old, new), encoding="utf-8")
    rows = tmp_path / "golden.jsonl"
    rows.write_text('{"text": "' + "chest pain since 07:40. " * 150 + '"}\n{"text": "well"}\n', encoding="utf-8")
    encoder = read_checkpoint(checkpoint).encoder
    assert len(encoder.predict("chest pain since 07:40. " * 150).ids) > 2048
    options = ConversionOptions(quantization="float32", golden=rows)
    assert convert_to_ctranslate2(checkpoint, tmp_path / "bundle", options).parity.tokens.value <= 1e-3
