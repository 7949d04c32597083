"""A trimmed vocabulary reads what was counted as before, spells any text, and leaves the network the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from convert.__main__ import main
from convert.bundling import convert_to_ctranslate2
from convert.checkpoint import load_model, read_checkpoint
from convert.errors import ConversionError, ParityError
from convert.extras import ConversionOptions
from convert.rewriting import next_logits
from convert.vocabulary import network, pieces, trim, trim_vocabulary
from convert.vocabulary.corpus import read_corpus
from r2d_edge.engines.transformers import transformers_engine
from r2d_edge.label_scores import score_labels
from r2d_edge.task import CTAS_LEVELS, PromptEncoder
from tests.tiny_models import TEXTS

Tiny = Callable[[str], Path]
SHAPES = ["t5-tied", "t5-untied-gated", "mt5", "bart", "llama", "llama-untied", "gemma3"]
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write_corpus(path: Path, texts: Iterable[str] = TEXTS[1:6]) -> Path:
    rows = [
        {"id": f"n{number}", "text": text, "label": CTAS_LEVELS[number % 5], "rationales": {"llm": text[::2]}}
        for number, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_notes(path: Path, texts: Iterable[str] = TEXTS[6:9]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return write_notes(tmp_path / "notes.txt")


# Tokenizers, with vocabularies drawn at random.


def cut(tokenizer: Tokenizer, counted: list[str]) -> tuple[Tokenizer, dict[int, int]]:
    """The tokenizer trimmed to some texts, and its new ids by the old."""
    spec = json.loads(tokenizer.to_str())
    used: set[int] = set()
    for text in counted:
        used |= set(tokenizer.encode(text).ids)
        if spec["model"]["type"] == "WordPiece":
            used |= pieces.on_the_way_to_unknown(tokenizer, spec, text)
    keep = pieces.choose(spec, used, keep_sentinels=False)
    trimmed = Tokenizer.from_str(json.dumps(pieces.trimmed(spec, keep)))
    assert [trimmed.id_to_token(number) for number in range(len(keep))] == [tokenizer.id_to_token(i) for i in keep]
    assert trimmed.get_vocab_size() == len(keep)
    return trimmed, {old: new for new, old in enumerate(keep)}


def check(tokenizer: Tokenizer, counted: list[str], others: list[str]) -> None:
    trimmed, new_of = cut(tokenizer, counted)
    for text in counted:
        assert trimmed.encode(text).ids == [new_of[index] for index in tokenizer.encode(text).ids]
    for text in [*counted, *others]:
        assert trimmed.decode(trimmed.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)


def unigram(scored: dict[str, float], **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *scored.items()], unk_id=0, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


# Scores of few values, so that splits tie; `x` is never a piece of its own.
SCORES = st.sampled_from([-1.0, -1.5, -2.0, -3.0, -4.0, -6.0, -11.0])
SCORED = st.dictionaries(st.text("abc▁", min_size=2, max_size=5), SCORES, max_size=25)
SINGLES = st.fixed_dictionaries(dict.fromkeys("abc▁", SCORES))
WRITTEN = st.lists(st.text("abcx ", max_size=14), max_size=6)


@MANY
@given(SINGLES, SCORED, WRITTEN, WRITTEN)
def test_unigram(singles: dict[str, float], scored: dict[str, float], counted: list[str], others: list[str]) -> None:
    check(unigram(singles | scored), counted, others)


@MANY
@given(st.dictionaries(st.text("abx▁", min_size=1, max_size=4), SCORES, max_size=25), WRITTEN)
def test_unigram_with_characters_that_only_longer_pieces_have(scored: dict[str, float], counted: list[str]) -> None:
    check(unigram({"a": -2.0} | scored), counted, [])


def test_unigram_keeps_its_lowest_score_which_sets_the_price_of_an_unknown_character() -> None:
    scored = {"▁": -1.0, "a": -1.0, "ab": -0.5, "b": -11.0, "xa": -11.0}
    assert unigram(scored).encode("xab").tokens == ["▁", "x", "ab"]
    dear = unigram(scored | {"aaaa": -30.0})
    assert dear.encode("xab").tokens == ["▁", "xa", "b"]
    trimmed, _ = cut(dear, ["xab", "ab"])
    assert trimmed.encode("xab").tokens == ["▁", "xa", "b"]


def test_unigram_keeps_bytes() -> None:
    scored = {f"<0x{byte:02X}>": -9.0 for byte in range(256)} | {"▁": -1.0, "a": -2.0, "▁a": -1.5, "aa": -1.2}
    letters = dict.fromkeys("<0x123456789ABCDEF>", -8.0)  # with which a byte's name could be spelled
    scored |= letters
    tokenizer = unigram(scored, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trimmed, _ = cut(tokenizer, ["a"])
    assert trimmed.decode(trimmed.encode("a °é aa").ids) == "a °é aa"
    assert trimmed.get_vocab_size() == 1 + 256 + len(letters) + 3  # `aa` is gone


def test_a_piece_stays_whose_character_has_no_piece_of_its_own() -> None:
    check(unigram({"▁": -1.0, "a": -2.0, "b": -2.0, "xa": -3.0, "ab": -3.0}), [], ["xa ab"])
    tokens = ["[UNK]", "a", "##a", "ba", "##bx", "aa"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    check(tokenizer, [], ["baabx", "aa"])
    assert set(cut(tokenizer, [])[0].get_vocab()) == {*tokens} - {"aa"}


@MANY
@given(
    st.sets(st.text("abx", min_size=1, max_size=4), max_size=20),
    st.sets(st.text("abx", min_size=1, max_size=4), max_size=20),
    st.lists(st.text("abxz ", max_size=14), max_size=6),
)
def test_wordpiece(first: set[str], within: set[str], counted: list[str]) -> None:
    tokens = ["[UNK]", *sorted(first | {"a", "b"}), *(f"##{piece}" for piece in sorted(within | {"a", "b"}))]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    check(tokenizer, counted, [text.replace("x", "").replace("z", "") for text in counted])


def test_wordpiece_keeps_what_it_finds_in_a_word_before_it_gives_up() -> None:
    tokens = ["[UNK]", "a", "b", "##a", "##b", "ab", "##bz"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert tokenizer.encode("abz").tokens == ["[UNK]"]  # without `ab` it would be `a`, `##bz`
    check(tokenizer, ["abz"], [])


def bpe(texts: list[str], size: int, **options: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    suffix, prefix = options.get("end_of_word_suffix"), options.get("continuing_subword_prefix")
    tokenizer.decoder = decoders.Fuse()
    if suffix:
        tokenizer.decoder = decoders.BPEDecoder(suffix)
    elif prefix:
        tokenizer.decoder = decoders.WordPiece(prefix, cleanup=False)
    return tokenizer


@pytest.mark.parametrize("options", [{}, {"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "##"}])
@MANY
@given(
    learned=st.lists(st.text("abcd ", min_size=3, max_size=30), min_size=3, max_size=12),
    counted=WRITTEN,
    others=WRITTEN,
)
def test_bpe(options: dict[str, str], learned: list[str], counted: list[str], others: list[str]) -> None:
    check(bpe(learned, 60, **options), counted, others)


def test_bpe_keeps_the_steps_to_a_piece_and_no_others() -> None:
    vocabulary = {token: number for number, token in enumerate(["a", "b", "c", "d", "bc", "abc", "cd", "bcd", "ab"])}
    merges = [("b", "c"), ("a", "bc"), ("c", "d"), ("bc", "d"), ("a", "b"), ("ab", "c")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    trimmed, _ = cut(tokenizer, ["abc"])
    assert set(trimmed.get_vocab()) == {"a", "b", "c", "d", "bc", "abc"}
    assert trimmed.encode("abc").tokens == ["abc"]
    assert json.loads(trimmed.to_str())["model"]["merges"] == [["b", "c"], ["a", "bc"]]
    old = json.loads(tokenizer.to_str())
    old["model"]["merges"] = [" ".join(pair) for pair in merges]  # as older files write them
    keep = pieces.choose(old, set(tokenizer.encode("abc").ids), keep_sentinels=False)
    assert pieces.trimmed(old, keep)["model"]["merges"] == ["b c", "a bc"]


@MANY
@given(st.lists(st.text(max_size=12), max_size=4), st.lists(st.text(max_size=30), max_size=4))
def test_byte_bpe_spells_any_text(counted: list[str], others: list[str]) -> None:
    tokenizer = BYTE_BPE
    trimmed, new_of = cut(tokenizer, counted)
    for text in counted:
        assert trimmed.encode(text).ids == [new_of[index] for index in tokenizer.encode(text).ids]
    for text in [*counted, *others]:
        assert trimmed.decode(trimmed.encode(text).ids) == text


def _byte_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


BYTE_BPE = _byte_bpe()


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3)),
        processors.RobertaProcessing(("[SEP]", 4), ("[CLS]", 3)),
        processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]),
        processors.Sequence(
            [
                processors.ByteLevel(),
                processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]),
            ]
        ),
    ],
)
def test_the_frame_around_a_text_is_renumbered(processor: Any) -> None:
    vocabulary = {token: number for number, token in enumerate(["a", "ab", "b", "[CLS]", "[SEP]"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.post_processor = processor
    spec = json.loads(tokenizer.to_str())
    assert pieces.frame_ids(spec["post_processor"]) == {3, 4}
    keep = pieces.choose(spec, {0, 3, 4}, keep_sentinels=False)
    assert Tokenizer.from_str(json.dumps(pieces.trimmed(spec, keep))).encode("a").tokens == ["[CLS]", "a", "[SEP]"]


# Checkpoints.


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_stays_the_same(shape: str, tiny: Tiny, corpus: Path, notes: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    result = trim_vocabulary(tiny(shape), [corpus], tmp_path / "out", unseen=notes, progress=steps.append)
    whole, trimmed = read_checkpoint(tiny(shape)), read_checkpoint(tmp_path / "out")
    assert result.ids == (whole.config.vocab_size, trimmed.config.vocab_size)
    assert result.ids[1] == len(trimmed.vocabulary) < result.ids[0] - 5
    assert not [token for token in trimmed.vocabulary if token.startswith("<unused")]
    old_of = {number: whole.vocabulary.index(token) for number, token in enumerate(trimmed.vocabulary)}

    models = load_model(whole), load_model(trimmed)
    saved = sum(parameter.numel() for parameter in models[0].parameters()) - sum(
        parameter.numel() for parameter in models[1].parameters()
    )
    assert result.parameters[0] - result.parameters[1] >= saved > 0
    prompts = [encoder.predict(TEXTS[2]).ids for encoder in (whole.encoder, trimmed.encoder)]
    assert [old_of[index] for index in prompts[1]] == prompts[0]
    answer = trimmed.encoder.text_ids(TEXTS[3])[:6]
    got = next_logits(models[1], trimmed.start_id, prompts[1], answer)
    expected = next_logits(models[0], whole.start_id, prompts[0], [old_of[index] for index in answer])
    assert expected.std() > 0.3  # far from flat
    assert (got - expected[:, list(old_of.values())]).abs().max() < 1e-4
    scores = [
        score_labels(transformers_engine(model, checkpoint.encoder), checkpoint.encoder, [prompt])
        for model, checkpoint, prompt in zip(models, (whole, trimmed), prompts, strict=True)
    ]
    assert abs(scores[0] - scores[1]).max() < 1e-4

    assert result.computing.labels is not None
    assert (result.counted, result.reading.notes, result.computing.labels.rows) == (5, 3, 3)
    assert result.computing.logits < 1e-4
    assert result.computing.labels.same < 1e-4
    assert 0 < result.computing.removed < 1
    assert result.reading.tokens_after >= result.reading.tokens_before
    assert len(steps) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "notes.txt", "out"]


@pytest.mark.parametrize("shape", ["t5-tied", "bart"])
def test_a_trimmed_checkpoint_becomes_a_bundle_and_can_be_trimmed_again(
    shape: str, tiny: Tiny, corpus: Path, tmp_path: Path
) -> None:
    trim_vocabulary(tiny(shape), [corpus], tmp_path / "out")
    options = ConversionOptions(quantization="float32")
    assert convert_to_ctranslate2(tmp_path / "out", tmp_path / "bundle", options).parity.labels.value <= 1e-3
    again = trim_vocabulary(tmp_path / "out", [corpus], tmp_path / "again")
    assert again.ids[0] == again.ids[1]
    assert again.computing.removed == pytest.approx(0, abs=1e-6)
    assert again.reading.same == again.reading.notes == 1


def test_what_travels_with_the_weights(own: Tiny, corpus: Path, notes: Path, tmp_path: Path) -> None:
    folder = own("bart")
    names = {token: index for index, token in enumerate(read_checkpoint(folder).vocabulary)}
    generation = {
        "eos_token_id": [names["[SEP]"], names["[PAD]"]],
        "pad_token_id": names["[PAD]"],
        "suppress_tokens": [names["[MASK]"], names["abcdefghijklmnopqrstuvwxyz"]],
        "bad_words_ids": [[names["abcdefghijklmnopqrstuvwxyz"]], [names["a"], names["b"]]],
        "max_length": 20,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {"4": {"content": "[MASK]", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "r2d_provenance.json").write_text('{"method": "r2d"}', encoding="utf-8")
    (folder / "vocab.txt").write_text("stale\n", encoding="utf-8")
    result = trim_vocabulary(folder, [corpus], tmp_path / "out", unseen=notes)
    out = tmp_path / "out"
    now = {token: index for index, token in enumerate(read_checkpoint(out).vocabulary)}
    assert "abcdefghijklmnopqrstuvwxyz" not in now
    assert json.loads((out / "generation_config.json").read_text(encoding="utf-8")) == {
        "eos_token_id": [now["[SEP]"], now["[PAD]"]],
        "pad_token_id": now["[PAD]"],
        "suppress_tokens": [now["[MASK]"]],
        "bad_words_ids": [[now["a"], now["b"]]],
        "max_length": 20,
    }
    provenance = json.loads((out / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["method"] == "r2d"
    trimmed = provenance["trimmed"]
    assert (trimmed["kept"], trimmed["removed"]) == (result.ids[1], result.ids[0] - result.ids[1])
    assert [entry["file"].split("/")[-1] for entry in trimmed["corpus"]] == ["corpus.jsonl"]
    assert set(trimmed["from_sha256"]) == {"model.safetensors"}
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "golden.jsonl", "model.safetensors", "r2d_provenance.json"),
        *("r2d_task.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert (out / "golden.jsonl").read_bytes() == (folder / "golden.jsonl").read_bytes()


def test_tensors_keep_their_type_and_their_bits(own: Tiny, corpus: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = own("t5-untied-gated")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    trim_vocabulary(folder, [corpus], tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    old, new = (read_checkpoint(path).vocabulary for path in (folder, tmp_path / "out"))
    keep = [old.index(token) for token in new]
    assert written.keys() == tensors.keys()
    by_token = {"shared.weight", "lm_head.weight"}
    assert by_token < written.keys()
    for name, tensor in tensors.items():
        expected = tensor[keep] if name in by_token else tensor
        assert written[name].dtype == torch.bfloat16
        assert torch.equal(written[name], expected)


@pytest.mark.parametrize("kept", [False, True])
def test_sentinels_go_unless_asked_for(kept: bool, tiny: Tiny, corpus: Path, notes: Path, tmp_path: Path) -> None:
    trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out", unseen=notes, keep_sentinels=kept)
    found = [token for token in read_checkpoint(tmp_path / "out").vocabulary if token.startswith("<extra_id_")]
    assert found == ([f"<extra_id_{number}>" for number in range(4)] if kept else [])


def test_a_sentinel_that_a_counted_note_spells_stays(tiny: Tiny, notes: Path, tmp_path: Path) -> None:
    """The real T5 has them among its pieces, where a note's letters can come out as one."""
    from tests.tiny_models import write_tiny_t5

    folder = write_tiny_t5(tmp_path / "t5")
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["vocab"] += [[f"<extra_id_{number}>", 0.0] for number in range(4)]
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["the patient <extra_id_2> has pain", "no pain"])
    trim_vocabulary(folder, [corpus], tmp_path / "out", unseen=notes)
    found = [token for token in read_checkpoint(tmp_path / "out").vocabulary if token.startswith("<extra_id_")]
    assert found == ["<extra_id_2>"]
    with pytest.raises(ParityError, match=r"not counted.*--keep-sentinels.*row '1'"):
        trim_vocabulary(
            folder, [corpus], tmp_path / "no", unseen=write_notes(tmp_path / "other.txt", ["pain <extra_id_1> now"])
        )
    assert not (tmp_path / "no").exists()


def test_transformers_adds_no_sentinel_of_its_own(tmp_path: Path, corpus: Path, notes: Path) -> None:
    from transformers import T5Tokenizer

    from tests.tiny_models import write_tiny_t5

    folder = write_tiny_t5(tmp_path / "t5", vocab_size=400)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = [(piece, score) for piece, score in spec["model"]["vocab"]]
    T5Tokenizer(vocab=vocabulary, extra_ids=100).save_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) > 100
    result = trim_vocabulary(folder, [corpus], tmp_path / "out", unseen=notes)
    assert "extra_ids" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(loaded) == result.ids[1] < 100
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "</s>", "<unk>")
    (folder / "tokenizer_config.json").unlink()
    trim_vocabulary(folder, [corpus], tmp_path / "bare", unseen=notes)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "bare")
    assert (len(loaded), loaded.pad_token, loaded.eos_token) == (result.ids[1], "<pad>", "</s>")


def test_all_that_a_model_reads_and_writes_is_counted(tiny: Tiny, notes: Path, tmp_path: Path) -> None:
    corpus = write_notes(tmp_path / "corpus.txt", ["aaa"])
    trim_vocabulary(tiny("bart"), [corpus], tmp_path / "out", unseen=notes)
    whole, trimmed = (
        PromptEncoder.from_file(path / "tokenizer.json", read_checkpoint(path).task)
        for path in (tiny("bart"), tmp_path / "out")
    )
    for label in CTAS_LEVELS:
        assert trimmed.tokens(trimmed.explain("", label).ids) == whole.tokens(whole.explain("", label).ids)
        assert trimmed.tokens(trimmed.label_ids(label)) == whole.tokens(whole.label_ids(label))
    assert len(trimmed.text_ids(TEXTS[2])) > len(whole.text_ids(TEXTS[2]))


def test_a_note_is_counted_as_it_stands_in_a_prompt_and_by_itself(tiny: Tiny, notes: Path, tmp_path: Path) -> None:
    folder = tiny("llama")
    whole = read_checkpoint(folder).encoder
    known = {index for label in CTAS_LEVELS for index in whole.explain("", label).ids}
    plain = [index for index in range(300, 330) if index not in known and whole.tokens([index])[0].startswith("Ġ")]
    words = [word for index in plain if whole.text_ids(word := whole.decode([index]).strip()) != [index]]
    assert words
    for number, word in enumerate(words[:3]):
        corpus = write_notes(tmp_path / f"{number}.txt", [word])
        trim_vocabulary(folder, [corpus], tmp_path / str(number), unseen=notes)
        trimmed = read_checkpoint(tmp_path / str(number)).encoder
        assert trimmed.tokens(trimmed.predict(word).ids) == whole.tokens(whole.predict(word).ids)
        assert trimmed.tokens(trimmed.text_ids(word)) == whole.tokens(whole.text_ids(word))


def test_labels_of_free_text_are_counted_row_by_row(own: Tiny, tmp_path: Path) -> None:
    folder = own("t5-tied")
    task = json.loads((folder / "r2d_task.json").read_text(encoding="utf-8"))
    task |= {"labels": [], "label_kind": "open"}
    task["prompts"]["explain"] = None
    (folder / "r2d_task.json").write_text(json.dumps(task), encoding="utf-8")
    rows = [{"text": "fever", "label": "vital pressure"}, {"text": "rash"}]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = read_checkpoint(folder).encoder
    for number, explain in enumerate([None, "given label: {label}, explain: {text}"]):
        task["prompts"]["explain"] = explain
        (folder / "r2d_task.json").write_text(json.dumps(task), encoding="utf-8")
        result = trim_vocabulary(folder, [corpus], tmp_path / str(number), unseen=write_notes(tmp_path / "notes.txt"))
        assert result.computing.labels is None
        trimmed = read_checkpoint(tmp_path / str(number)).encoder
        assert trimmed.tokens(trimmed.label_ids("vital pressure")) == whole.tokens(whole.label_ids("vital pressure"))


def test_the_last_tenth_is_not_counted(tiny: Tiny, tmp_path: Path) -> None:
    texts = [*["fever"] * 18, "swelling at the ankle", "swelling of the face"]
    corpus = write_notes(tmp_path / "corpus.txt", texts)
    result = trim_vocabulary(tiny("bart"), [corpus], tmp_path / "out")
    assert (result.counted, result.reading.notes, result.reading.same) == (18, 2, 0)
    assert result.reading.tokens_after > result.reading.tokens_before
    counted = trim_vocabulary(tiny("bart"), [corpus], tmp_path / "two", unseen=write_notes(tmp_path / "n.txt"))
    assert counted.counted == 20
    assert counted.ids[1] > result.ids[1]


def test_every_reason_is_said_and_nothing_written(own: Tiny, tmp_path: Path) -> None:
    folder = own("bart")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = {"decoder_start_token_id": 9_999, "forced_decoder_ids": [[1, 2]]}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "secret"}\n{"label": "secret"}\nsecret\n[1]\n{"text": 3}\n', encoding="utf-8")
    empty = write_notes(tmp_path / "empty.txt", [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(ConversionError) as error:
        trim_vocabulary(folder, [bad, empty, tmp_path / "notes.csv"], tmp_path / "out", force=True)
    said = str(error.value)
    assert len(error.value.reasons) == 6
    for what in ("not a checkpoint", "line 2, line 3, line 4, line 5", "empty.txt holds no row", "notes.csv"):
        assert what in said
    assert "decoder_start_token_id 9999" in said
    assert "forced_decoder_ids" in said
    assert "secret" not in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_other_refusals(own: Tiny, tiny: Tiny, corpus: Path, tmp_path: Path) -> None:
    def reasons(folder: Path, *corpora: Path, **options: Any) -> str:
        with pytest.raises(ConversionError) as error:
            trim_vocabulary(folder, corpora, tmp_path / "out", **options)
        return str(error.value)

    assert "no corpus" in reasons(tiny("bart"))
    assert "--unseen" in reasons(tiny("bart"), corpus, unseen=corpus)
    assert "holds the checkpoint" in reasons(tiny("bart"), tmp_path / "out" / "corpus.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"39 \xb0C")
    assert "UTF-8" in reasons(tiny("bart"), tmp_path / "latin.txt")
    folder = own("llama")
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    spec["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert "at random" in reasons(folder, corpus)
    folder = own("bart")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for label in CTAS_LEVELS for word in label.split()})]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    words.add_special_tokens(names[:4])
    words.save(str(folder / "tokenizer.json"))
    assert "'WordLevel' cannot be trimmed" in reasons(folder, corpus)


def test_nothing_is_written_where_the_proof_fails(
    tiny: Tiny, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_rows, trimmed = network.cut, pieces.trimmed
    with monkeypatch.context() as patch:
        patch.setattr(network, "cut", lambda tensor, name, keep: cut_rows(tensor, name, keep).roll(1, 0))
        with pytest.raises(ParityError, match="kept tokens' logits"):
            trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trim, "_used", lambda *given: {0, 1, 2})
        with pytest.raises(ParityError, match="own words otherwise"):
            trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out")
    used = trim._used

    def without_one(checkpoint: Any, spec: Any, rows: Any) -> set[int]:
        return used(checkpoint, spec, rows) - {pieces.vocabulary_of(spec)["▁the"]}

    with monkeypatch.context() as patch:
        patch.setattr(trim, "_used", without_one)
        with pytest.raises(ParityError, match=r"reads \d counted rows otherwise, for one that of row 'n"):
            trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "trimmed", lambda spec, keep: trimmed(spec, keep) | {"decoder": {"type": "Fuse"}})
        with pytest.raises(ParityError, match="no longer give the text"):
            trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "trimmed", lambda spec, keep: trimmed(spec, [*keep[:5], *keep[:4:-1]]))
        with pytest.raises(ConversionError, match="misnumbered"):
            trim_vocabulary(tiny("t5-tied"), [corpus], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_reading_a_corpus(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "one", "label": "urgent", "rationales": {"llm": "x", "nurse": None}},
        {"text": "two", "label": 3, "rationale": "y", "rationale_post": "z"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row) for row in rows) + "\r\n\r\n", encoding="utf-8")
    assert [(row.id, row.texts, row.label) for row in read_corpus(path)] == [
        ("a", ("one", "x"), "urgent"),
        ("2", ("two", "y", "z"), "3"),
    ]
    path.write_text("\n".join(["{"] * 15), encoding="utf-8")
    with pytest.raises(ValueError, match="line 10 and 5 more"):
        read_corpus(path)
    path.write_text('{"text": "\\ud800"}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        read_corpus(path)


def test_the_command(tiny: Tiny, corpus: Path, notes: Path, tmp_path: Path) -> None:
    arguments = ["trim-vocabulary", str(tiny("bart")), "--corpus", str(corpus), "--unseen", str(notes)]
    arguments += ["-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["ids"][1] < result["ids"][0]
    assert result["size"][1] < result["size"][0]
    assert "parameters saved" in done.stderr
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "notes.txt", "out"]
