"""Fits a bundle's temperatures on labelled rows, through the runtime, on this bundle's own numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2d_edge import calibration
from r2d_edge.bundle import Calibration
from r2d_edge.decide import Decider, why_unreadable
from r2d_edge.errors import InputError
from r2d_edge.label_scores import score_labels
from r2d_edge.metrics import expected_calibration_error
from r2d_edge.task import LabelSet

FOLDS = 5
_DIGITS = 4


@dataclass(frozen=True)
class Fitted:
    """Temperatures, and how they do on rows that they were not fitted on.

    Attributes:
        calibration: for `convert ctranslate2 --calibration`; nothing is abstained on for low confidence.
        held_out: cross-fitted figures, with `one` temperature for all and with one for `each` setting:
            `nll` (nats) over all rows, and for each setting `rows`, `nll`, `ece`, `ece_if_calibrated` (what a
            perfect model of this confidence shows on so few rows: mean and 95 % range) and `debiased`.
    """

    calibration: Calibration
    held_out: dict[str, Any]


def fit(
    decider: Decider, files: Sequence[Path], settings: Sequence[str | None] | None = None, *, batch_size: int = 16
) -> Fitted:
    """Fits one temperature for all rows and, where files name their setting, one for each setting.

    The settings' own are kept only if they give held-out rows a greater likelihood. Nothing beyond
    temperatures is fitted: on the embedded model's validation rows biases by label (vector scaling) made
    the held-out likelihood worse at every strength of shrinkage.

    Args:
        decider: the bundle, as converted.
        files: JSON Lines with `text` and `label`.
        settings: for each file the name of the setting it comes from; None where it has none.
        batch_size: how many notes are scored at once.

    Raises:
        InputError: a row has no text, or a label outside the bundle's label set, or there are too few rows.
    """
    named = list(settings) if settings is not None else [None] * len(files)
    rows = [
        (text, label, setting)
        for path, setting in zip(files, named, strict=True)
        for text, label in _read(path, decider.task.labels)
    ]
    if not rows:
        raise InputError("no labelled rows to fit a temperature on")
    prompts = [decider.encoder.predict(text).ids for text, _, _ in rows]
    scores = np.concatenate(
        [
            score_labels(decider.engine, decider.encoder, prompts[first : first + batch_size])
            for first in range(0, len(prompts), batch_size)
        ]
    )
    gold = np.array([label for _, label, _ in rows], dtype=np.int64)
    places = np.array([setting or "" for _, _, setting in rows])
    names = sorted({setting for setting in named if setting is not None})
    for name in ("", *names):
        if 0 < (count := int((places == name).sum())) < FOLDS and names:
            raise InputError(f"setting {name!r} has {count} labelled rows: {FOLDS} or more are needed to judge the fit")
    held_out = _held_out(scores, gold, places, apart=bool(names))
    apart = bool(names) and held_out["each"]["nll"] < held_out["one"]["nll"]
    own = {name: calibration.fit_temperature(scores[places == name], gold[places == name]) for name in names}
    data = ", ".join(
        f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" for path in files
    )
    source = f"temperature by maximum likelihood on {len(rows)} rows ({data}) scored by this quantization"
    if names:
        source += (
            f"; held-out NLL {held_out['one']['nll']:.4f} with one temperature for all, "
            f"{held_out['each']['nll']:.4f} with one for each setting: {'kept' if apart else 'not kept'}"
        )
    fitted = Calibration(
        temperature=round(calibration.fit_temperature(scores, gold), _DIGITS),
        source=source,
        settings={name: round(temperature, _DIGITS) for name, temperature in own.items()} if apart else {},
    )
    return Fitted(fitted, held_out)


def _held_out(
    scores: calibration.FloatArray, gold: calibration.IntArray, places: Any, *, apart: bool
) -> dict[str, Any]:
    """What `Fitted.held_out` describes; empty for fewer rows than folds."""
    if len(gold) < FOLDS:
        return {}
    ways = {"one": None, **({"each": places.tolist()} if apart else {})}
    found: dict[str, Any] = {}
    for way, settings in ways.items():
        crossfitted = calibration.crossfitted(scores, gold, settings, folds=FOLDS)
        chosen = -np.log(np.maximum(crossfitted[:, np.arange(len(gold)), gold], 1e-300))
        found[way] = {"nll": round(float(chosen.mean()), _DIGITS)}
        for name in np.unique(places).tolist():
            mine = places == name
            floor = calibration.error_if_calibrated(crossfitted[0, mine])
            errors = [expected_calibration_error(gold[mine], once[mine]) for once in crossfitted]
            debiased = [calibration.debiased_error(gold[mine], once[mine]) for once in crossfitted]
            found[way][name or "rows of no setting"] = {
                "rows": int(mine.sum()),
                "nll": round(float(chosen[:, mine].mean()), _DIGITS),
                "ece": round(float(np.mean(errors)), _DIGITS),
                "ece_if_calibrated": [round(value, _DIGITS) for value in floor],
                "debiased": round(float(np.mean(debiased)), _DIGITS),
            }
    return found


def _read(path: Path, labels: LabelSet) -> Iterator[tuple[str, int]]:
    """Text and label index of every row; a message never repeats what stands in a row."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: not JSON") from None
        text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or (reason := why_unreadable(text)):
            raise InputError(f"{where}: no text that can be scored{f' ({reason})' if isinstance(text, str) else ''}")
        if label not in labels.labels:
            raise InputError(f"{where}: its label is none of {list(labels.labels)}")
        yield text, labels.index(label)
