import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from train import overlap

WORDS = ["the", "patient", "has", "chest", "pain", "and", "is", "short", "of", "breath", ",", "38.5", "°C", "–", "né"]


def texts(rng: np.random.Generator, count: int, longest: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("longest", [3, 6, 30])
def test_scores_of_any_resample_are_those_of_sacrebleu(longest: int) -> None:
    rng = np.random.default_rng(longest)
    said, meant = texts(rng, 40, longest), [text or "x" for text in texts(rng, 40, longest)]
    drawn = rng.integers(0, 40, size=(25, 12))
    times = np.array([np.bincount(row, minlength=40) for row in drawn], dtype=float)
    seen = []
    for figure, metric in ((overlap.bleu(said, meant)[0], BLEU()), (overlap.chrf(said, meant)[0], CHRF())):
        assert figure.value() == pytest.approx(metric.corpus_score(said, [meant]).score)
        expected = [
            metric.corpus_score([said[i] for i in row], [[meant[i] for i in row]]).score for row in drawn.tolist()
        ]
        assert figure.finish(times @ figure.rows) == pytest.approx(expected)
        seen += expected
    assert len(set(seen)) > 20


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ([""], ["a note"]),
        (["xyz"], ["abc"]),
        (["a b"], ["a b"]),
        (["a b c d e"], ["a b c d e"]),
        (["a b c d"], ["a b x d"]),
        (["a x b y"], ["a b c d"]),
        (["the cat sat on a mat today"], ["the cat"]),
    ],
)
def test_edges_are_those_of_sacrebleu(said: list[str], meant: list[str]) -> None:
    assert overlap.bleu(said, meant)[0].value() == pytest.approx(BLEU().corpus_score(said, [meant]).score)
    assert overlap.chrf(said, meant)[0].value() == pytest.approx(CHRF().corpus_score(said, [meant]).score)


def test_signatures_are_those_of_a_whole_corpus() -> None:
    for own, metric in ((overlap.bleu, BLEU()), (overlap.chrf, CHRF())):
        metric.corpus_score(["a b"], [["a b"]])
        assert own(["a"], ["b"])[1] == str(metric.get_signature())
