import hashlib
import json
import math
from pathlib import Path

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from r2d_edge.report import rationale_metrics as metrics
from tests.tiny_models import wordpiece_tokenizer
from train.warmstart import MINILM_SHA256, packaged_minilm

CORPUS = Path(__file__).parents[3] / "train" / "corpora" / "ctas_notes"
SAID = ["Chest pain with sweating needs an ECG now.", "A simple cold, nothing urgent.", ""]
MEANT = ["Sweating and chest pain: an ECG is needed now.", "A plain cold that can wait.", "Stable, can wait."]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minilm():
    return packaged_minilm()


def corpus(part):
    with (CORPUS / f"{part}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["rationales"]["llm"] for row in rows], [row["text"] for row in rows]


@pytest.fixture(scope="module")
def vocabulary():
    return metrics.fact_vocabulary(*corpus("train"))


def test_bleu_and_chrf_are_those_of_sacrebleu():
    scores = metrics.rationale_scores(SAID, MEANT, None)
    assert scores["bleu"] == sacrebleu.corpus_bleu(SAID, [MEANT]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(SAID, [MEANT]).score
    assert scores["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert scores["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert (scores["rows"], scores["empty_candidates"]) == (3, 1)
    assert "bertscore_f1" not in scores


def test_bleu_by_hand():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples and 1 of 2 quadruples match; no brevity penalty
    scores = metrics.rationale_scores(["the man can wait now"], ["the man can wait here"], None)
    assert scores["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_bertscore_is_that_of_the_library(minilm):
    import bert_score

    candidates, references = SAID[:2], MEANT[:2]
    _, _, expected = bert_score.score(candidates, references, model_type=str(minilm), num_layers=6, device="cpu")
    assert metrics.bertscore_f1(candidates, references, minilm) == pytest.approx(expected.numpy(), abs=1e-5)


def write_encoder(folder, kind, **config):
    """A tiny encoder of random weights with a WordPiece vocabulary."""
    import transformers

    folder.mkdir(parents=True)
    size = wordpiece_tokenizer(folder / "tokenizer.json")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(vocab_size=size, **config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so large that each layer changes much
    model.save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TINY_ENCODERS = {
    "Bert": SMALL,
    "Roberta": {**SMALL, "pad_token_id": 0, "max_position_embeddings": 66},
    "DistilBert": {"dim": 24, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
    "T5": {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2},
}


@pytest.mark.parametrize("kind", TINY_ENCODERS)
def test_bertscore_of_a_layer_of_any_encoder(kind, tmp_path):
    """The greedy matching of Zhang et al. worked out here, from the hidden states of the whole network."""
    from transformers import AutoModel, AutoTokenizer

    folder = write_encoder(tmp_path / kind, kind, **TINY_ENCODERS[kind])
    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    network = network.get_encoder() if kind == "T5" else network

    def states(text, layer):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = network(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
            if kind == "T5" and layer < 3:  # what is left of a T5 still ends in its norm
                hidden = network.final_layer_norm(hidden)
        return torch.nn.functional.normalize(hidden, dim=-1)

    def f1(said, meant, layer):
        a, b = states(said, layer), states(meant, layer)
        near = a @ b.T
        # The frame's tokens may be matched but do not count.
        precision, recall = near.max(dim=1).values[1:-1].mean(), near.max(dim=0).values[1:-1].mean()
        return float(2 * precision * recall / (precision + recall))

    pair = SAID[0], MEANT[0]
    last = metrics.bertscore_f1(*([text] for text in pair), folder)
    second = metrics.bertscore_f1(*([text] for text in pair), folder, 2)
    assert last == pytest.approx([f1(*pair, 3)], abs=1e-5)
    assert second == pytest.approx([f1(*pair, 2)], abs=1e-5)
    assert last != pytest.approx(second, abs=1e-4)
    assert metrics.bertscore_settings(folder)["layer"] == 3
    assert metrics.bertscore_settings(folder, 2)["layer"] == 2
    with pytest.raises(ValueError, match="has 3 layers, there is no layer 4"):
        metrics.bertscore_f1(["a"], ["b"], folder, 4)


def test_texts_longer_than_the_encoder_are_cut(tmp_path):
    folder = write_encoder(tmp_path / "roberta", "Roberta", **TINY_ENCODERS["Roberta"])
    long = " ".join(SAID[0] for _ in range(40))
    assert metrics.bertscore_f1([long], [long], folder) == pytest.approx([1], abs=1e-5)


def test_an_encoder_is_found_or_not(tmp_path, minilm):
    assert metrics.find_encoder(str(minilm)) == minilm
    assert metrics.tuned_layer("roberta-large") == 17
    assert metrics.tuned_layer(str(minilm)) is None
    for name in ("nobody/nothing-at-all", "not a name/at/all"):
        with pytest.raises(FileNotFoundError, match="neither as a folder nor on the hub"):
            metrics.find_encoder(name)
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors weights"):
        metrics.bertscore_settings(tmp_path)


def test_the_hash_of_weights_in_parts(tmp_path):
    folder = write_encoder(tmp_path / "bert", "Bert", **SMALL)
    whole = metrics.bertscore_settings(folder)["encoder_sha256"]
    assert whole == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "more.safetensors").write_bytes(b"more")
    assert metrics.bertscore_settings(folder)["encoder_sha256"] != whole


def test_bertscore_counts_empty_texts_as_zero(minilm):
    scores = metrics.rationale_scores(SAID, MEANT, minilm)
    rows = metrics.bertscore_f1([*SAID, "\u200b", MEANT[0]], [*MEANT, MEANT[0], MEANT[0]], minilm)
    assert rows[2] == rows[3] == 0
    assert rows[4] == pytest.approx(1, abs=1e-5)
    assert rows[0] > rows[1] > 0
    assert scores["bertscore_f1"] == pytest.approx(rows[:3].mean(), abs=1e-6)
    assert scores["bertscore"]["encoder_sha256"] == MINILM_SHA256
    assert scores["bertscore"]["layer"] == 6
    assert metrics.bertscore_f1([""], ["x"], minilm).tolist() == [0]


def test_an_encoder_below_a_folder_called_t5_is_still_read_as_it_is(minilm, tmp_path):
    # bert_score.score picks the model class by looking for "t5" in the path
    folder = tmp_path / "t5-venv" / "minilm"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).write_bytes((minilm / name).read_bytes())
    there = metrics.bertscore_f1(SAID[:1], MEANT[:1], folder)
    assert there == pytest.approx(metrics.bertscore_f1(SAID[:1], MEANT[:1], minilm), abs=1e-6)


@given(st.text(max_size=60))
def test_a_text_supports_its_own_facts(text):
    assert metrics.unsupported_numbers(text, text) == []
    everything = frozenset(metrics._terms(text))
    assert metrics.unsupported_terms(text, text, everything) == []


def test_fact_vocabulary_by_hand():
    notes = ["cough today"] * 4 + ["the rash"] * 2 + ["nothing"] * 6
    rationales = ["the cough suggests"] * 3 + ["today suggests"] + ["the rash suggests"] * 2 + ["plain"] * 6
    # cough: 3 rationales, all from the note, held by 4 of 12 notes: lift 3. today: said once.
    # the: 5 times said, 2 times held. suggests: never held. rash: twice, below the count.
    assert metrics.fact_vocabulary(rationales, notes) == {"cough"}
    assert metrics.fact_vocabulary(rationales, notes, min_count=2) == {"cough", "rash"}
    assert metrics.fact_vocabulary(rationales, notes, min_lift=3.1) == frozenset()


def test_unsupported_terms():
    vocabulary = frozenset({"cough", "rash", "warfar"})
    assert metrics.unsupported_terms("A Rash, rashes and coughing on warfarin.", "He coughs.", vocabulary) == [
        "rash",
        "warfarin",
    ]
    assert metrics.unsupported_terms("Sepsis.", "He coughs.", vocabulary) == []


def test_endings_are_dropped_only_where_they_are_endings():
    alike = (
        ("bleed", "bleeding"),
        ("bleed", "bleeds"),
        ("string", "strings"),
        ("vomited", "vomiting"),
        ("bed", "beds"),
    )
    for one, other in alike:
        assert list(metrics._terms(one)) == list(metrics._terms(other)), (one, other)
    apart = (("string", "str"), ("spring", "spr"), ("speed", "spe"), ("bleed", "ble"), ("shred", "shr"))
    for one, other in apart:
        assert list(metrics._terms(one)) != list(metrics._terms(other)), (one, other)
    vocabulary = frozenset(metrics._terms("bleed"))
    assert metrics.unsupported_terms("He bleeds.", "Bleeding since noon.", vocabulary) == []


def test_the_vocabulary_of_the_corpus_holds_findings_and_drugs(vocabulary):
    assert {"cough", "rash", "wheeze", "warfar", "ankle"} <= vocabulary
    assert vocabulary.isdisjoint({"the", "and", "sugges", "urgent", "sepsi", "risk"})


def test_rationales_of_other_notes_have_more_facts_that_the_note_does_not_hold(vocabulary):
    rationales, notes = corpus("validation")
    own = metrics.fact_scores(rationales, notes, vocabulary)
    others = metrics.fact_scores(rationales[1:] + rationales[:1], notes, vocabulary)
    assert own["unsupported_number_share"] < 0.2 < 0.5 < others["unsupported_number_share"]
    assert own["unsupported_term_rate"] < 0.25 < 0.85 < others["unsupported_term_rate"]
    assert own["repetition_share"] == 0


def test_fact_scores_by_hand():
    said = ["cough and rash, 39", "cough", "", "he can go home now as he can go home"]
    notes = ["cough", "well", "well", "well"]
    scores = metrics.fact_scores(said, notes, frozenset({"cough", "rash"}))
    assert scores == {
        "unsupported_number_share": 0.25,
        "unsupported_number_mean": 0.25,
        "unsupported_term_share": 0.5,
        "unsupported_term_mean": 0.5,
        "unsupported_term_rate": pytest.approx(2 / 3),
        "unsupported_fact_share": 0.5,
        "repetition_share": 0.25,
    }
    assert not any(math.isnan(value) for value in metrics.fact_scores([""], ["x"], frozenset()).values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e a b c d", True),
        ("A, b c D. a b c d", True),
        ("a b c a b c", False),
        ("", False),
        ("a a a a a", True),
    ],
)
def test_repetition(text, expected):
    assert metrics.repetition(text) is expected


def test_wrong_rows_are_named():
    with pytest.raises(ValueError, match="1 rationales and 2 references"):
        metrics.rationale_scores(["a"], ["a", "b"], None)
    with pytest.raises(ValueError, match=r"references at \[1\] are blank"):
        metrics.rationale_scores(["a", "b"], ["a", " "], None)
    with pytest.raises(ValueError, match="0 rationales"):
        metrics.fact_scores([], [], frozenset())
