"""What the records of a model on a labelled set are worth: labels, probabilities, rationales.

Each figure is a `bootstrap.Figure`, so that it has an interval, and a difference between two models can be
drawn over the same rows.

Consistency and sufficiency are those of Reason2Decide-C (Hasan et al., Computers 2026, 15(5), 279) as its
authors' evaluation script works them out: P1 is the label of the note, P2 the label of the generated rationale
alone (`predict: {rationale}`); consistency is the share of rows with P2 = P1, sufficiency that with P2 = gold,
and gold robustness the share of reference rationales whose label, by the same prompt, is the gold one. Labels
are compared without case and outer blanks. Two things are ours: a blank rationale recovers no label here
(theirs asks with an empty prompt), and `names_label` says how many rationales write their label out, for which
recovering it proves little.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge import metrics
from r2d_edge.bootstrap import RESAMPLES, Figure, Floats, divide, estimate, mean, ratio
from r2d_edge.report.label_figures import calibration_error, macro_f1, one_hot
from r2d_edge.report.rationale_metrics import (
    fact_scores,
    repetition,
    unsupported_numbers,
    unsupported_terms,
    vocabulary_words,
)
from r2d_edge.report.sections import risk_coverage
from r2d_edge.revision import is_name_alone
from r2d_edge.task import LabelSet
from train import overlap
from train.data import normal
from train.pairs import contrast_pairs

Indices = npt.NDArray[np.int64]
Record = Mapping[str, Any]

RISKS = (0.05, 0.1, 0.2)  # shares of errors at which the coverage is told
NOTABLE_EMPTY = 0.05  # share of empty rationales that is warned of
# What `add_fact_counts` adds to a record; records of earlier versions have none of it.
UNSUPPORTED_NUMBERS, UNSUPPORTED_TERMS, VOCABULARY_WORDS = (
    "unsupported_numbers",
    "unsupported_terms",
    "vocabulary_words",
)


class Rows:
    """The records of one model on one set.

    Args:
        records: as `answering.answer_rows` makes them.
        labels: the label set. Of an open one every label that occurs is a class of its own.

    Raises:
        ValueError: there are no records, or a gold label is not in the set.
    """

    def __init__(self, records: Sequence[Record], labels: LabelSet) -> None:
        if not records:
            raise ValueError("there are no records to score")
        self.records = list(records)
        self.labels = labels
        if labels.kind != "open":
            for record in self.records:
                labels.index(record["gold"])

    @property
    def open(self) -> bool:
        """Whether the labels are free text."""
        return self.labels.kind == "open"

    @cached_property
    def right(self) -> Floats:
        """Whether each row's label is the gold one, 1 or 0, [n]."""
        return _same(self.records, "label", "gold")

    @cached_property
    def probabilities(self) -> Floats | None:
        """[n, k], or None where the records have none over the whole set."""
        names = self.labels.labels
        if self.open or not all(len(record["probabilities"]) == len(names) for record in self.records):
            return None
        return np.array([[record["probabilities"][name] for name in names] for record in self.records])

    @cached_property
    def referenced(self) -> list[Record]:
        """The records with a rationale and a reference to compare it with."""
        return [record for record in self.explained if record["reference"] is not None]

    @cached_property
    def explained(self) -> list[Record]:
        """The records with a rationale, be it blank."""
        return [record for record in self.records if record["rationale"] is not None]

    def classes(self, records: Sequence[Record], key: str) -> tuple[Indices, Indices, int]:
        """Gold and `key` labels as class numbers, [n] each (-1 for no label), and the number of classes."""
        names = [normal(name) for name in self.labels.labels]
        if self.open:
            names = sorted({normal(record[place]) for record in records for place in ("gold", key)} - {""})
        number = {name: index for index, name in enumerate(names)}
        gold, other = (
            np.array([number.get(normal(record[place]), -1) for record in records], dtype=np.int64)
            for place in ("gold", key)
        )
        return gold, other, len(names)


def label_figures(
    gold: Indices, predicted: Indices, classes: int, *, ordered: bool = False, probabilities: Floats | None = None
) -> dict[str, Figure]:
    """Label figures of class numbers [n] over `classes` classes, with probabilities [n, classes] if any.

    They are those of `r2d_edge.metrics`, as figures with rows.
    """
    found = {"accuracy": mean(gold == predicted), "macro_f1": macro_f1(gold, predicted, classes)}
    if ordered:
        found["quadratic_kappa"] = quadratic_kappa(gold, predicted)
        found["under_triage"] = mean(predicted > gold)
        found["over_triage"] = mean(predicted < gold)
    if probabilities is not None:
        found["ece"] = calibration_error(gold == predicted, probabilities.max(axis=1))
        truth = one_hot(gold, classes)
        found["brier"] = mean(((probabilities - truth) ** 2).sum(axis=1))
    return found


def quadratic_kappa(gold: Indices, predicted: Indices) -> Figure:
    """Cohen's kappa with quadratic weights; the disagreement that chance gives follows from sums of squares."""
    g, p = gold.astype(np.float64), predicted.astype(np.float64)

    def finish(sums: Floats) -> Floats:
        count, distance, gold_sum, gold_squares, other_sum, other_squares = np.moveaxis(sums, -1, 0)
        chance = gold_squares + other_squares - 2 * gold_sum * other_sum / count
        return 1 - divide(distance, chance)

    return Figure(np.column_stack([np.ones(len(g)), (g - p) ** 2, g, g**2, p, p**2]), finish)


def _of_labels(name: str) -> Callable[[Rows], Figure | None]:
    def make(rows: Rows) -> Figure | None:
        if rows.open:
            if name == "macro_f1":
                return macro_f1(*rows.classes(rows.records, "label"), of_present=True)
            return mean(rows.right) if name == "accuracy" else None
        ordered = rows.labels.kind == "ordered"
        gold, predicted, count = rows.classes(rows.records, "label")
        return label_figures(gold, predicted, count, ordered=ordered, probabilities=rows.probabilities).get(name)

    return make


def _pairs_both_right(rows: Rows) -> Figure | None:
    right = dict(zip((record["id"] for record in rows.records), rows.right, strict=True))
    pairs = contrast_pairs(right)
    return mean([right[a] * right[b] for a, b in pairs]) if pairs else None


def _overlap(measure: Callable[[list[str], list[str]], tuple[Figure, str]]) -> Callable[[Rows], Figure | None]:
    def make(rows: Rows) -> Figure | None:
        return measure(*_texts(rows.referenced))[0] if rows.referenced else None

    return make


def _bertscore_f1(rows: Rows) -> Figure | None:
    scores = [record.get("bertscore_f1") for record in rows.referenced]
    return mean(scores) if scores and None not in scores else None  # type: ignore[arg-type]


def _share(key: str, other: str) -> Callable[[Rows], Figure | None]:
    """The share of rows whose two labels are the same, among those that have both."""

    def make(rows: Rows) -> Figure | None:
        asked = [record for record in rows.records if record.get(key) is not None]
        return mean(_same(asked, key, other)) if asked else None

    return make


def _sufficiency_macro_f1(rows: Rows) -> Figure | None:
    asked = [record for record in rows.records if record.get("recovered") is not None]
    return macro_f1(*rows.classes(asked, "recovered"), of_present=rows.open) if asked else None


def _repetition(rows: Rows) -> Figure | None:
    return mean([repetition(record["rationale"]) for record in rows.explained]) if rows.explained else None


def _counted(key: str, *others: str) -> Callable[[Rows], Figure | None]:
    """The share of rationales of which one of these counts (see `add_fact_counts`) is above 0."""

    def make(rows: Rows) -> Figure | None:
        counts = _counts(rows, key, *others)
        return mean((counts > 0).any(axis=1)) if counts is not None else None

    return make


def _unsupported_term_rate(rows: Rows) -> Figure | None:
    counts = _counts(rows, UNSUPPORTED_TERMS, VOCABULARY_WORDS)
    return ratio(counts[:, 0], counts[:, 1]) if counts is not None else None


def _counts(rows: Rows, *keys: str) -> Floats | None:
    """Counts of the written rationales, [n, keys]; None where a record lacks one."""
    counts = [[record.get(key) for key in keys] for record in rows.explained]
    return None if not counts or any(None in row for row in counts) else np.array(counts, dtype=np.float64)


def _names_label(rows: Rows) -> Figure | None:
    named = [names_label(record["rationale"], record["label"], rows.labels) for record in rows.explained]
    return mean(named) if named else None


# Every figure that needs the records alone: they can be compared between models.
FIGURES: Mapping[str, Callable[[Rows], Figure | None]] = {
    "macro_f1": _of_labels("macro_f1"),
    "accuracy": _of_labels("accuracy"),
    "quadratic_kappa": _of_labels("quadratic_kappa"),
    "under_triage": _of_labels("under_triage"),
    "over_triage": _of_labels("over_triage"),
    "ece": _of_labels("ece"),
    "brier": _of_labels("brier"),
    "pairs_both_right": _pairs_both_right,
    "bleu": _overlap(overlap.bleu),
    "chrf": _overlap(overlap.chrf),
    "bertscore_f1": _bertscore_f1,
    "consistency": _share("recovered", "label"),
    "sufficiency": _share("recovered", "gold"),
    "sufficiency_macro_f1": _sufficiency_macro_f1,
    "gold_robustness": _share("recovered_from_reference", "gold"),
    "names_label": _names_label,
    "repetition_share": _repetition,
    "unsupported_number_share": _counted(UNSUPPORTED_NUMBERS),
    "unsupported_term_share": _counted(UNSUPPORTED_TERMS),
    "unsupported_fact_share": _counted(UNSUPPORTED_NUMBERS, UNSUPPORTED_TERMS),
    "unsupported_term_rate": _unsupported_term_rate,
}
# Those that depend on the vocabulary that facts are told by.
OF_VOCABULARY = ("unsupported_term_share", "unsupported_fact_share", "unsupported_term_rate")


def add_fact_counts(
    records: Sequence[dict[str, Any]], notes: Mapping[str, str], vocabulary: frozenset[str] | None
) -> None:
    """Counts in every rationale the facts that its note does not hold (see `rationale_metrics`).

    A record then holds `unsupported_numbers` and, given the vocabulary, `unsupported_terms` and `vocabulary_words`
    (the words of the vocabulary that the rationale uses, supported or not); None where it has no rationale.

    Args:
        records: as `answering.answer_rows` makes them.
        notes: the notes by id.
        vocabulary: what `fact_vocabulary` learned; without it facts are numbers alone.
    """
    for record in records:
        text, note = record["rationale"], notes[record["id"]]
        record[UNSUPPORTED_NUMBERS] = len(unsupported_numbers(text, note)) if text is not None else None
        if vocabulary is not None:
            record[UNSUPPORTED_TERMS] = len(unsupported_terms(text, note, vocabulary)) if text is not None else None
            record[VOCABULARY_WORDS] = len(vocabulary_words(text, vocabulary)) if text is not None else None


def score_records(
    records: Sequence[Record],
    notes: Mapping[str, str],
    labels: LabelSet,
    *,
    vocabulary: frozenset[str] | None = None,
    seed: int = 13,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Every figure of one model on one set, those of `FIGURES` with 95 % bootstrap intervals.

    Args:
        records: as `answering.answer_rows` makes them, with what `add_fact_counts` and `evaluate.add_bertscore`
            add where those figures are wanted.
        notes: the notes by id.
        labels: the label set.
        vocabulary: what `fact_vocabulary` learned, for the facts of the references; without it they are numbers
            alone.
        seed: of the bootstrap.
        resamples: how many.

    Returns:
        JSON-ready: `rows`, each figure as `{"value", "low", "high"}`, `by_label` and `confusion` (closed sets),
        `reliability` and `risk_coverage` (where probabilities are over the whole set; bins without rows have nan;
        see `sections.risk_coverage`, and `coverage_at_risk` for each of `RISKS`),
        `pairs`, and where rationales were written `rationales`, `references`, `without_reference`,
        `empty_rationales`, `bare_labels` (nothing but the name of a label), `words_mean` and `reference_facts`
        (what the same measures find in the references).
    """
    rows = Rows(records, labels)

    def estimated(figure: Figure) -> dict[str, float]:
        return estimate(figure, seed=seed, resamples=resamples)._asdict()

    found: dict[str, Any] = {"rows": len(rows.records)}
    found.update({name: estimated(figure) for name, make in FIGURES.items() if (figure := make(rows)) is not None})
    found["pairs"] = len(contrast_pairs(record["id"] for record in rows.records))
    for flag in ("truncated", "abstained"):
        found[flag] = sum(bool(record.get(flag)) for record in rows.records)
    if not rows.open:
        found.update(_by_label(rows))
        if rows.probabilities is not None:
            gold, _, _ = rows.classes(rows.records, "label")
            found["reliability"] = [asdict(one) for one in metrics.reliability(gold, rows.probabilities)]
            found["risk_coverage"] = {
                **risk_coverage(gold, rows.probabilities),
                "coverage_at_risk": [
                    {"risk": risk, "coverage": coverage_at_risk(gold, rows.probabilities, risk)} for risk in RISKS
                ],
            }
    if rows.explained:
        found.update(_about_rationales(rows, notes, vocabulary))
    return found


def coverage_at_risk(gold: Indices, probabilities: Floats, risk: float) -> float:
    """The greatest share of rows that a threshold on the confidence decides with at most `risk` errors among them.

    On these very rows: what a threshold holds on others is `r2d-edge calibrate`'s to bound.

    Args:
        gold: class numbers, [n].
        probabilities: [n, classes].
        risk: the share of errors allowed among the rows decided.
    """
    confidences = probabilities.max(axis=1)
    wrong = (probabilities.argmax(axis=1) != gold).astype(np.float64)
    coverage, risks = metrics.risk_coverage(confidences, wrong)
    falling = np.sort(confidences)[::-1]
    # Rows of one confidence are decided together or not at all.
    can_end = np.append(falling[1:] < falling[:-1], True)
    kept = coverage[can_end & (risks <= risk)]
    return float(kept.max()) if len(kept) else 0.0


def empty_warning(empty: int, rationales: int) -> str | None:
    """What to say of a set of which more than a twentieth of the rationales are empty; None where fewer are."""
    if empty <= NOTABLE_EMPTY * rationales:
        return None
    share = f"{100 * empty / rationales:.0f} %"
    return (
        f"{empty} of {rationales} rationales are empty ({share}): they score nothing against a reference and state "
        "nothing wrong, so that no rationale figure says how good the written ones are"
    )


def bare_warning(bare: int, rationales: int) -> str | None:
    """The same of rationales that say nothing but the name of a label."""
    if bare <= NOTABLE_EMPTY * rationales:
        return None
    share = f"{100 * bare / rationales:.0f} %"
    return f"{bare} of {rationales} rationales are nothing but the name of a label ({share})"


def _by_label(rows: Rows) -> dict[str, Any]:
    gold, predicted, count = rows.classes(rows.records, "label")
    scores = metrics.per_class(gold, predicted, count)
    keys = ("precision", "recall", "f1", "support")
    by_label = {
        name: {key: getattr(scores, key)[index].item() for key in keys} for index, name in enumerate(rows.labels.labels)
    }
    return {"by_label": by_label, "confusion": metrics.confusion(gold, predicted, count).tolist()}


def _about_rationales(rows: Rows, notes: Mapping[str, str], vocabulary: frozenset[str] | None) -> dict[str, Any]:
    written = [record["rationale"] for record in rows.explained]
    found: dict[str, Any] = {
        "rationales": len(written),
        "references": len(rows.referenced),
        "without_reference": len(written) - len(rows.referenced),
        "empty_rationales": sum(not text.strip() for text in written),
        "bare_labels": sum(
            is_bare_label(record["rationale"], record["label"], rows.labels) for record in rows.explained
        ),
        "words_mean": sum(len(text.split()) for text in written) / len(written),
    }
    if rows.referenced:
        candidates, references = _texts(rows.referenced)
        own_notes = [notes[record["id"]] for record in rows.referenced]
        facts = fact_scores(references, own_notes, vocabulary or frozenset())
        kept = ("unsupported_number_share", "repetition_share")
        found["reference_facts"] = {key: facts[key] for key in (facts if vocabulary is not None else kept)}
        found["bleu_signature"] = overlap.bleu(candidates[:1], references[:1])[1]
        found["chrf_signature"] = overlap.chrf(candidates[:1], references[:1])[1]
    return found


def names_label(rationale: str, label: str, labels: LabelSet) -> bool:
    """Whether a rationale writes its label out; `urgent` is not named by `less urgent` of the same set."""
    names = sorted({normal(name) for name in (*labels.labels, label)} - {""}, key=len, reverse=True)
    pattern = "|".join(r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", name))) for name in names)
    found = {re.sub(r"[\s-]+", " ", match[1]) for match in re.finditer(rf"(?<!\w)({pattern})(?!\w)", normal(rationale))}
    return re.sub(r"[\s-]+", " ", normal(label)) in found


def is_bare_label(rationale: str, label: str, labels: LabelSet) -> bool:
    """Whether a rationale is the name of a label and nothing more; of an open set that of the row's own label."""
    return is_name_alone(rationale, labels.labels or (label,))


def _texts(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [record["rationale"] for record in records], [record["reference"] for record in records]


def _same(records: Sequence[Record], key: str, other: str) -> Floats:
    return np.array([normal(record[key]) == normal(record[other]) for record in records], dtype=np.float64)
