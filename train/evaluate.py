"""Evaluation: one model on labelled sets, most figures with their intervals, as JSON and as a table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2d_edge.bootstrap import LEVEL, RESAMPLES
from r2d_edge.bundle import Decoding
from r2d_edge.report.label_figures import ECE_BINS
from r2d_edge.report.rationale_metrics import (
    bertscore_f1,
    bertscore_settings,
    fact_vocabulary,
    find_encoder,
    tuned_layer,
)
from r2d_edge.task import LabelSet
from train.answering import BATCH, Model, Record, answer_rows, method_of, open_model
from train.comparison import EVALUATION, excludes_zero
from train.data import Example, read_dataset, sources
from train.files import describe_file, replace_file
from train.scoring import add_fact_counts, bare_warning, empty_warning, score_records

if TYPE_CHECKING:
    from rich.console import Console

_DIGITS = 6
_PACKAGES = ("bert-score", "ctranslate2", "numpy", "sacrebleu", "tokenizers", "torch", "transformers")
SET_NAME = re.compile(r"[\w][\w.-]*")

LABEL_COLUMNS = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "quadratic_kappa": "κ²",
    "under_triage": "under-triage",
    "over_triage": "over-triage",
    "ece": "ECE",
    "brier": "Brier",
    "pairs_both_right": "pairs both right",
}
RATIONALE_COLUMNS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "bertscore_f1": "BERTScore F1",
    "consistency": "consistency",
    "sufficiency": "sufficiency",
    "unsupported_number_share": "unsupported number",
    "unsupported_fact_share": "unsupported fact",
    "repetition_share": "repetition",
}
_HUNDREDS = ("bleu", "chrf")


def evaluate(
    model: str | Path,
    data: Mapping[str, Path],
    output: Path,
    *,
    source: str | None = None,
    train: Sequence[Path] = (),
    rationales: bool | None = None,
    bertscore: bool = True,
    bertscore_model: str | None = None,
    bertscore_layer: int | None = None,
    limit: int | None = None,
    decoding: Decoding | None = None,
    batch_size: int = BATCH,
    bf16: bool = False,
    device: str = "auto",
    seed: int = 13,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Asks a model about every row and scores what it says.

    Writes `output/<set>.jsonl` (one record a row, without the note's text) and `output/evaluation.json`.

    Args:
        model: a checkpoint folder, a bundle, or an embedded model's name.
        data: labelled sets by name.
        output: the folder to write to; what an earlier evaluation wrote there is replaced.
        source: whose rationales are the references. By default what the model learned from (its provenance),
            if a set has such rationales, else the set's only source.
        train: training files, with labels or without, from which the words that state facts are learned; without
            them facts are numbers alone.
        rationales: whether to have rationales written. By default yes, but for a model of method `sft`.
        bertscore: whether to work out BERTScore.
        bertscore_model: its encoder, a folder or a hub name; by default the packaged MiniLM.
        bertscore_layer: of that encoder; by default the one tuned for its hub name, else the last.
        limit: score only so many rows of each set, drawn with the seed.
        decoding: how rationales are decoded; by default as the bundle says, and greedily from a checkpoint.
        batch_size: how many prompts are run at once.
        bf16: compute a checkpoint in bfloat16.
        device: `auto`, `cpu` or `cuda`.
        seed: of the limit and of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        What `evaluation.json` holds (see `scoring.score_records` for a set's figures).

    Raises:
        ValueError: a set's name is no file name, its source is not to be told, or a row cannot be read.
        DatasetError: a file has faults.
        R2DError: the model cannot be opened.
    """
    for name in data:
        if not SET_NAME.fullmatch(name):
            raise ValueError(f"set name {name!r} must be letters, digits, '.', '_' and '-': it names a file")
    asked = open_model(model, decoding=decoding, batch_size=batch_size, bf16=bf16, device=device)
    labels = asked.task.labels
    if rationales is None:
        rationales = asked.task.explains
    elif rationales and not asked.task.explains:
        raise ValueError(f"{asked.name} learned no rationales: leave them out")
    encoder = None
    if rationales and bertscore:
        encoder = find_encoder(bertscore_model) if bertscore_model is not None else _packaged()
        if bertscore_layer is None and bertscore_model is not None:
            bertscore_layer = tuned_layer(bertscore_model)
    sets = {name: _limited(read_dataset(path, labels), limit, seed) for name, path in data.items()}
    chosen = {name: _source(name, rows, source, asked) for name, rows in sets.items()}
    vocabulary = _vocabulary(train, labels, source or _own_source(asked)) if train and rationales else None
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, rows in sets.items():
        records = answer_rows(asked, rows, chosen[name], rationales=rationales)
        notes = {row.id: row.text for row in rows}
        if encoder is not None:
            add_bertscore(records, encoder, bertscore_layer)
        if rationales:
            add_fact_counts(records, notes, vocabulary)
        write_records(records, output / f"{name}.jsonl")
        found[name] = {
            **score_records(records, notes, labels, vocabulary=vocabulary, seed=seed, resamples=resamples),
            "data": describe_file(data[name]),
            "source": chosen[name],
        }
    settings = {
        "seed": seed,
        "limit": limit,
        "resamples": resamples,
        "level": LEVEL,
        "ece_bins": ECE_BINS,
        "rationales": rationales,
        "fact_vocabulary": len(vocabulary) if vocabulary is not None else None,
        "fact_vocabulary_sha256": _sha256_of(vocabulary) if vocabulary is not None else None,
        "train": [describe_file(path) for path in train],
        "bertscore": bertscore_settings(encoder, bertscore_layer) if encoder is not None else None,
    }
    result: dict[str, Any] = rounded(_report(asked, found, settings))
    write_report(result, output / EVALUATION)
    return result


def _report(model: Model, sets: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as JSON: what was asked, the figures of each set, how, and with which software."""
    return {
        "model": model.name,
        "method": method_of(model.provenance),
        "labels": list(model.task.labels.labels),
        "label_kind": model.task.labels.kind,
        "temperature": model.temperature,
        "engine": model.describe(),
        "sets": sets,
        "settings": settings,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def add_bertscore(records: Sequence[Record], encoder: Path, layer: int | None = None) -> None:
    """Gives every record its `bertscore_f1`, None where it has no rationale or no reference."""
    rows = [row for row in records if row["rationale"] is not None and row["reference"] is not None]
    for record in records:
        record["bertscore_f1"] = None
    if rows:
        scores = bertscore_f1([row["rationale"] for row in rows], [row["reference"] for row in rows], encoder, layer)
        for row, score in zip(rows, scores.tolist(), strict=True):
            row["bertscore_f1"] = round(score, _DIGITS)


def write_records(records: Sequence[Record], path: Path) -> None:
    """Writes records as JSON Lines, the labels of the probabilities in the order of their set."""
    with replace_file(path) as temporary:
        lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        temporary.write_text(lines, encoding="utf-8", newline="\n")


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Writes JSON, sorted, so that equal runs give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def rounded(value: Any) -> Any:
    """JSON-ready data with its floats rounded, and null for those that are undefined."""
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def named_files(values: Sequence[str]) -> dict[str, Path]:
    """`[NAME=]FILE` values as files by name; the name defaults to the file's.

    Raises:
        ValueError: a value is not of this form, a name comes twice, or there is no such file.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, separator, file = value.partition("=")
        if not separator:
            name, file = Path(value).stem, value
        if not name or not file:
            raise ValueError(f"{value!r} is not [NAME=]FILE")
        if name in found:
            raise ValueError(f"the name {name!r} is given twice")
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file}")
        found[name] = Path(file)
    return found


def show(report: Mapping[str, Any]) -> None:
    """Prints an evaluation's figures on stderr: tables of labels, of risk by coverage and of rationales."""
    from rich.table import Table

    console = _console()
    for title, columns, needs in (
        ("Labels", LABEL_COLUMNS, "macro_f1"),
        ("Rationales", RATIONALE_COLUMNS, "rationales"),
    ):
        sets = {name: figures for name, figures in report["sets"].items() if needs in figures}
        used = {key: head for key, head in columns.items() if any(key in figures for figures in sets.values())}
        if not sets:
            continue
        table = Table("set", "rows", *used.values(), title=f"{title}: {report['model']}")
        for name, figures in sets.items():
            table.add_row(name, str(figures["rows"]), *(_cell(key, figures.get(key)) for key in used))
        console.print(table)
        if needs == "macro_f1":
            _show_risk_coverage(report, console)
    for name, figures in report["sets"].items():
        for key, warning_of in (("empty_rationales", empty_warning), ("bare_labels", bare_warning)):
            if (warning := warning_of(figures.get(key, 0), figures.get("rationales", 0))) is not None:
                console.print(f"{name}: {warning}", style="yellow", markup=False, highlight=False)


def _show_risk_coverage(report: Mapping[str, Any], console: Console) -> None:
    """What deciding the surest rows alone would get wrong; nothing for an evaluation without probabilities."""
    from rich.table import Table

    curves = {name: curve for name, figures in report["sets"].items() if (curve := figures.get("risk_coverage"))}
    if not curves:
        return
    risks = [point["risk"] for point in next(iter(curves.values()))["coverage_at_risk"]]
    heads = [f"decided at {100 * risk:g} % errors" for risk in risks]
    table = Table("set", "rows", "AURC", "AUGRC", *heads, title=f"The surest rows alone: {report['model']}")
    for name, curve in curves.items():
        decided = [f"{100 * point['coverage']:.1f} %" for point in curve["coverage_at_risk"]]
        areas = [f"{curve[area]:.3f}" for area in ("aurc", "augrc")]
        table.add_row(name, str(report["sets"][name]["rows"]), *areas, *decided)
    console.print(table)


def show_comparison(report: Mapping[str, Any]) -> None:
    """Prints the differences between two models on stderr; a star marks an interval without 0."""
    from rich.table import Table

    for name, figures in report["sets"].items():
        table = Table("figure", report["first"], report["second"], "difference (95 %)", "", title=name)
        for key, found in figures.items():
            values = (_number(key, found["first"]), _number(key, found["second"]))
            table.add_row(key, *values, _cell(key, found, signed=True), "*" if excludes_zero(found) else "")
        _console().print(table)


def _cell(key: str, found: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    if found is None or found["value"] is None:
        return ""
    low, high = (_number(key, found[bound], signed=signed) for bound in ("low", "high"))
    return f"{_number(key, found['value'], signed=signed)}\n({low} to {high})"


def _number(key: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.{1 if key in _HUNDREDS else 3}f}"


def _console() -> Console:
    from rich.console import Console

    console = Console(stderr=True)
    # A file has no width of its own.
    return console if console.is_terminal else Console(stderr=True, width=160)


def _packaged() -> Path:
    from train.warmstart import packaged_minilm

    return packaged_minilm()


def _limited(rows: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` rows, drawn with the seed, in the file's order."""
    if limit is None or limit >= len(rows):
        return rows
    drawn = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return [rows[place] for place in sorted(drawn.tolist())]


def _own_source(model: Model) -> str | None:
    """The rationale source that a model learned from, as its provenance says."""
    recipe = model.provenance.get("recipe")
    names = recipe.get("sources") if isinstance(recipe, dict) else None
    return names[0] if isinstance(names, list) and names else None


def _source(name: str, rows: Sequence[Example], asked: str | None, model: Model) -> str | None:
    """Whose rationales are a set's references; None if it has no rationales at all."""
    there = sources(rows)
    if asked is not None:
        if asked not in there:
            raise ValueError(f"set {name!r} has no {asked!r} rationales; it has: {', '.join(there) or 'none'}")
        return asked
    own = _own_source(model)
    if own in there:
        return own
    if len(there) > 1:
        raise ValueError(f"set {name!r} has rationales of {', '.join(there)}: choose one with --source")
    return next(iter(there), None)


def _vocabulary(files: Sequence[Path], labels: LabelSet, source: str | None) -> frozenset[str]:
    """The words that training rationales of `source` (or of any) take from their notes, labelled or not."""
    learned = [row for path in files for row in read_dataset(path, labels, unlabelled="taken")]
    said = [(text, row.text) for row in learned for name, text in row.rationales.items() if name == source]
    said = said or [(text, row.text) for row in learned for text in row.rationales.values()]
    if not said:
        raise ValueError("the training files hold no rationales to learn the words of facts from")
    return fact_vocabulary([text for text, _ in said], [note for _, note in said])


def _sha256_of(vocabulary: frozenset[str]) -> str:
    """What tells two vocabularies apart, without a word of them."""
    return hashlib.sha256("\n".join(sorted(vocabulary)).encode("utf-8")).hexdigest()
