"""Note-like text without labels, for a teacher to label: variants of training notes, and notes found in plain text.

A small corpus shows a student each finding in few surroundings. Its notes with sentences left out, or with the second
half of another note, keep the style and shift what is decisive; what label they now deserve the teacher says, in
probabilities (data augmentation for distillation, as in TinyBERT: Jiao et al. 2020, Findings of EMNLP, section 3.3,
though whole sentences are moved here, not words).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from r2d_edge.task import LabelSet
from train.data import DatasetError, read_dataset
from train.files import replace_file
from train.pretrain import read_documents
from train.recipe import RecipeError

DROPPED = 0.25  # the share of sentences that a shortened variant lacks, on average
WORDS = (20, 160)  # the length of a note found in plain text
_SENTENCE = re.compile(r"(?<=[.;!?])\s+")
_AGE = re.compile(r"\b\d{1,3}(?:[- ](?:year|month|week|day)s?[- ]old| ?(?:yo|y/o)\b)", re.IGNORECASE)
_SUMMARY = "Note: "
_HEADING = (
    r"(?:REVIEW OF|PHYSICAL EXAM|VITALS|ALLERGIES|CURRENT MEDICATIONS|MEDICATIONS|(?:[A-Z]+ )*HISTORY|ASSESSMENT)\b"
)
_HISTORY = re.compile(rf"HISTORY OF PRESENT ILLNESS:? (.*?)(?= {_HEADING}|$)")


def write_unlabelled(
    output: Path, *, variants_of: Sequence[Path] = (), notes_in: Sequence[Path] = (), seed: int = 13
) -> int:
    """Writes note-like texts to a JSON Lines file of `id` and `text` and returns how many.

    Args:
        output: the file, written whole or not at all.
        variants_of: training files in the dataset schema; each note of two sentences or more gives one variant.
        notes_in: files of documents, as `pretrain` reads them; see `notes_of`.
        seed: of the variants.

    Raises:
        DatasetError: a training file has faults, or ids (of documents: the files' names) occur in two files.
        RecipeError: nothing was found.
    """
    rng = np.random.default_rng(seed)
    found: list[tuple[str, str]] = []
    for path in variants_of:
        found += [(f"{row_id}-variant", text) for row_id, text in _variants(path, rng)]
    for path in notes_in:
        notes = dict.fromkeys(text for document in read_documents(path) for text in notes_of(document))
        found += [(f"{path.name.partition('.')[0]}-{number}", text) for number, text in enumerate(notes)]
    twice = [row_id for row_id, count in Counter(row_id for row_id, _ in found).items() if count > 1]
    if twice:
        raise DatasetError("these files together", {"ids that would occur twice": twice})
    if not found:
        raise RecipeError("no file gave a text: notes need two sentences to have a variant, documents an age")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row_id, text in found:
            file.write(json.dumps({"id": row_id, "text": text}, ensure_ascii=False) + "\n")
    return len(found)


def sentences(text: str) -> list[str]:
    """A note's sentences, as its full stops and semicolons part it."""
    return [piece for piece in _SENTENCE.split(text.strip()) if piece]


def shortened(text: str, rng: np.random.Generator) -> str:
    """The note without about a quarter of its sentences: one at the least is left out, and the half is kept."""
    pieces = sentences(text)
    count = int(np.clip(rng.binomial(len(pieces), DROPPED), 1, len(pieces) // 2))
    out = set(rng.choice(len(pieces), size=count, replace=False).tolist())
    return " ".join(piece for place, piece in enumerate(pieces) if place not in out)


def crossed(text: str, other: str, rng: np.random.Generator) -> str:
    """The beginning of one note with the end of another, both cut at about the same share of their sentences."""
    first, second = sentences(text), sentences(other)
    share = rng.uniform(0.3, 0.7)
    head = min(max(round(share * len(first)), 1), len(first) - 1)
    tail = min(max(round(share * len(second)), 1), len(second) - 1)
    return " ".join([*first[:head], *second[tail:]])


def notes_of(document: str) -> list[str]:
    """The notes within a document of clinical text: what stands behind `Note: `, or the present illness's history.

    They must name an age and have 20 to 160 words; talk between doctor and patient is no note.
    """
    _, mark, summary = document.rpartition(_SUMMARY)
    texts = [summary] if mark else [match.group(1) for match in _HISTORY.finditer(document)]
    return [
        text.strip()
        for text in texts
        if _AGE.search(text) and WORDS[0] <= len(text.split()) <= WORDS[1] and "[doctor]" not in text
    ]


def _variants(path: Path, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """One variant of each note of a file that has two sentences, by turns shortened and crossed."""
    rows = read_dataset(path, LabelSet((), "open"), unlabelled="taken")
    notes = [(row.id, row.text) for row in rows if len(sentences(row.text)) > 1]
    for place, (row_id, text) in enumerate(notes):
        if place % 2 or len(notes) == 1:
            yield row_id, shortened(text, rng)
        else:
            other = (place + int(rng.integers(1, len(notes)))) % len(notes)
            yield row_id, crossed(text, notes[other][1], rng)
