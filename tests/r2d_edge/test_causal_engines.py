"""Decoder-only models: the reference against plain forward passes, CTranslate2 against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.bundle import TOKENIZER, Decoding, open_bundle
from r2d_edge.engines import Engine, EngineOptions, open_engine
from r2d_edge.engines.ct2 import CausalCTranslate2Engine
from r2d_edge.engines.transformers import CausalTransformersEngine, TransformersEngine, transformers_engine
from r2d_edge.label_scores import score_labels
from r2d_edge.task import LabelSet, PromptEncoder, Task
from tests.tiny_models import CHAT_TEMPLATE, TEXTS, TINY_CHAT_TASK, TINY_TASK, write_tiny_causal, write_tiny_t5

DECODINGS = [Decoding(), Decoding(1, 1.3), Decoding(1, 5.0), Decoding(1, 1.0, 2), Decoding(1, 1.2, 3)]
STEPS = 16
SHARED = ("urgent", "urgent care", "urgent care now", "non-urgent", "non-emergent")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_causal(tmp_path_factory.mktemp("causal") / "llama", tied=False)


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> PromptEncoder:
    return PromptEncoder.from_file(checkpoint / TOKENIZER, TINY_CHAT_TASK)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, encoder: PromptEncoder) -> TransformersEngine:
    return transformers_engine(AutoModelForCausalLM.from_pretrained(checkpoint), encoder)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return ct2_engine(checkpoint, tmp_path_factory.mktemp("float32") / "bundle", "float32")


def ct2_engine(checkpoint: Path, output: Path, quantization: str, workers: int = 1) -> Engine:
    if not output.exists():
        golden = output.with_suffix(".jsonl")
        golden.write_text('{"text": "chest pain"}\n', encoding="utf-8")
        convert_to_ctranslate2(checkpoint, output, ConversionOptions(quantization=quantization, golden=golden))
    bundle = open_bundle(output)
    encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), bundle.manifest.task)
    return open_engine(bundle, encoder, EngineOptions("cpu", threads=1, workers=workers))


@pytest.fixture(scope="module")
def prompts(encoder: PromptEncoder) -> list[list[int]]:
    found = [encoder.explain(text, "urgent").ids for text in TEXTS[1:8]]
    found.append(list(found[2]))
    assert len({len(prompt) for prompt in found}) > 4  # of mixed length, and some of one
    return found


def test_the_template_picks_the_engine(reference: TransformersEngine, exported: Engine, tmp_path: Path) -> None:
    assert isinstance(reference, CausalTransformersEngine)
    assert isinstance(exported, CausalCTranslate2Engine)
    tokenizer = write_tiny_t5(tmp_path) / TOKENIZER
    engine = transformers_engine(None, PromptEncoder.from_file(tokenizer, TINY_TASK))
    assert type(engine) is TransformersEngine


@pytest.mark.parametrize("labels", [TINY_TASK.labels.labels, SHARED], ids=["first tokens differ", "shared beginnings"])
def test_label_scores_equal_those_of_each_label_whole(labels: tuple[str, ...], checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    task = Task(LabelSet(labels), limits=TINY_TASK.limits, template=CHAT_TEMPLATE)
    encoder = PromptEncoder.from_file(checkpoint / TOKENIZER, task)
    sequences = [[*encoder.label_ids(label), encoder.end_id] for label in labels]
    prompts = [encoder.predict(text).ids for text in TEXTS[1:5]]
    expected = np.zeros((len(prompts), len(labels)))
    for row, prompt in enumerate(prompts):
        for column, sequence in enumerate(sequences):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sequence[:-1]]])).logits[0, len(prompt) - 1 :].double()
            for step, token in enumerate(sequence):
                allowed = sorted({other[step] for other in sequences if other[:step] == sequence[:step]})
                scores = torch.log_softmax(logits[step, allowed], 0)
                expected[row, column] += float(scores[allowed.index(token)])
    scores = score_labels(transformers_engine(model, encoder), encoder, prompts)
    assert np.abs(scores - expected).max() < 1e-4
    assert np.exp(scores).sum(axis=1) == pytest.approx(np.ones(len(prompts)))
    assert np.ptp(scores) > 0.5  # the comparison is of numbers that differ


def test_a_prompt_reads_the_same_beside_longer_ones(reference: TransformersEngine, prompts: list[list[int]]) -> None:
    together = reference.next_log_probabilities(prompts, [(40, 41)] * len(prompts))
    alone = np.concatenate([reference.next_log_probabilities([prompt], [(40, 41)]) for prompt in prompts])
    assert together.dtype == np.float32
    assert np.abs(together - alone).max() < 1e-4
    assert np.ptp(together, axis=0).max() > 0.5


def test_sequence_log_probabilities_are_the_steps(reference: TransformersEngine, prompts: list[list[int]]) -> None:
    targets = [[50, 51, 52, 2], [60, 2], [70, 71, 2]]
    found = reference.sequence_log_probabilities(prompts[:3], targets)
    for prompt, target, scores in zip(prompts, targets, found, strict=False):
        steps = [
            reference.next_log_probabilities([prompt], [target[:step]])[0, token] for step, token in enumerate(target)
        ]
        assert scores == pytest.approx(steps, abs=1e-4)


def test_the_mode_and_the_models_own_options_are_left_alone(checkpoint: Path, encoder: PromptEncoder) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    engine = transformers_engine(model, encoder)
    prompt = encoder.predict(TEXTS[1]).ids
    plain = engine.generate([prompt], max_tokens=STEPS, decoding=Decoding())
    model.generation_config.update(repetition_penalty=9.0, no_repeat_ngram_size=1, eos_token_id=plain[0][1])
    model.train()
    assert engine.generate([prompt], max_tokens=STEPS, decoding=Decoding()) == plain
    assert model.training


def test_ctranslate2_scores_as_the_reference(
    reference: TransformersEngine, exported: Engine, encoder: PromptEncoder, prompts: list[list[int]]
) -> None:
    expected = score_labels(reference, encoder, prompts)
    assert np.abs(score_labels(exported, encoder, prompts) - expected).max() < 1e-4
    prefixes = [(40, 41, 42)] * len(prompts)
    expected = reference.next_log_probabilities(prompts, prefixes)
    assert np.abs(exported.next_log_probabilities(prompts, prefixes) - expected).max() < 1e-4


@pytest.mark.parametrize("decoding", DECODINGS, ids=str)
def test_ctranslate2_writes_as_the_reference(
    decoding: Decoding, reference: TransformersEngine, exported: Engine, prompts: list[list[int]]
) -> None:
    expected = reference.generate(prompts, max_tokens=STEPS, decoding=decoding)
    assert exported.generate(prompts, max_tokens=STEPS, decoding=decoding) == expected
    streamed = [list(exported.stream(prompt, max_tokens=STEPS, decoding=decoding)) for prompt in prompts]
    assert streamed == expected
    assert max(map(len, expected)) > 4
    assert len({tuple(ids) for ids in expected}) > 4


def test_answers_go_on_from_a_prefix(reference: TransformersEngine, exported: Engine, prompts: list[list[int]]) -> None:
    whole = reference.generate(prompts, max_tokens=STEPS, decoding=Decoding())
    for engine in (reference, exported):
        prefixes = [ids[:3] for ids in whole]
        assert engine.generate(prompts, max_tokens=STEPS, decoding=Decoding(), prefixes=prefixes) == [
            ids[3:] for ids in whole
        ]
    # The reference counts the prefix against repetition, too.
    decoding = Decoding(1, 1.3, 2)
    whole = reference.generate(prompts, max_tokens=STEPS, decoding=decoding)
    found = reference.generate(prompts, max_tokens=STEPS, decoding=decoding, prefixes=[ids[:3] for ids in whole])
    assert found == [ids[3:] for ids in whole]


def test_beams_agree_without_penalties(
    reference: TransformersEngine, exported: Engine, prompts: list[list[int]]
) -> None:
    expected = reference.generate(prompts, max_tokens=8, decoding=Decoding(3))
    assert exported.generate(prompts, max_tokens=8, decoding=Decoding(3)) == expected
    assert expected != reference.generate(prompts, max_tokens=8, decoding=Decoding())


def test_what_the_prompt_says_may_be_said_again(
    reference: TransformersEngine, exported: Engine, prompts: list[list[int]]
) -> None:
    said = list(prompts[0])
    for _ in range(60):
        [[following]] = reference.generate([said], max_tokens=1, decoding=Decoding())
        if following in said:
            break
        said.append(following)
    options = {"max_new_tokens": 1, "do_sample": False, "repetition_penalty": 50.0}
    counted = reference._model.generate(torch.tensor([said]), **options)
    assert counted[0, -1] != following  # what transformers' own option makes of it
    for engine in (reference, exported):
        for decoding in (Decoding(1, 50.0), Decoding(1, 1.0, 1)):
            assert engine.generate([said], max_tokens=1, decoding=decoding) == [[following]]
            assert list(engine.stream(said, max_tokens=1, decoding=decoding)) == [following]


def test_an_answer_ends_at_the_templates_end(
    reference: TransformersEngine, exported: Engine, prompts: list[list[int]]
) -> None:
    """Not at the model's own end token, and the end is not part of the answer."""
    greedy = reference.generate(prompts[:1], max_tokens=STEPS, decoding=Decoding())[0]
    for engine in (reference, exported):
        encoder = engine._encoder  # type: ignore[attr-defined]
        end, encoder.end_id = encoder.end_id, greedy[3]
        try:
            cut = greedy[: greedy.index(greedy[3])]
            assert engine.generate(prompts[:1], max_tokens=STEPS, decoding=Decoding()) == [cut]
        finally:
            encoder.end_id = end


def test_int8_labels_and_rationales_do_not_depend_on_neighbours_or_workers(
    checkpoint: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    engine = ct2_engine(checkpoint, tmp_path / "bundle", "int8")
    prefixes = [(40,)] * len(prompts)
    together = engine.next_log_probabilities(prompts, prefixes)
    alone = np.concatenate([engine.next_log_probabilities([prompt], [(40,)]) for prompt in prompts])
    assert np.array_equal(together, alone)
    decoding = Decoding(1, 1.3)
    written = engine.generate(prompts, max_tokens=STEPS, decoding=decoding)
    assert written == [engine.generate([prompt], max_tokens=STEPS, decoding=decoding)[0] for prompt in prompts]
    two = ct2_engine(checkpoint, tmp_path / "bundle", "int8", workers=2)
    assert np.array_equal(two.next_log_probabilities(prompts, prefixes), together)
    assert two.generate(prompts, max_tokens=STEPS, decoding=decoding) == written
