"""Trimming a BERT WordPiece vocabulary to the pieces that a corpus uses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str], chunk: int = 2048) -> Counter[int]:
    """Counts how often each piece id of `tokenizer` occurs in `texts`, specials left out."""
    counts: Counter[int] = Counter()
    batch: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            counts.update(encoding.ids)
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == chunk:
            flush()
    flush()
    return counts


def _is_single_character(piece: str) -> bool:
    return len(piece.removeprefix("##")) == 1


def choose_pieces(
    vocabulary: dict[str, int],
    required: Counter[int],
    wanted: Counter[int],
    size: int,
) -> list[int]:
    """Chooses the old ids to keep, in their old order.

    Specials, single characters (so that any word can still be spelled) and every piece in
    `required` always stay; the most frequent pieces of `wanted` fill up to `size`. A size of the whole
    vocabulary or more keeps it whole.

    Raises:
        ValueError: `size` is too small for what must stay.
    """
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(f"not a BERT WordPiece vocabulary: {missing} missing")
    if size >= len(vocabulary):
        return sorted(vocabulary.values())
    keep = {index for piece, index in vocabulary.items() if _is_single_character(piece)}
    keep |= {vocabulary[token] for token in SPECIAL_TOKENS} | set(required)
    if len(keep) > size:
        raise ValueError(
            f"vocabulary size {size} is below the {len(keep)} pieces that must stay; raise --vocabulary-size"
        )
    for index, _ in sorted(wanted.items(), key=lambda item: (-item[1], item[0])):
        if len(keep) == size:
            break
        keep.add(index)
    return sorted(keep)


def trim_tokenizer(source: Path, keep: list[int], target: Path) -> None:
    """Writes `source` (a WordPiece tokenizer.json) to `target` with only the ids in `keep`.

    New ids are the positions in `keep`. Truncation and padding stored in the file are dropped:
    lengths are the caller's affair here.
    """
    spec = json.loads(source.read_text(encoding="utf-8"))
    old = {index: piece for piece, index in spec["model"]["vocab"].items()}
    renumbered = {old_id: new_id for new_id, old_id in enumerate(keep)}
    spec["model"]["vocab"] = {old[index]: renumbered[index] for index in keep}
    spec["truncation"] = None
    spec["padding"] = None
    spec["added_tokens"] = [
        {**token, "id": renumbered[token["id"]]} for token in spec["added_tokens"] if token["id"] in renumbered
    ]
    post = spec.get("post_processor") or {}
    for name in post.get("special_tokens", {}):
        entry = post["special_tokens"][name]
        entry["ids"] = [renumbered[index] for index in entry["ids"]]
    target.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
