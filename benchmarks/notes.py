"""The notes that speed is measured on: one fixed note, and a mix out of the committed corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "train" / "corpora" / "ctas_notes"
SEED = 13

# 150 tokens in triage-nano's vocabulary, without the prompt's words; made up, like the whole corpus.
FIXED_NOTE = (
    "71M brought in by his daughter, short of breath since last night, worse lying flat, slept in the armchair. "
    "Ankles swollen for a week, gained 4 kg, cough with white froth, no fever. Denies chest pain, says it is "
    "'just tight'. Had a heart attack in 2019, two stents, stopped his water tablets on holiday ten days ago. "
    "Speaks in short sentences, sits upright, lips a little blue, skin cool and damp. BP 168/94 HR 112 irregular "
    "RR 28 SpO2 89% RA, 94% on 4 L. Temp 36.7. Crackles to both mid zones at the triage desk. Takes bisoprolol "
    "and aspirin. No rash. Lives alone."
)
FIXED_LABEL = "emergent"


def corpus_rows(part: str) -> list[dict[str, str]]:
    """`text` and `label` of the notes of one part of the CTAS corpus, `train` or `validation`."""
    with (CORPUS / f"{part}.jsonl").open(encoding="utf-8") as lines:
        return [{"text": row["text"], "label": row["label"]} for row in map(json.loads, lines)]


def corpus_texts() -> list[str]:
    """Every note and rationale of the corpus: what a vocabulary is learned from."""
    texts = []
    for part in ("train", "validation"):
        with (CORPUS / f"{part}.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                texts += [row["text"], *row["rationales"].values()]
    return texts


def mixed_rows(count: int) -> list[dict[str, str]]:
    """So many validation notes of all lengths, the same each time; of a larger count the first are the same."""
    rows = corpus_rows("validation")
    if not 0 < count <= len(rows):
        raise ValueError(f"the corpus has {len(rows)} validation notes; {count} were asked for")
    random.Random(SEED).shuffle(rows)
    return rows[:count]
