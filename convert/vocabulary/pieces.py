"""Which pieces of a vocabulary stay, so that the texts that were counted are read as before.

Why leaving other pieces out changes nothing for a text that does not use them:

- Unigram takes the split with the best sum of scores. The best of many is the best of fewer, as long as it
  is among them, and where scores are equal the first in order stays the first. An unknown character costs
  the lowest score of the vocabulary less a constant, so the piece with the lowest score stays too.
- WordPiece takes the longest piece that fits, again and again. What was the longest of many is the longest of
  fewer. A word that ends as unknown was read up to some point: the pieces up to there stay too.
- BPE joins neighbours, the best-ranked pair first. A piece is always joined in the same steps, those it takes
  when it stands alone, since no step that crosses its edges was taken; so what stands between its characters
  and itself stays too. A join that was never made, or whose result is gone, is not missed.

Any other text can still be spelled: every single character and every byte stays, and so does each piece with a
character that has no piece of its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KINDS = ("Unigram", "WordPiece", "BPE")
_SENTINEL = re.compile(r"<extra_id_\d+>")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Spec = dict[str, Any]  # a tokenizer.json


def vocabulary_of(spec: Spec) -> dict[str, int]:
    """The model's pieces with their ids, without what was only added."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        return {piece: index for index, (piece, _) in enumerate(vocab)}
    return dict(vocab)


def sentinels_of(spec: Spec) -> dict[str, int]:
    """T5's markers of masked spans, `<extra_id_0>` and so on, with their ids."""
    return {token["content"]: token["id"] for token in spec["added_tokens"] if _SENTINEL.fullmatch(token["content"])}


def choose(spec: Spec, used: Iterable[int], *, keep_sentinels: bool) -> list[int]:
    """The old ids that stay, in their new order: the model's pieces first, then what was only added.

    Args:
        spec: the tokenizer.json.
        used: ids that must stay.
        keep_sentinels: whether T5's sentinels stay. They mark masked spans in pre-training; no prompt or answer of
            the task has them and no note can make them, so they serve only who pre-trains further.
    """
    vocabulary = vocabulary_of(spec)
    sentinels = sentinels_of(spec)
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    stays = set(used) | {index for token, index in added.items() if keep_sentinels or token not in sentinels}
    plain = {piece: index for piece, index in vocabulary.items() if piece not in added}
    model = spec["model"]
    characters = _characters(model, plain)
    stays |= {plain[piece] for piece in characters}
    stays |= {index for piece, index in plain.items() if _BYTE.fullmatch(piece)}
    if model["type"] == "BPE":
        stays |= _steps(model, vocabulary, [piece for piece, index in plain.items() if index in stays])
    else:
        stays |= {index for piece, index in plain.items() if not characters.issuperset(_spelled(model, piece))}
    if model["type"] == "Unigram":
        lowest = min(range(len(model["vocab"])), key=lambda index: float(model["vocab"][index][1]))
        stays |= {lowest, model["unk_id"]} - {None}
    elif model.get("unk_token") is not None:
        stays.add((vocabulary | added)[model["unk_token"]])
    own = set(vocabulary.values())
    return [*sorted(stays & own), *sorted(stays - own)]


def on_the_way_to_unknown(tokenizer: Tokenizer, spec: Spec, text: str) -> set[int]:
    """The pieces that WordPiece finds in words which then end as unknown."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    words = [text]
    if tokenizer.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    vocabulary = vocabulary_of(spec)
    prefix = spec["model"]["continuing_subword_prefix"]
    found: set[int] = set()
    for word in words:
        start = 0
        way: list[int] = []
        while start < len(word):
            lead = prefix if start else ""
            stop = next((end for end in range(len(word), start, -1) if lead + word[start:end] in vocabulary), None)
            if stop is None:
                found.update(way)
                break
            way.append(vocabulary[lead + word[start:stop]])
            start = stop
    return found


def trimmed(spec: Spec, keep: list[int]) -> Spec:
    """The tokenizer.json with the ids of `keep` alone, renumbered by their places in it.

    Truncation and padding are left out: lengths are the caller's affair.
    """
    new_of = {old: new for new, old in enumerate(keep)}
    model = dict(spec["model"])
    vocabulary = vocabulary_of(spec)
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][old] for old in keep if old < len(model["vocab"])]
        model["unk_id"] = None if model["unk_id"] is None else new_of[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_of[old] for piece, old in vocabulary.items() if old in new_of}
        model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        kept = model["vocab"]
        parts = [(merge, *_pair(merge)) for merge in model["merges"]]
        model["merges"] = [
            merge for merge, one, two in parts if {one, two, _joined(model, one, two)}.issubset(kept.keys())
        ]
    added = [{**token, "id": new_of[token["id"]]} for token in spec["added_tokens"] if token["id"] in new_of]
    return {
        **spec,
        "model": model,
        "added_tokens": sorted(added, key=lambda token: int(token["id"])),
        "post_processor": _renumbered(spec.get("post_processor"), new_of),
        "truncation": None,
        "padding": None,
    }


def frame_ids(processor: Any) -> set[int]:
    """The ids that a post-processor puts around a text."""
    if processor is None:
        return set()
    ids = {index for entry in _template(processor).values() for index in entry["ids"]}
    ids |= {processor[name][1] for name in ("cls", "sep") if name in processor}
    return ids.union(*(frame_ids(part) for part in processor.get("processors", [])))


def _renumbered(processor: Any, new_of: Mapping[int, int]) -> Any:
    """A post-processor with new ids."""
    if processor is None:
        return None
    result = dict(processor)
    if template := _template(processor):
        result["special_tokens"] = {
            name: {**entry, "ids": [new_of[index] for index in entry["ids"]]} for name, entry in template.items()
        }
    for name in ("cls", "sep"):
        if name in processor:
            token, index = processor[name]
            result[name] = [token, new_of[index]]
    if "processors" in processor:
        result["processors"] = [_renumbered(part, new_of) for part in processor["processors"]]
    return result


def _template(processor: Any) -> dict[str, Any]:
    special = processor.get("special_tokens", {})
    return special if isinstance(special, dict) else {}


def _affixes(model: Spec) -> tuple[str, str]:
    """What a piece within a word begins with, and what one at its end ends with."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _characters(model: Spec, pieces: Iterable[str]) -> set[str]:
    """The pieces that are one character, within a word or not."""
    prefix, suffix = _affixes(model)
    found = set()
    for piece in pieces:
        bare = piece.removeprefix(prefix)
        if len(piece) == 1 or len(bare) == 1 or len(bare.removesuffix(suffix)) == 1:
            found.add(piece)
    return found


def _spelled(model: Spec, piece: str) -> list[str]:
    """A piece's characters as pieces of their own."""
    prefix, suffix = _affixes(model)
    within = bool(prefix) and piece.startswith(prefix)
    body = piece.removeprefix(prefix) if within else piece
    ends = bool(suffix) and body.endswith(suffix)
    body = body.removesuffix(suffix) if ends else body
    spelled = [(prefix if within or place else "") + character for place, character in enumerate(body)]
    if ends and spelled:
        spelled[-1] += suffix
    return spelled


def _pair(merge: Any) -> tuple[str, str]:
    """The two sides of a merge, which older files write as one string."""
    one, two = merge.split(" ", 1) if isinstance(merge, str) else merge
    return one, two


def _joined(model: Spec, one: str, two: str) -> str:
    return one + two.removeprefix(_affixes(model)[0])


def _steps(model: Spec, vocabulary: Mapping[str, int], pieces: Iterable[str]) -> set[int]:
    """The pieces that BPE makes on its way to some."""
    ranks: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks[_pair(merge)] = rank
    found: set[int] = set()
    for piece in pieces:
        symbols = _spelled(model, piece)
        while True:
            pairs = list(itertools.pairwise(symbols))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)), default=None)
            if best is None or best not in ranks:
                break
            place = pairs.index(best)
            symbols[place : place + 2] = [_joined(model, *best)]
            found.add(vocabulary[symbols[place]])
    return found
