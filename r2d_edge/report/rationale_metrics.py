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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.facts import unsupported_numbers as unsupported_numbers

_TERM = re.compile(r"[^\W\d_]{3,}")
_VOWEL = re.compile("[aeiouy]")
_REPEATED_WORDS = 4
_DEFAULT_INPUT = 512  # tokens, for an encoder that states no limit
# How the usual encoders call their layers, and how their configurations call the number of them.
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "encoder.block", "block", "layers", "layer")
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "num_layers", "encoder_layers", "n_layer")


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


def find_encoder(name: str) -> Path:
    """The folder of an encoder for BERTScore: as given, or a hub repository's in the hub's own cache.

    Raises:
        FileNotFoundError: there is no such folder, and the hub has no such repository or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import cached_file

    try:
        AutoTokenizer.from_pretrained(name)
        AutoModel.from_pretrained(name, use_safetensors=True)
        return Path(cached_file(name, "config.json")).parent
    except (OSError, ValueError) as error:  # the hub's own errors are among these
        raise FileNotFoundError(f"no encoder {name!r}, neither as a folder nor on the hub: {error}") from None


def tuned_layer(name: str) -> int | None:
    """The layer that bert-score's authors chose for an encoder they know by its hub name."""
    from bert_score.utils import model2layers

    layer: int | None = model2layers.get(name)
    return layer


def bertscore_settings(model: Path, layer: int | None = None) -> dict[str, Any]:
    """What a BERTScore depends on: library version, encoder weights (SHA-256), layer and options.

    Raises:
        FileNotFoundError: the folder holds no safetensors weights.
    """
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model} holds no .safetensors weights")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    if len(digests) > 1:  # a model in parts: one digest of the parts' digests
        digests = [hashlib.sha256("".join(digests).encode("ascii")).hexdigest()]
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    layers = next((config[key] for key in _LAYER_COUNTS if key in config), None)
    return {
        "library": f"bert-score {importlib.metadata.version('bert-score')}",
        "encoder_sha256": digests[0],
        "layer": layers if layer is None else layer,  # the last, where none was tuned for this encoder
        "idf": False,
        "rescaled": False,
    }


def bertscore_f1(
    candidates: Sequence[str], references: Sequence[str], model: Path, layer: int | None = None
) -> npt.NDArray[np.float64]:
    """BERTScore F1 of each row, [n], without idf weights or rescaling.

    A text without a token scores 0. Texts are cut at the encoder's longest input (512 tokens for MiniLM).

    Args:
        candidates: n texts.
        references: their n references.
        model: the encoder's folder.
        layer: whose output is compared; None is the last.

    Raises:
        ValueError: the encoder has no such layer.
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
    encoder = AutoModel.from_pretrained(model, use_safetensors=True).float().eval()
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    if layer is not None:
        _keep_layers(encoder, layer)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _longest_input(encoder.config, tokenizer))
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


def _keep_layers(encoder: Any, count: int) -> None:
    """Drops the layers above the first `count`."""
    for place in _LAYER_LISTS:
        *way, last = place.split(".")
        owner = encoder
        for name in way:
            owner = getattr(owner, name, None)
        layers = getattr(owner, last, None)
        if layers is not None and hasattr(layers, "__len__"):
            if not 1 <= count <= len(layers):
                raise ValueError(f"the BERTScore encoder has {len(layers)} layers, there is no layer {count}")
            setattr(owner, last, layers[:count])
            return
    raise ValueError(f"the layers of a {type(encoder).__name__} cannot be told apart: leave its layer out")


def _longest_input(config: Any, tokenizer: Any) -> int:
    """The most tokens that the encoder can place; RoBERTa's positions start behind the padding's."""
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions is None:
        return _DEFAULT_INPUT
    return int(positions) - (int(tokenizer.pad_token_id) + 1 if "roberta" in config.model_type else 0)


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


def vocabulary_words(rationale: str, vocabulary: frozenset[str]) -> frozenset[str]:
    """The words of `vocabulary` that a rationale uses."""
    return vocabulary.intersection(_terms(rationale))


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
    used = sum(len(vocabulary_words(candidate, vocabulary)) for candidate in candidates)
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


def _terms(text: str) -> dict[str, str]:
    """Words of three letters and more, in their order: reduced form to the word as first written."""
    out: dict[str, str] = {}
    for word in _TERM.findall(text.casefold()):
        out.setdefault(_reduce(word), word)
    return out


def _reduce(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        rest = word.removesuffix(ending)
        if rest == word or word.endswith("ss") or len(rest) < 3:
            continue
        # As in Porter 1980 (Program 14:3): "-ing" and "-ed" are endings only where a vowel stands before them
        # ("string" has none), and the "-eed" of "bleed" is none.
        if not (ending in ("ing", "ed") and (word.endswith("eed") or not _VOWEL.search(rest))):
            word = rest
        break
    return word[:6]
