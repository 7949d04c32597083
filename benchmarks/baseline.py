"""What a trained model has to beat: TF-IDF with logistic regression, and the most similar note's rationale.

    python -m benchmarks.baseline --train ktas=TRAIN.jsonl --train ctas=TRAIN.jsonl \
        --validation ktas=VAL.jsonl --validation ctas=VAL.jsonl -o benchmarks/results/baseline.json

Each validation set is judged by a baseline trained on the training part of its own name ("per set") and
by one trained on all parts together ("pooled"). Beside them stand the majority label, the reference
rationales' own fact scores (what these measures call a fault in good text), the nurse's labels where the
rows have `label_nurse` and, where one is given, an encoder fine-tuned on labels alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.figures import (
    Indices,
    Probabilities,
    identity,
    label_figures,
    label_indices,
    named_files,
    rationale_figures,
    show,
    versions,
    write_report,
)
from r2d_edge import metrics
from r2d_edge.report.rationale_metrics import bertscore_settings, fact_scores, fact_vocabulary
from r2d_edge.task import CTAS_LEVELS, LabelSet
from train.answering import Model, answer_rows
from train.data import Example, check_split, missing_rationales, read_dataset

FOLDS = 5
STRENGTHS = (1.0, 3.0, 10.0, 30.0)  # scikit-learn's C: the inverse of the regularisation
CLASS_WEIGHTS = (None, "balanced")
# Single digits, decimals and fractions are words here (38.5, 7/10, 140/90): the default pattern drops
# or splits them, which costs up to 0.03 macro-F1 in cross-validation on the training parts.
TOKENS = r"(?u)\d+(?:[./]\d+)*|[^\W\d_]+"


@dataclass(frozen=True)
class Choice:
    """Hyperparameters and their mean macro-F1 over the cross-validation folds of the training part."""

    strength: float
    class_weight: str | None
    macro_f1: float


def choose(texts: Sequence[str], gold: Indices, classes: int, seed: int) -> Choice:
    """Picks strength and class weight by stratified cross-validation; the first best wins."""
    from sklearn.model_selection import StratifiedKFold

    grid = [(strength, weight) for strength in STRENGTHS for weight in CLASS_WEIGHTS]
    scores = np.zeros((FOLDS, len(grid)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(np.zeros(len(gold)), gold)
    for fold, (fitted, held_out) in enumerate(folds):
        vectorizer = _vectorizer()
        train = vectorizer.fit_transform([texts[row] for row in fitted])
        test = vectorizer.transform([texts[row] for row in held_out])
        for place, (strength, weight) in enumerate(grid):
            model = _classifier(strength, weight).fit(train, gold[fitted])
            scores[fold, place] = metrics.macro_f1(gold[held_out], model.predict(test), classes)
    means = scores.mean(axis=0)
    best = int(means.argmax())
    return Choice(*grid[best], macro_f1=float(means[best]))


class Baseline:
    """TF-IDF with logistic regression for the label, the nearest training note for the rationale."""

    def __init__(self, train: Sequence[Example], labels: LabelSet, seed: int) -> None:
        texts = [example.text for example in train]
        gold = label_indices(train, labels)
        self.choice = choose(texts, gold, len(labels.labels), seed)
        self._classes = len(labels.labels)
        self._train = list(train)
        self._vectorizer = _vectorizer()
        self._vectors = self._vectorizer.fit_transform(texts)
        self._model = _classifier(self.choice.strength, self.choice.class_weight).fit(self._vectors, gold)

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Label probabilities [n, k]; a label that training never saw gets 0."""
        out = np.zeros((len(texts), self._classes))
        out[:, self._model.classes_] = self._model.predict_proba(self._vectorizer.transform(texts))
        return out

    def nearest(self, texts: Sequence[str], source: str) -> list[str]:
        """For each text the `source` rationale of the training note with the highest TF-IDF cosine."""
        keep = [row for row, example in enumerate(self._train) if source in example.rationales]
        # TF-IDF rows have length 1: the dot product is the cosine.
        cosine = self._vectorizer.transform(texts) @ self._vectors[keep].T
        best = np.asarray(cosine.argmax(axis=1)).ravel()
        return [self._train[keep[row]].rationales[source] for row in best]


def nurse_labels(path: Path, labels: LabelSet) -> Indices | None:
    """The `label_nurse` of every row of a JSON Lines file, [n]; None where any row has none."""
    if path.suffix.lower() != ".jsonl":
        return None
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    found = [json.loads(line).get("label_nurse") for line in lines if line.strip()]
    if any(label is None for label in found):
        return None
    return np.array([labels.index(label) for label in found], dtype=np.int64)


def measure(
    train_files: Mapping[str, Path],
    validation_files: Mapping[str, Path],
    labels: LabelSet,
    *,
    source: str = "llm",
    seed: int = 13,
    encoder: Path | None = None,
    classifier: Path | None = None,
) -> dict[str, Any]:
    """Trains the baselines and judges them on every validation set.

    Args:
        train_files: training parts by name.
        validation_files: validation parts by name; one whose name has a training part also gets the
            baseline trained on that part alone.
        labels: the label set; its order decides what under- and over-triage are.
        source: whose rationales are retrieved and compared with.
        seed: of the folds and the bootstrap.
        encoder: the encoder of BERTScore; None leaves it out.
        classifier: an encoder that `train.classifier` fine-tuned, to be judged beside them.

    Returns:
        JSON-ready figures, the data sets' hashes, versions and settings.

    Raises:
        DatasetError: a file has faults, or a validation part overlaps the training parts.
        ValueError: a validation row has no `source` rationale, or the classifier has other labels.
    """
    train = {name: read_dataset(path, labels) for name, path in train_files.items()}
    validation = {name: read_dataset(path, labels) for name, path in validation_files.items()}
    pooled = [example for part in train.values() for example in part]
    for name, part in validation.items():
        check_split(pooled, part, labels)
        if missing := missing_rationales(part, source):
            raise ValueError(f"{missing} rows of validation set {name!r} have no {source!r} rationale to compare with")
    explained = [example for example in pooled if source in example.rationales]
    if not explained:
        raise ValueError(f"no training row has a {source!r} rationale")
    # One vocabulary for all, so that every figure is comparable.
    vocabulary = fact_vocabulary(
        [example.rationales[source] for example in explained], [example.text for example in explained]
    )
    baselines = {"pooled": Baseline(pooled, labels, seed)}
    fine_tuned = _fine_tuned(classifier, labels) if classifier is not None else None
    results: dict[str, Any] = {}
    for name, part in validation.items():
        gold = label_indices(part, labels)
        classes = len(labels.labels)
        judged: dict[str, Any] = {}
        variants = dict(baselines)
        own = pooled
        if name in train:
            own = train[name]
            variants["per set"] = Baseline(own, labels, seed) if len(train) > 1 else baselines["pooled"]
        majority = np.bincount(label_indices(own, labels), minlength=classes).argmax()
        judged["majority"] = {"label": label_figures(gold, np.full_like(gold, majority), classes, seed)}
        nurse = nurse_labels(validation_files[name], labels)
        if nurse is not None:
            judged["nurse"] = {"label": label_figures(gold, nurse, classes, seed)}
        for variant, baseline in variants.items():
            texts = [example.text for example in part]
            probabilities = baseline.probabilities(texts)
            judged[variant] = {
                "chosen": asdict(baseline.choice),
                "label": label_figures(gold, probabilities.argmax(axis=1), classes, seed, probabilities),
                "rationale": rationale_figures(
                    baseline.nearest(texts, source), part, source, vocabulary, encoder, seed
                ),
            }
        if fine_tuned is not None:
            records = answer_rows(fine_tuned, part, None, rationales=False)
            chances = np.array([[record["probabilities"][label] for label in labels.labels] for record in records])
            judged["classifier"] = {
                "model": fine_tuned.name,
                "label": label_figures(gold, chances.argmax(axis=1), classes, seed, chances),
            }
        references = [example.rationales[source] for example in part]
        judged["reference"] = {"rationale": fact_scores(references, [example.text for example in part], vocabulary)}
        results[name] = judged
    return {
        "results": results,
        "datasets": {
            "train": {name: identity(train_files[name], rows) for name, rows in train.items()},
            "validation": {name: identity(validation_files[name], rows) for name, rows in validation.items()},
        },
        "settings": {
            "labels": list(labels.labels),
            "rationale_source": source,
            "seed": seed,
            "folds": FOLDS,
            "strengths": list(STRENGTHS),
            "token_pattern": TOKENS,
            "ngrams": [1, 2],
            "class_weights": list(CLASS_WEIGHTS),
            "ece_bins": 15,
            "bootstrap_resamples": 2000,
            "fact_vocabulary": len(vocabulary),
            "bertscore": bertscore_settings(encoder) if encoder is not None else None,
        },
        "versions": versions(),
    }


def _fine_tuned(folder: Path, labels: LabelSet) -> Model:
    from train.classifier import ClassifierModel

    model = ClassifierModel(folder)
    if model.task.labels.labels != labels.labels:
        raise ValueError(
            f"the classifier's labels are {', '.join(model.task.labels.labels)}, in this order, not those asked for"
        )
    return model


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS)


def _classifier(strength: float, class_weight: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight=class_weight, max_iter=2000)


@click.command(help="Baselines for label and rationale: TF-IDF with logistic regression, and the nearest note.")
@click.option(
    "--train",
    required=True,
    multiple=True,
    callback=named_files,
    help="[NAME=]FILE of a training part; the name defaults to the file's.",
)
@click.option(
    "--validation", required=True, multiple=True, callback=named_files, help="[NAME=]FILE of a validation part."
)
@click.option("--labels", default=",".join(CTAS_LEVELS), show_default=True, help="Labels, most severe first.")
@click.option("--source", default="llm", show_default=True, help="Whose rationales to retrieve and compare with.")
@click.option("--seed", default=13, show_default=True, help="Seed of the folds and the bootstrap.")
@click.option("--bertscore/--no-bertscore", default=True, show_default=True, help="Compute BERTScore (MiniLM).")
@click.option(
    "--classifier", type=click.Path(exists=True, path_type=Path, file_okay=False), help="What `train classify` made."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
def main(
    train: dict[str, Path],
    validation: dict[str, Path],
    labels: str,
    source: str,
    seed: int,
    bertscore: bool,
    classifier: Path | None,
    output: Path | None,
) -> None:
    """Command line of this module."""
    from train.warmstart import packaged_minilm

    try:
        label_set = LabelSet(tuple(label.strip() for label in labels.split(",")), "ordered")
        encoder = packaged_minilm() if bertscore else None
        report = measure(train, validation, label_set, source=source, seed=seed, encoder=encoder, classifier=classifier)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    show(report)
    if output is not None:
        write_report(report, output)


if __name__ == "__main__":
    main()
