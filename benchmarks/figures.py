"""Figures that every accuracy benchmark reports, and how they are written and shown."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from r2d_edge import bootstrap, metrics
from r2d_edge.report.rationale_metrics import bertscore_f1, fact_scores, rationale_scores
from r2d_edge.task import LabelSet
from train import evaluate, scoring
from train.data import Example
from train.files import replace_file

_DIGITS = 4
_PACKAGES = ("bert-score", "ctranslate2", "datasets", "numpy", "sacrebleu", "scikit-learn", "torch", "transformers")

Indices = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the figures depend on."""
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
    }


def label_indices(examples: Sequence[Example], labels: LabelSet) -> Indices:
    """Gold labels as positions in the label set, [n]."""
    return np.array([labels.index(example.label) for example in examples], dtype=np.int64)


def label_figures(
    gold: Indices, predicted: Indices, classes: int, seed: int, probabilities: Probabilities | None = None
) -> dict[str, Any]:
    """Macro-F1 with its 95 % bootstrap interval, accuracy, quadratic kappa, under- and over-triage, ECE and Brier."""
    found = scoring.label_figures(gold, predicted, classes, ordered=True, probabilities=probabilities)
    macro = bootstrap.estimate(found["macro_f1"], seed=seed)
    return {
        **{name: figure.value() for name, figure in found.items()},
        "macro_f1_interval": [macro.low, macro.high],
        "f1_by_label": metrics.per_class(gold, predicted, classes).f1.tolist(),
    }


def rationale_figures(
    candidates: Sequence[str],
    examples: Sequence[Example],
    source: str,
    vocabulary: frozenset[str],
    encoder: Path | None,
    seed: int,
) -> dict[str, Any]:
    """Likeness to the rows' own rationales (BERTScore with its 95 % interval) and unsupported facts."""
    references = [example.rationales[source] for example in examples]
    figures = rationale_scores(candidates, references, None)
    if encoder is not None:
        scores = bertscore_f1(candidates, references, encoder)
        found = bootstrap.estimate(bootstrap.mean(scores), seed=seed)
        figures["bertscore_f1"], figures["bertscore_f1_interval"] = found.value, [found.low, found.high]
    figures["words_mean"] = sum(len(candidate.split()) for candidate in candidates) / len(candidates)
    return {**figures, **fact_scores(candidates, [example.text for example in examples], vocabulary)}


def identity(path: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """A data set by file name, rows and hash."""
    return {
        "file": path.name,
        "rows": len(examples),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Writes the figures as JSON, sorted and rounded, so that equal runs give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(report), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def show(report: Mapping[str, Any]) -> None:
    """Prints the figures as two tables, labels and rationales."""
    from rich.console import Console
    from rich.table import Table

    label_columns = {
        "accuracy": "accuracy",
        "quadratic_kappa": "quadratic kappa",
        "under_triage": "under-triage",
        "over_triage": "over-triage",
        "ece": "ECE",
    }
    rationale_columns = {
        "bleu": "BLEU",
        "chrf": "chrF",
        "bertscore_f1": "BERTScore F1",
        "unsupported_number_share": "unsupported number",
        "unsupported_term_share": "unsupported term",
        "unsupported_term_rate": "of terms",
        "repetition_share": "repetition",
    }
    labels = Table("set", "baseline", "macro-F1 (95 %)", *label_columns.values(), title="Labels")
    rationales = Table("set", "rationales of", *rationale_columns.values(), title="Rationales")
    for name, judged in report["results"].items():
        for variant, figures in judged.items():
            if row := figures.get("label"):
                low, high = row["macro_f1_interval"]
                interval = f"{row['macro_f1']:.3f} ({low:.3f}-{high:.3f})"
                labels.add_row(name, variant, interval, *(_cell(row.get(key)) for key in label_columns))
            if row := figures.get("rationale"):
                rationales.add_row(name, variant, *(_cell(row.get(key)) for key in rationale_columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file has no width of its own
    console.print(labels, rationales)


def named_files(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, Path]:
    """A click callback: `[NAME=]FILE` values as files by name."""
    try:
        return evaluate.named_files(values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
