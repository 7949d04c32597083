"""The rationales of both sides: likeness to each other and to the gold ones, and what the note does not hold."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r2d_edge.facts import unsupported_numbers
from r2d_edge.report.drugs import unsupported_drugs
from r2d_edge.report.labelled import LabelledRow
from r2d_edge.report.rationale_metrics import bertscore_settings, rationale_scores, repetition
from r2d_edge.report.sides import Answers


def compare_rationales(
    rows: Sequence[LabelledRow],
    reference: Answers,
    candidate: Answers,
    places: Sequence[int],
    source: str | None,
    encoder: Path | None,
    warnings: list[str],
) -> dict[str, Any] | None:
    """The report's section on rationales; None where no row has one of each side.

    Args:
        rows: all rows.
        reference: what the reference said of them.
        candidate: what the candidate said of them.
        places: the rows that count.
        source: whose rationales are the gold ones; None for none.
        encoder: BERTScore's, or None to leave it out.
        warnings: what is left out for want of a library is added here.
    """
    used = [n for n in places if reference.rationales[n] is not None and candidate.rationales[n] is not None]
    if not used:
        return None
    likeness = importlib.util.find_spec("sacrebleu") is not None
    if not likeness:
        warnings.append("BLEU and chrF are left out: sacrebleu is not installed (pip install 'r2d-edge[report]')")
    absent = [name for name in ("bert_score", "torch", "transformers") if importlib.util.find_spec(name) is None]
    if encoder is not None and absent:
        warnings.append(f"BERTScore is left out: {', '.join(absent)} not installed")
        encoder = None
    notes = [rows[n].text for n in used]
    theirs, ours = ([side.rationales[n] or "" for n in used] for side in (reference, candidate))

    def alike(said: Sequence[str], meant: Sequence[str | None]) -> dict[str, Any] | None:
        pairs = [(a, b) for a, b in zip(said, meant, strict=True) if b is not None and b.strip()]
        if not pairs or not likeness:
            return None
        found = rationale_scores([a for a, _ in pairs], [b for _, b in pairs], encoder)
        return {
            "rows": found["rows"],
            "bleu": found["bleu"],
            "chrf": found["chrf"],
            "bertscore_f1": found.get("bertscore_f1"),
            "signatures": {"bleu": found["bleu_signature"], "chrf": found["chrf_signature"]},
        }

    def both(found: Callable[[str, str], bool]) -> dict[str, float | None]:
        sides = {"reference": theirs, "candidate": ours}
        return {name: _share(list(map(found, texts, notes))) for name, texts in sides.items()}

    gold = [rows[n].rationales.get(source) if source is not None else None for n in used]
    words = [sum(len(text.split()) for text in texts) for texts in (theirs, ours)]
    return {
        "rows": len(used),
        "source": source,
        "exact_match": _share([a == b for a, b in zip(theirs, ours, strict=True)]),
        "empty": {"reference": sum(not t.strip() for t in theirs), "candidate": sum(not t.strip() for t in ours)},
        "candidate_vs_reference": alike(ours, theirs),
        "reference_vs_gold": alike(theirs, gold),
        "candidate_vs_gold": alike(ours, gold),
        "length_ratio": words[1] / words[0] if words[0] else None,
        "repetition": both(lambda text, note: repetition(text)),
        "unsupported_numbers": both(lambda text, note: bool(unsupported_numbers(text, note))),
        "unsupported_terms": both(lambda text, note: bool(unsupported_drugs(text, note))),
        "consistency": {
            "reference": _share([side for n in used if (side := reference.consistent[n]) is not None]),
            "candidate": _share([side for n in used if (side := candidate.consistent[n]) is not None]),
        },
        "bertscore": bertscore_settings(encoder) if encoder is not None else None,
    }


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
