"""The report's sections on labels and probabilities, each from arrays of the rows that both sides answered.

`gold`, `reference` and `candidate` are places in the label set, int [n], of an ordered set 0 the most severe;
probabilities are float [n, k].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge import bootstrap, calibration, metrics
from r2d_edge.report.label_figures import ECE_BINS, calibration_error, macro_f1

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RELIABILITY_BINS = 10
REFIT_FOLDS = 5
MIN_REFIT_ROWS = 25
CURVE_POINTS = 50


@dataclass(frozen=True)
class Labels:
    """Who said what of n rows."""

    names: Sequence[str]
    gold: Indices
    reference: Indices
    candidate: Indices


@dataclass(frozen=True)
class Draws:
    """Of the bootstrap: how many resamples, and their seed."""

    resamples: int
    seed: int

    def estimate(self, figure: bootstrap.Figure) -> dict[str, float]:
        """A figure with its interval."""
        return bootstrap.estimate(figure, seed=self.seed, resamples=self.resamples)._asdict()

    def difference(self, candidate: bootstrap.Figure, reference: bootstrap.Figure) -> dict[str, float]:
        """Candidate less reference with its paired interval."""
        return bootstrap.difference(candidate, reference, seed=self.seed, resamples=self.resamples)._asdict()


def quality(rows: Labels, draws: Draws) -> dict[str, Any]:
    """How good both sides' labels are, and by how much they differ."""
    k = len(rows.names)
    sides = {"reference": rows.reference, "candidate": rows.candidate}
    figures = {
        name: {"macro_f1": macro_f1(rows.gold, said, k), "accuracy": bootstrap.mean(said == rows.gold)}
        for name, said in sides.items()
    }
    found: dict[str, Any] = {}
    for name, said in sides.items():
        found[name] = {key: draws.estimate(figure) for key, figure in figures[name].items()}
        found[name]["per_class"] = _per_class(rows, said)
    found["difference"] = {
        key: draws.difference(figures["candidate"][key], figures["reference"][key]) for key in ("macro_f1", "accuracy")
    }
    reference_right, candidate_right = (said == rows.gold for said in sides.values())
    reference_only = int((reference_right & ~candidate_right).sum())
    candidate_only = int((candidate_right & ~reference_right).sum())
    found["mcnemar"] = {
        "reference_only": reference_only,
        "candidate_only": candidate_only,
        "p": metrics.mcnemar_exact(reference_only, candidate_only),
    }
    return found


def _per_class(rows: Labels, said: Indices) -> dict[str, Any]:
    scores = metrics.per_class(rows.gold, said, len(rows.names))
    found = {}
    for place, name in enumerate(rows.names):
        support = int(scores.support[place])
        hits = int(((said == place) & (rows.gold == place)).sum())
        found[name] = {
            "precision": float(scores.precision[place]),
            "recall": float(scores.recall[place]),
            "f1": float(scores.f1[place]),
            "support": support,
            "recall_interval": list(metrics.wilson(hits, support)),
        }
    return found


def flips(rows: Labels, draws: Draws, *, ordered: bool) -> dict[str, Any]:
    """Where the candidate's label is another than the reference's, and what that means."""
    n = len(rows.gold)
    flipped = rows.reference != rows.candidate
    before, after = rows.reference == rows.gold, rows.candidate == rows.gold
    count = int(flipped.sum())
    return {
        "matrix": metrics.confusion(rows.reference, rows.candidate, len(rows.names)).tolist(),
        "count": count,
        "rate": count / n,
        "rate_interval": list(metrics.wilson(count, n)),
        "right_to_wrong": int((before & ~after).sum()),
        "wrong_to_right": int((~before & after).sum()),
        "wrong_to_wrong": int((flipped & ~before & ~after).sum()),
        "ordered": _severity(rows, draws) if ordered else None,
    }


def _severity(rows: Labels, draws: Draws) -> dict[str, Any]:
    n = len(rows.gold)
    steps = rows.candidate - rows.reference
    under, over = int((steps > 0).sum()), int((steps < 0).sum())
    too_low = {"reference": rows.reference > rows.gold, "candidate": rows.candidate > rows.gold}
    figures = {name: bootstrap.mean(values) for name, values in too_low.items()}
    return {
        "under": under,
        "over": over,
        "net_under_rate": (under - over) / n,
        "gross_under_rate": under / n,
        "two_levels_or_more": int((np.abs(steps) >= 2).sum()),
        "gold_under_triage": {
            **{name: draws.estimate(figure) for name, figure in figures.items()},
            "difference": draws.difference(figures["candidate"], figures["reference"]),
        },
        # Of two labels the top two are all there are.
        "top_two_sensitivity": None
        if len(rows.names) < 3
        else {"reference": _top_two(rows.gold, rows.reference), "candidate": _top_two(rows.gold, rows.candidate)},
    }


def _top_two(gold: Indices, said: Indices) -> dict[str, Any]:
    """The share of notes of the two most severe levels that were given one of these two."""
    severe = gold < 2
    n, found = int(severe.sum()), int((severe & (said < 2)).sum())
    low, high = metrics.wilson(found, n)
    return {"value": found / n if n else math.nan, "low": low, "high": high, "n": n}


def drift(
    rows: Labels, reference: Floats, candidate: Floats, temperatures: tuple[float | None, float | None]
) -> dict[str, Any]:
    """How far the candidate's probabilities moved, in nats; first as decided, then without the temperatures.

    Args:
        rows: the labels.
        reference: the reference's probabilities, none of them 0.
        candidate: the candidate's.
        temperatures: with which each side's probabilities were made; None where that is not known.
    """
    flipped = rows.reference != rows.candidate
    margin = metrics.margins(reference)
    count = len(rows.gold)
    uncalibrated = None
    if None not in temperatures and temperatures[0] != temperatures[1]:
        raw = [
            calibration.probabilities(np.log(given), 1 / (temperature or 1.0))
            for given, temperature in zip((reference, candidate), temperatures, strict=True)
        ]
        uncalibrated = {
            "kl": _spread(metrics.kullback_leibler(*raw)),
            "js": _spread(metrics.jensen_shannon(*raw)),
        }
    return {
        "kl": _spread(metrics.kullback_leibler(reference, candidate)),
        "js": _spread(metrics.jensen_shannon(reference, candidate)),
        "uncalibrated": uncalibrated,
        "label_shift": {
            name: {
                "reference": int((rows.reference == place).sum()) / count,
                "candidate": int((rows.candidate == place).sum()) / count,
            }
            for place, name in enumerate(rows.names)
        },
        "flipped_margins": sorted(margin[flipped].tolist()),
        "margin": {
            "flipped_mean": float(margin[flipped].mean()) if flipped.any() else math.nan,
            "kept_mean": float(margin[~flipped].mean()) if not flipped.all() else math.nan,
        },
    }


def _spread(values: Floats) -> dict[str, float]:
    return {"mean": float(values.mean()), "p99": float(np.quantile(values, 0.99)), "max": float(values.max())}


def calibrated(
    rows: Labels, reference: Floats, candidate: Floats, temperatures: tuple[float | None, float | None], seed: int
) -> dict[str, Any]:
    """ECE, Brier score, NLL and risk-coverage of both sides, and of the candidate once its temperature is fitted anew.

    The refitted figures are cross-fitted: each row at a temperature that was fitted on the other folds. The
    temperature itself is that of all rows; where the candidate's own is not known, it is what the logarithms of
    the probabilities as given would be divided by.
    """
    found: dict[str, Any] = {
        "reference": _calibration(rows.gold, reference, temperatures[0]),
        "candidate": _calibration(rows.gold, candidate, temperatures[1]),
        "candidate_refitted": None,
        "temperature_refitted": None,
        "refit": None,
        "ece_bins": ECE_BINS,
    }
    if len(rows.gold) >= MIN_REFIT_ROWS:
        logs = np.log(candidate)
        temperature = calibration.fit_temperature(logs, rows.gold) * (temperatures[1] or 1.0)
        [held_out] = calibration.crossfitted(logs, rows.gold, folds=REFIT_FOLDS, repeats=1, seed=seed)
        found["candidate_refitted"] = _calibration(rows.gold, held_out, temperature)
        found["temperature_refitted"] = temperature
        found["refit"] = f"cross-fitted in {REFIT_FOLDS} folds"
    return found


def _calibration(gold: Indices, probabilities: Floats, temperature: float | None) -> dict[str, Any]:
    return {
        "ece": metrics.expected_calibration_error(gold, probabilities, ECE_BINS),
        "brier": metrics.brier(gold, probabilities),
        "nll": metrics.negative_log_likelihood(gold, probabilities),
        "temperature": temperature,
        "reliability": [asdict(one) for one in metrics.reliability(gold, probabilities, RELIABILITY_BINS)],
        "risk_coverage": risk_coverage(gold, probabilities),
    }


def risk_coverage(gold: Indices, probabilities: Floats) -> dict[str, Any]:
    """Errors among the rows of greatest confidence, as the share of rows decided grows.

    Returns:
        `aurc` and `augrc` (see `metrics`), and the `curve` at up to `CURVE_POINTS` shares, each with its `coverage`
        and `risk`.
    """
    confidences = probabilities.max(axis=1)
    wrong = (probabilities.argmax(axis=1) != gold).astype(np.float64)
    coverage, risk = metrics.risk_coverage(confidences, wrong)
    places = np.unique(np.ceil(np.linspace(0, len(gold), CURVE_POINTS + 1)[1:]).astype(np.int64) - 1)
    return {
        "aurc": metrics.aurc(confidences, wrong),
        "augrc": metrics.augrc(confidences, wrong),
        "curve": [{"coverage": float(coverage[place]), "risk": float(risk[place])} for place in places],
    }


def ece_figures(rows: Labels, reference: Floats, candidate: Floats) -> tuple[bootstrap.Figure, bootstrap.Figure]:
    """The calibration errors of both sides as figures of rows."""
    first, second = (
        calibration_error(given.argmax(axis=1) == rows.gold, given.max(axis=1)) for given in (reference, candidate)
    )
    return first, second
