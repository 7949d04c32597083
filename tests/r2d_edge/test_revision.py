"""Sentences with numbers that the note does not hold: written anew, or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge import load
from r2d_edge.bundle import TOKENIZER, Decoding
from r2d_edge.decide import Decider
from r2d_edge.facts import unsupported_numbers
from r2d_edge.revision import BEGINNINGS, REWRITES, Reviser
from r2d_edge.task import PromptEncoder
from r2d_edge.writing import Writer
from tests.tiny_models import TEXTS, TINY_TASK, wordpiece_tokenizer, write_tiny_bart

NOTE = "T 39.2, HR 104, drinking well"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    path = tmp_path_factory.mktemp("tokenizer") / TOKENIZER
    wordpiece_tokenizer(path)
    return PromptEncoder.from_file(path, TINY_TASK)


class ScriptedEngine:
    """Goes on as a table says: the text so far → the other ways to go on, the most probable first."""

    batches = True

    def __init__(self, encoder: PromptEncoder, table: dict[str, list[str]]) -> None:
        self._encoder = encoder
        self._table = table
        self.asked = self.generated = 0

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        self.asked += 1
        scores = np.full((len(prefixes), 1000), -100.0, dtype=np.float32)
        scores[:, self._encoder.end_id] = 0.0  # an end is never a beginning
        for row, prefix in enumerate(prefixes):
            for rank, text in enumerate(self._table[self._encoder.decode(prefix)]):
                scores[row, self._encoder.text_ids(text)[0]] = -1.0 - rank
        return scores

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        assert prefixes is not None
        assert len({len(prefix) for prefix in prefixes}) == 1
        self.asked += 1
        self.generated += len(prefixes)
        return [self._ending(prefix, max_tokens) for prefix in prefixes]

    def _ending(self, prefix: Sequence[int], max_tokens: int) -> list[int]:
        *read, first = prefix
        for text in self._table[self._encoder.decode(read)]:
            ids = self._encoder.text_ids(text)
            if ids[0] == first:
                return ids[1 : max_tokens - len(read)]
        return []  # what the table does not name ends at once

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        raise NotImplementedError

    def describe(self) -> dict[str, str | int]:
        return {}


@pytest.fixture
def revise(encoder: PromptEncoder) -> Callable[..., tuple[list[str], int]]:
    def call(draft: str, table: dict[str, list[str]], limit: int = 200) -> tuple[list[str], int]:
        engine = ScriptedEngine(encoder, table)
        reviser = Reviser(engine, encoder, Writer(encoder, None), max_tokens=limit, decoding=Decoding())
        text = encoder.decode(list(reviser.revise([1], iter(encoder.text_ids(draft)), NOTE)))
        return [sentence for sentence in text.split(". ") if sentence], engine.generated

    return call


def test_what_the_note_holds_is_left_as_it_is(revise: Callable[..., tuple[list[str], int]]) -> None:
    assert revise("pulse of 104. drinking well, no rash.", {}) == (["pulse of 104", "drinking well, no rash."], 0)


def test_a_sentence_is_begun_anew_and_what_stands_before_it_stays(
    revise: Callable[..., tuple[list[str], int]],
) -> None:
    table = {"drinking well.": ["pulse of 76.", "rash of 76. no rash.", "alert, pulse of 104. no rash."]}
    found = revise("drinking well. pulse of 11. guarding.", table)
    # "pulse" began the draft and is not tried; "rash of 76" does not hold either.
    assert found == (["drinking well", "alert, pulse of 104", "no rash."], 2)


@pytest.mark.parametrize("draft", ["less urgent", "Urgent."])
def test_a_label_s_name_alone_is_no_rationale(draft: str, revise: Callable[..., tuple[list[str], int]]) -> None:
    table = {"": ["resuscitation.", "drinking well. no rash."]}
    assert revise(draft, table) == (["drinking well", "no rash."], 2)


@pytest.mark.parametrize("draft", ["urgent, drinking well.", "emergent. no rash.", "no rash. emergent."])
def test_a_rationale_may_name_its_label(draft: str, revise: Callable[..., tuple[list[str], int]]) -> None:
    assert revise(draft, {}) == (draft.split(". "), 0)


def test_every_later_sentence_is_checked_too(revise: Callable[..., tuple[list[str], int]]) -> None:
    table = {"": ["alert. pulse of 7."], "alert.": ["no rash."]}
    assert revise("pulse of 11. guarding.", table) == (["alert", "no rash."], 2)


def test_many_rationales_share_the_engine_s_batches(encoder: PromptEncoder) -> None:
    table = {
        "": ["pulse of 76.", "rash of 76. no rash.", "alert, pulse of 104. pulse of 12. guarding."],
        "alert, pulse of 104.": ["drinking well."],
        "drinking well.": ["no rash."],
    }
    drafts = ["pulse of 11. guarding.", "no rash.", "fever of 41.", "drinking well. pulse of 11.", "pulse of 104."]
    ids = [encoder.text_ids(draft) for draft in drafts]
    engines = [ScriptedEngine(encoder, table) for _ in range(2)]
    alone, together = (
        Reviser(engine, encoder, Writer(encoder, None), max_tokens=99, decoding=Decoding()) for engine in engines
    )
    one_by_one = [list(alone.revise([1], draft, NOTE)) for draft in ids]
    assert together.revise_many([[1]] * len(ids), ids, [NOTE] * len(ids)) == one_by_one
    assert [encoder.decode(written) for written in one_by_one] == [
        "alert, pulse of 104. drinking well.",
        "no rash.",
        "alert, pulse of 104. drinking well.",
        "drinking well. no rash.",
        "pulse of 104.",
    ]
    assert engines[1].generated == engines[0].generated
    assert engines[1].asked < engines[0].asked


def test_a_sentence_that_stays_wrong_is_left_out(revise: Callable[..., tuple[list[str], int]]) -> None:
    wrong = [
        f"{word} of 76." for word in ("alert", "chest", "pain", "breath", "swelling", "rash", "arm", "blood", "cut")
    ]
    sentences, generated = revise("pulse of 11. guarding.", {"": wrong})
    assert sentences == ["guarding."]
    assert generated == BEGINNINGS
    assert revise("pulse of 11.", {"": wrong})[0] == []


def test_a_rationale_of_nothing_but_wrong_numbers_costs_no_more_than_so_much(
    revise: Callable[..., tuple[list[str], int]],
) -> None:
    draft = "pulse of 11. " * 6 + "guarding."
    wrong = [
        f"{word} of 76." for word in ("alert", "chest", "pain", "breath", "swelling", "rash", "arm", "blood", "cut")
    ]
    beginnings = {"pulse of 11. " * number: wrong for number in range(7)}
    sentences, generated = revise(draft, {key.strip(): value for key, value in beginnings.items()})
    assert sentences == ["guarding."]
    assert generated == REWRITES < 6 * BEGINNINGS


def test_nothing_is_begun_beyond_the_limit(
    revise: Callable[..., tuple[list[str], int]], encoder: PromptEncoder
) -> None:
    before = "drinking well. "
    limit = len(encoder.text_ids(before)) + 1
    assert revise(before + "11", {}, limit) == (["drinking well."], 0)


def test_sentences_are_handed_on_as_soon_as_they_are_checked(encoder: PromptEncoder) -> None:
    reviser = Reviser(ScriptedEngine(encoder, {}), encoder, Writer(encoder, None), max_tokens=99, decoding=Decoding())
    read = 0

    def draft() -> Iterator[int]:
        nonlocal read
        for index in encoder.text_ids("pulse of 104. drinking well, no rash."):
            read += 1
            yield index

    first = next(reviser.revise([1], draft(), NOTE))
    assert encoder.decode([first]) == "pulse"[: len(encoder.decode([first]))]
    assert read == len(encoder.text_ids("pulse of 104.")) + 1  # the next word shows that a sentence has ended


def test_a_decimal_is_no_end_of_a_sentence(encoder: PromptEncoder) -> None:
    reviser = Reviser(ScriptedEngine(encoder, {}), encoder, Writer(encoder, None), max_tokens=99, decoding=Decoding())
    found = [encoder.decode(part) for part in reviser._sentences(encoder.text_ids("fever of 39.2 c. no rash."), NOTE)]
    assert len(found) == 2
    assert found[1] == "no rash."


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> Decider:
    """A random model that likes figures and full stops."""
    import torch
    from transformers import BartForConditionalGeneration

    folder = tmp_path_factory.mktemp("figures")
    checkpoint = write_tiny_bart(folder / "checkpoint")
    encoder = PromptEncoder.from_file(checkpoint / TOKENIZER, TINY_TASK)
    model = BartForConditionalGeneration.from_pretrained(checkpoint)
    with torch.no_grad():
        for text, bias in (("7", 3.0), ("76", 3.0), (".", 4.0), ("pain", 3.0), ("well", 3.0)):
            model.final_logits_bias[0, encoder.text_ids(text)] += bias
    model.save_pretrained(checkpoint)
    golden = folder / "golden.jsonl"
    golden.write_text('{"text": "chest pain"}\n', encoding="utf-8")
    options = ConversionOptions(quantization="float32", golden=golden, decoding=Decoding(1, 1.3, 2))
    return load(convert_to_ctranslate2(checkpoint, folder / "bundle", options).output)


def notes() -> list[str]:
    return [text for text in TEXTS[1:9] if "76" not in text]


def test_no_rationale_of_a_real_model_states_another_number(decider: Decider) -> None:
    before = [decider.decide(note).rationale or "" for note in notes()]
    manifest = decider.bundle.manifest
    decider.bundle.manifest = replace(manifest, decoding=replace(manifest.decoding, only_numbers_of_the_note=True))
    try:
        after, streamed = [], []
        for note in notes():
            pieces: list[str] = []
            after.append(decider.decide(note, on_token=pieces.append).rationale or "")
            streamed.append("".join(pieces))
        together = [decision.rationale for decision in decider.decide_many(notes(), batch_size=3)]
    finally:
        decider.bundle.manifest = manifest
    wrong = [bool(unsupported_numbers(text, note)) for text, note in zip(before, notes(), strict=True)]
    assert any(wrong)  # there was something to do
    assert not any(unsupported_numbers(text, note) for text, note in zip(after, notes(), strict=True))
    for was, text, old in zip(wrong, after, before, strict=True):
        assert (text == old) is not was
    assert any(text for was, text in zip(wrong, after, strict=True) if was)  # written anew, not only left out
    assert streamed == after
    assert together == after


def test_the_engines_go_on_from_a_prefix(decider: Decider) -> None:
    from transformers import BartForConditionalGeneration

    from r2d_edge.engines.transformers import transformers_engine

    model = BartForConditionalGeneration.from_pretrained(Path(decider.bundle.root).parent / "checkpoint")
    prompts = [decider.encoder.explain(note, "urgent").ids for note in notes()[:3]]
    for decoding in (Decoding(), Decoding(1, 1.3, 2)):
        for engine in (decider.engine, transformers_engine(model, decider.encoder)):
            whole = engine.generate(prompts, max_tokens=12, decoding=decoding)
            rest = engine.generate(prompts, max_tokens=12, decoding=decoding, prefixes=[ids[:4] for ids in whole])
            assert rest == [ids[4:] for ids in whole]
            assert all(rest)


def test_no_engine_obeys_tokens_that_a_checkpoint_forces(decider: Decider) -> None:
    """BART from the hub forces its first token, which no target of the training begins with."""
    from transformers import BartForConditionalGeneration

    from r2d_edge.engines.transformers import transformers_engine

    model = BartForConditionalGeneration.from_pretrained(Path(decider.bundle.root).parent / "checkpoint")
    prompts = [decider.encoder.explain(note, "urgent").ids for note in notes()[:3]]
    expected = decider.engine.generate(prompts, max_tokens=6, decoding=Decoding())
    model.generation_config.forced_bos_token_id = decider.encoder.text_ids("rash")[0]
    model.generation_config.forced_eos_token_id = decider.encoder.end_id
    engine = transformers_engine(model, decider.encoder)
    assert engine.generate(prompts, max_tokens=6, decoding=Decoding()) == expected
    assert model.generation_config.forced_bos_token_id is not None  # the model's own options are left alone
