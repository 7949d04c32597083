"""The embedded default: within its size, honest about itself, and exact in its label scores."""

import ctranslate2
import numpy as np
import pytest

import r2d_edge
from r2d_edge.decide import Decider, find_model
from r2d_edge.label_scores import score_labels
from r2d_edge.task import CTAS_LEVELS

MAX_BYTES = 25_000_000
AGREEMENT = 0.05  # of probabilities: what a label leaves to sequences that are no label
NOTE = (
    "62F c/o 'heartburn' since 0430, T2DM on insulin. Both arms feel heavy, vomited x1, clammy. "
    "BP 104/62 HR 98 RR 20 SpO2 95% RA."
)


@pytest.fixture(scope="module")
def decider() -> Decider:
    return r2d_edge.load()


def test_fits_the_wheel() -> None:
    assert sum(path.stat().st_size for path in find_model().rglob("*") if path.is_file()) <= MAX_BYTES


def test_says_what_it_is(decider: Decider) -> None:
    manifest = decider.bundle.manifest
    assert manifest.task.labels.labels == CTAS_LEVELS
    assert manifest.task.labels.kind == "ordered"
    assert manifest.compute_type == "int8"
    card = decider.bundle.path("README.md").read_text(encoding="utf-8")
    for words in ("not a medical device", "Not to be used for", "Under-triage", "the triage nurse"):
        assert words in card
    methods = []
    step = manifest.extra["provenance"]
    while isinstance(step, dict):
        methods.append(step["method"].split(" (")[0])
        step = step["from"]
    assert methods == [
        "reason2decide stage 2",
        "reason2decide stage 1",
        "denoising pre-training",
        "warm start from a BERT encoder",
    ]
    assert manifest.extra["metrics"]["results"].keys() == {"ctas", "ktas"}


def test_decides_a_real_note(decider: Decider) -> None:
    decision = decider.decide(NOTE)
    assert decision.label in CTAS_LEVELS[:3]
    assert decision.rationale is not None
    assert len(decision.rationale.split()) > 8
    assert decision.rationale[0].isupper()
    assert not decision.abstained


def test_golden_notes_score_as_on_the_converting_machine(decider: Decider) -> None:
    # int8 kernels differ between processors; the manifest's own bound is the wider one.
    assert max(decider.golden_differences()) <= decider.bundle.manifest.extra["parity"]["bound"]


def test_label_scores_are_the_whole_labels_probabilities(decider: Decider) -> None:
    """Scoring each label whole, free of any constraint, and normalising gives the same probabilities."""
    encoder, labels = decider.encoder, decider.task.labels.labels
    texts = [row["text"] for row in decider.bundle.golden()]
    fast = np.exp(score_labels(decider.engine, encoder, [encoder.predict(text).ids for text in texts]))
    translator = ctranslate2.Translator(str(decider.bundle.root / "model"), device="cpu", intra_threads=1)
    targets = [encoder.tokens(encoder.label_ids(label)) for label in labels]
    for text, found in zip(texts, fast, strict=True):
        source = encoder.tokens(encoder.predict(text).ids)
        whole = np.array([sum(score.log_probs) for score in translator.score_batch([source] * len(labels), targets)])
        whole = np.exp(whole - np.logaddexp.reduce(whole))
        assert np.abs(whole - found).max() < AGREEMENT


def test_a_label_does_not_depend_on_the_notes_beside_it(decider: Decider) -> None:
    texts = [row["text"] for row in decider.bundle.golden()]
    together = list(decider.decide_many(texts, rationale=False, batch_size=16))
    alone = [decider.decide(text, rationale=False) for text in texts]
    backwards = list(decider.decide_many(texts[::-1], rationale=False, batch_size=5))[::-1]
    for decisions in (together, backwards):
        assert [d.probabilities for d in decisions] == [d.probabilities for d in alone]
