"""How good rationales are: likeness to a reference, and facts that the note does not hold.

Likeness: BLEU and chrF by sacreBLEU (Post 2018, WMT), BERTScore (Zhang et al. 2020, ICLR, arXiv 1904.09675).
Facts: word and number matching, no understanding. It sees a figure or a finding that came from nowhere,
not a negation turned round or a wrong conclusion, and it takes an unknown synonym for a new fact. So
even good rationales score above zero: read the figures beside those of the reference rationales.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_NUMBER_WORDS = dict(
    zip(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        range(1, 13),
        strict=True,
    )
)
# "One" is mostly a pronoun or an article: it supports a 1 but is not itself taken for a figure.
_CLAIMED_WORDS = {word: value for word, value in _NUMBER_WORDS.items() if word != "one"}
_NAMES_WITH_DIGITS = re.compile(r"\b(?:spo2|sao2|pao2|o2|co2|pco2|paco2|etco2|h2o|b12|hba1c)\b")
_GROUPED_DIGITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# A figure that a rationale states: not part of a name (T10, C5), not an ordinal (2nd).
_STATED_NUMBER = re.compile(r"(?<![^\W\d_])(?<![\d.])(\d+(?:\.\d+)?)(?!\d)(?!(?:st|nd|rd|th)\b)('?s\b)?")
_WORD = re.compile(r"[^\W\d_]+")
_TERM = re.compile(r"[^\W\d_]{3,}")
_REPEATED_WORDS = 4


def rationale_scores(
    candidates: Sequence[str], references: Sequence[str], bertscore_model: Path | None
) -> dict[str, Any]:
    """Likeness of rationales to their references.

    Args:
        candidates: n rationales; a blank one scores 0 in BERTScore and is counted.
        references: n reference rationales, none blank.
        bertscore_model: the encoder's folder (`train.warmstart.packaged_minilm()`); None leaves BERTScore out.

    Returns:
        `rows`, `empty_candidates`, corpus `bleu` and `chrf` (0 to 100) with their sacreBLEU signatures,
        and with an encoder `bertscore_f1` (mean over rows) with what it depends on.

    Raises:
        ValueError: there are no rows, the lengths differ, or a reference is blank.
    """
    from sacrebleu.metrics import BLEU, CHRF

    _check_rows(candidates, references, "references")
    blank = [number for number, reference in enumerate(references) if not reference.strip()]
    if blank:
        raise ValueError(f"references at {blank[:20]} are blank: leave rows without a reference rationale out")
    bleu, chrf = BLEU(), CHRF()
    scores: dict[str, Any] = {
        "rows": len(candidates),
        "empty_candidates": sum(not candidate.strip() for candidate in candidates),
        "bleu": bleu.corpus_score(list(candidates), [list(references)]).score,
        "chrf": chrf.corpus_score(list(candidates), [list(references)]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
    if bertscore_model is not None:
        scores["bertscore_f1"] = float(bertscore_f1(candidates, references, bertscore_model).mean())
        scores["bertscore"] = bertscore_settings(bertscore_model)
    return scores


def bertscore_settings(model: Path) -> dict[str, Any]:
    """What a BERTScore depends on: library version, encoder weights (SHA-256), layer and options."""
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    layers = json.loads((model / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return {
        "library": f"bert-score {importlib.metadata.version('bert-score')}",
        "encoder_sha256": digest,
        "layer": layers,  # the last: no layer was tuned for this encoder
        "idf": False,
        "rescaled": False,
    }


def bertscore_f1(candidates: Sequence[str], references: Sequence[str], model: Path) -> npt.NDArray[np.float64]:
    """BERTScore F1 of each row, [n], from the encoder's last layer, without idf weights or rescaling.

    A text without a token scores 0. Texts are cut at the encoder's longest input (512 tokens for MiniLM).
    """
    import torch
    from bert_score.utils import bert_cos_score_idf
    from transformers import AutoModel, AutoTokenizer

    _check_rows(candidates, references, "references")
    tokenizer = AutoTokenizer.from_pretrained(model)
    scores = np.zeros(len(candidates))
    # bert-score 0.3.13 fails on an empty text under transformers 5.
    rows = [
        number
        for number, pair in enumerate(zip(candidates, references, strict=True))
        if all(tokenizer.encode(text, add_special_tokens=False) for text in pair)
    ]
    if not rows:
        return scores
    # `bert_score.score` would take any path that contains "t5" for a T5 model: the encoder is loaded here.
    encoder = AutoModel.from_pretrained(model).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights: defaultdict[int, float] = defaultdict(lambda: 1.0)
    weights[tokenizer.sep_token_id] = weights[tokenizer.cls_token_id] = 0.0
    found = bert_cos_score_idf(
        encoder.to(device),
        [references[row] for row in rows],
        [candidates[row] for row in rows],
        tokenizer,
        weights,
        device=device,
    )
    scores[rows] = found[:, 2].cpu().numpy()
    return scores


def unsupported_numbers(rationale: str, note: str) -> list[str]:
    """The numbers a rationale states that its note does not hold, in order, each once.

    38 and 38.0 are the same, so are "two" and 2 (one to twelve); "the 80s" is supported by 80 to 89.
    Not counted: ordinals, names with digits (SpO2, T10), the word "one". A rounded or computed figure
    counts as unsupported; a number is supported wherever in the note it stands, whatever it measures.
    """
    plain_note = _plain(note)
    held = {Decimal(number) for number in _NUMBER.findall(plain_note)}
    held |= {Decimal(_NUMBER_WORDS[word]) for word in _WORD.findall(plain_note) if word in _NUMBER_WORDS}
    plain = _plain(rationale)
    stated: list[tuple[int, str, Decimal, bool]] = [
        (match.start(), match[1], Decimal(match[1]), bool(match[2])) for match in _STATED_NUMBER.finditer(plain)
    ]
    stated += [
        (match.start(), match[0], Decimal(_CLAIMED_WORDS[match[0]]), False)
        for match in _WORD.finditer(plain)
        if match[0] in _CLAIMED_WORDS
    ]
    out: list[str] = []
    for _, written, value, plural in sorted(stated):
        decade = plural and value % 10 == 0
        supported = any(value <= number < value + 10 for number in held) if decade else value in held
        if not supported and written not in out:
            out.append(written)
    return out


def fact_vocabulary(
    rationales: Sequence[str], notes: Sequence[str], *, min_count: int = 3, min_own: float = 0.7, min_lift: float = 3.0
) -> frozenset[str]:
    """The words that rationales take from their notes (findings, body parts, drugs), learned from training rows.

    Words of reasoning ("suggests", "risk") and conclusions ("sepsis") that rationales add of themselves
    stay outside.

    Args:
        rationales: n training rationales.
        notes: their n notes.
        min_count: a word counts if at least so many rationales hold it, and
        min_own: at least this share of them have it in their own note too, and
        min_lift: that share is at least so many times the share of all notes that have it (which leaves
            out "the" and "and").

    Returns:
        Words in the reduced form that `unsupported_terms` compares.
    """
    _check_rows(rationales, notes, "notes")
    in_rationales: Counter[str] = Counter()
    in_notes: Counter[str] = Counter()
    in_both: Counter[str] = Counter()
    for rationale, note in zip(rationales, notes, strict=True):
        said, held = set(_terms(rationale)), set(_terms(note))
        in_rationales.update(said)
        in_notes.update(held)
        in_both.update(said & held)
    return frozenset(
        word
        for word, count in in_rationales.items()
        if count >= min_count
        and in_both[word] / count >= min_own
        and in_both[word] / count >= min_lift * in_notes[word] / len(notes)
    )


def unsupported_terms(rationale: str, note: str, vocabulary: frozenset[str]) -> list[str]:
    """The words of a rationale that belong to `vocabulary` and are not in its note, in order, each once.

    Words are compared without case and endings (the first six letters after -s, -es, -ed or -ing), so
    inflections match and synonyms do not. A word outside `vocabulary` is never reported: facts in
    words that training rationales hardly used go unseen.

    Args:
        rationale: the text to judge.
        note: the note it explains.
        vocabulary: what `fact_vocabulary` gives.
    """
    held = set(_terms(note))
    return [word for term, word in _terms(rationale).items() if term in vocabulary and term not in held]


def repetition(rationale: str) -> bool:
    """Whether four words in a row occur twice."""
    words = re.findall(r"\w+", rationale.casefold())
    runs = [tuple(words[start : start + _REPEATED_WORDS]) for start in range(len(words) - _REPEATED_WORDS + 1)]
    return len(set(runs)) < len(runs)


def fact_scores(candidates: Sequence[str], notes: Sequence[str], vocabulary: frozenset[str]) -> dict[str, float]:
    """Facts of n rationales that their notes do not hold.

    Returns:
        Shares of rationales with an unsupported number, with an unsupported term, with either, and with
        a repetition; mean counts a rationale; and the share of all vocabulary words that was
        unsupported, which a short or empty rationale cannot lower (0 where no rationale had one).

    Raises:
        ValueError: there are no rows or the lengths differ.
    """
    _check_rows(candidates, notes, "notes")
    pairs = list(zip(candidates, notes, strict=True))
    numbers = [len(unsupported_numbers(*pair)) for pair in pairs]
    terms = [len(unsupported_terms(*pair, vocabulary)) for pair in pairs]
    used = sum(len(vocabulary.intersection(_terms(candidate))) for candidate in candidates)
    rows = len(pairs)
    return {
        "unsupported_number_share": sum(count > 0 for count in numbers) / rows,
        "unsupported_number_mean": sum(numbers) / rows,
        "unsupported_term_share": sum(count > 0 for count in terms) / rows,
        "unsupported_term_mean": sum(terms) / rows,
        "unsupported_term_rate": sum(terms) / used if used else 0.0,
        "unsupported_fact_share": sum(a + b > 0 for a, b in zip(numbers, terms, strict=True)) / rows,
        "repetition_share": sum(map(repetition, candidates)) / rows,
    }


def _check_rows(first: Sequence[str], second: Sequence[str], name: str) -> None:
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} rationales and {len(second)} {name}: both must be the same, more than 0")


def _plain(text: str) -> str:
    """Lower case, without names that hold digits, digits ungrouped (1,200 is 1200)."""
    return _GROUPED_DIGITS.sub("", _NAMES_WITH_DIGITS.sub(" ", text.casefold()))


def _terms(text: str) -> dict[str, str]:
    """Words of three letters and more, in their order: reduced form to the word as first written."""
    out: dict[str, str] = {}
    for word in _TERM.findall(text.casefold()):
        out.setdefault(_reduce(word), word)
    return out


def _reduce(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:6]
