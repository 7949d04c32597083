"""How well a bundle decides and explains, on labelled validation sets, through the runtime itself.

    python -m benchmarks.accuracy --validation ctas=VAL.jsonl --validation ktas=VAL.jsonl \
        --train ctas=TRAIN.jsonl --train ktas=TRAIN.jsonl -o benchmarks/results/triage-nano.json

The training parts are read only to tell general words from facts in the rationales, with the vocabulary
that `benchmarks.baseline` uses, so that the figures stand beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import (
    Indices,
    Probabilities,
    identity,
    label_figures,
    named_files,
    rationale_figures,
    show,
    versions,
    write_report,
)
from r2d_edge import calibration, metrics
from r2d_edge.decide import Decider, load
from r2d_edge.report.rationale_metrics import bertscore_settings, fact_vocabulary
from train.answering import BundleModel, answer_rows
from train.data import read_dataset
from train.scoring import FIGURES, Rows


def calibration_figures(scored: Mapping[str, tuple[Indices, Probabilities]], seed: int) -> dict[str, dict[str, Any]]:
    """How well temperatures do on rows that they were not fitted on (`calibration.crossfitted`), by set.

    Args:
        scored: for each set its gold label indices [n] and raw label log-probabilities [n, k].
        seed: of the folds.

    Returns:
        For each set: `ece_one` with one temperature for all sets, `ece_crossfitted` with its own,
        `ece_if_calibrated` (what a perfect model of this confidence shows on so few rows: mean and 95 % range)
        and `ece_debiased`, with its own temperature.
    """
    gold = np.concatenate([gold for gold, _ in scored.values()])
    raw = np.concatenate([raw for _, raw in scored.values()])
    places = [name for name, (rows, _) in scored.items() for _ in rows]
    one, own = calibration.crossfitted(raw, gold, seed=seed), calibration.crossfitted(raw, gold, places, seed=seed)
    found = {}
    for name in scored:
        rows = np.array([place == name for place in places])
        found[name] = {
            "ece_one": _mean_error(gold[rows], one[:, rows]),
            "ece_crossfitted": _mean_error(gold[rows], own[:, rows]),
            "ece_if_calibrated": list(calibration.error_if_calibrated(own[0, rows], seed=seed)),
            "ece_debiased": float(np.mean([calibration.debiased_error(gold[rows], dealt) for dealt in own[:, rows]])),
        }
    return found


def _mean_error(gold: Indices, dealt: Probabilities) -> float:
    """Mean ECE over the times the rows were dealt: probabilities [repeats, n, k]."""
    return float(np.mean([metrics.expected_calibration_error(gold, one) for one in dealt]))


def measure(
    decider: Decider,
    validation_files: Mapping[str, Path],
    train_files: Mapping[str, Path],
    *,
    source: str = "llm",
    seed: int = 13,
    encoder: Path | None = None,
) -> dict[str, Any]:
    """Decides every validation row and judges labels and rationales.

    Returns:
        JSON-ready figures in the layout of `benchmarks.baseline`, with the bundle's name for the variant.
    """
    labels = decider.task.labels
    train = [row for path in train_files.values() for row in read_dataset(path, labels)]
    explained = [row for row in train if source in row.rationales]
    vocabulary = fact_vocabulary([row.rationales[source] for row in explained], [row.text for row in explained])
    results: dict[str, Any] = {}
    sets: dict[str, Any] = {}
    scored: dict[str, tuple[Indices, Probabilities]] = {}
    model = BundleModel(decider)
    for name, path in validation_files.items():
        rows = read_dataset(path, labels)
        records = answer_rows(model, rows, source)
        answered = Rows(records, labels)
        gold, predicted, classes = answered.classes(records, "label")
        probabilities = np.array([[record["probabilities"][label] for label in labels.labels] for record in records])
        raw = model.temperature * np.log(np.maximum(probabilities, 1e-300))
        raw -= np.logaddexp.reduce(raw, axis=1, keepdims=True)
        figures = label_figures(gold, predicted, classes, seed, probabilities)
        figures["ece_uncalibrated"] = metrics.expected_calibration_error(gold, np.exp(raw))
        scored[name] = (gold, raw)
        results[name] = {
            decider.bundle.manifest.name: {
                "label": {**figures, **_values(answered, "pairs_both_right")},
                "rationale": {
                    **rationale_figures(
                        [record["rationale"] for record in records], rows, source, vocabulary, encoder, seed
                    ),
                    **_values(answered, "consistency", "sufficiency", "gold_robustness", "names_label"),
                },
                "truncated": sum(record["truncated"] for record in records),
                "abstained": sum(record["abstained"] for record in records),
            }
        }
        sets[name] = identity(path, rows)
    for name, found in calibration_figures(scored, seed).items():
        results[name][decider.bundle.manifest.name]["label"] |= found
    return {
        "results": results,
        "model": decider.bundle.label,
        "engine": decider.engine.describe(),
        "datasets": {"validation": sets},
        "settings": {
            "rationale_source": source,
            "seed": seed,
            "fact_vocabulary": len(vocabulary),
            "bertscore": bertscore_settings(encoder) if encoder is not None else None,
        },
        "versions": versions(),
    }


def _values(rows: Rows, *names: str) -> dict[str, float]:
    """Those of the figures that the rows have."""
    return {name: figure.value() for name in names if (figure := FIGURES[name](rows)) is not None}


@click.command(help="Label and rationale figures of a bundle on labelled validation sets.")
@click.option("--model", help="A bundle folder, zip or embedded model.  [default: the embedded one]")
@click.option("--validation", required=True, multiple=True, callback=named_files, help="NAME=FILE.")
@click.option("--train", required=True, multiple=True, callback=named_files, help="NAME=FILE, for the fact vocabulary.")
@click.option("--source", default="llm", show_default=True, help="Whose rationales to compare with.")
@click.option("--seed", default=13, show_default=True, help="Seed of the bootstrap and the folds.")
@click.option("--bertscore/--no-bertscore", default=True, show_default=True, help="Compute BERTScore (MiniLM).")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
def main(
    model: str | None,
    validation: dict[str, Path],
    train: dict[str, Path],
    source: str,
    seed: int,
    bertscore: bool,
    output: Path | None,
) -> None:
    """Command line of this module."""
    from train.warmstart import packaged_minilm

    encoder = packaged_minilm() if bertscore else None
    report = measure(load(model), validation, train, source=source, seed=seed, encoder=encoder)
    show(report)
    if output is not None:
        write_report(report, output)


if __name__ == "__main__":
    main()
