"""Fits a bundle's calibration on labelled rows, through the runtime, on this bundle's own numbers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from r2d_edge import calibration, policy
from r2d_edge.bundle import Calibration
from r2d_edge.calibration import Abstention, FloatArray, IntArray
from r2d_edge.decide import Decider, why_unreadable
from r2d_edge.errors import InputError
from r2d_edge.label_scores import score_labels
from r2d_edge.metrics import expected_calibration_error
from r2d_edge.policy import LabelSetRule, Policy
from r2d_edge.task import LabelSet

FOLDS = 5
TEMPERATURE_SHARE = 1 / 3  # of the rows, where a temperature and what rests on it are fitted together
# What a calibration's source says behind its temperatures; `calibrate` replaces it, whatever fitted it.
_SETS_SAID = "; class-conditional conformal label sets"
_DIGITS = 4
_THRESHOLD_DIGITS = 6

Risk = Literal["under-triage", "error"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Labelled notes as the bundle scores them.

    Attributes:
        texts: the notes.
        gold: label indices [n].
        places: the setting that each comes from, "" for none, [n].
        scores: raw label log-probabilities [n, k].
        truncated: whether part of a note did not fit, [n].
        data: the files in words.
    """

    texts: list[str]
    gold: IntArray
    places: npt.NDArray[np.str_]
    scores: FloatArray
    truncated: Mask
    data: str

    def part(self, rows: Mask) -> Rows:
        """Some of the rows."""
        texts = [self.texts[row] for row in np.flatnonzero(rows)]
        return Rows(texts, self.gold[rows], self.places[rows], self.scores[rows], self.truncated[rows], self.data)


@dataclass(frozen=True)
class Fitted:
    """Temperatures, and how they do on rows that they were not fitted on.

    Attributes:
        calibration: what was fitted; nothing is abstained on for low confidence.
        held_out: cross-fitted figures, with `one` temperature for all and with one for `each` setting:
            `nll` (nats) over all rows, and for each setting `rows`, `nll`, `ece`, `ece_if_calibrated` (what a
            perfect model of this confidence shows on so few rows: mean and 95 % range) and `debiased`.
    """

    calibration: Calibration
    held_out: dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What is asked of a calibration.

    Attributes:
        risk: the decided notes' share of errors is to be at most this.
        risk_of: what counts as an error; None: under-triage for ordered labels, any wrong label for others.
        confidence: with which the bound on that risk is to hold.
        coverage: of the label sets, for each label.
        policy: how a label is chosen.
        threshold: whether a threshold of abstention is fitted at all.
        keep_temperature: use the bundle's temperatures, so that all rows serve the rest. They must not have been
            fitted on these rows. Only the settings that rows come from are kept.
        seed: of dealing the rows to the steps.
    """

    risk: float = 0.10
    risk_of: Risk | None = None
    confidence: float = 0.95
    coverage: float = 0.9
    policy: Policy = field(default_factory=Policy)
    threshold: bool = True
    keep_temperature: bool = False
    seed: int = 13


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and what it was fitted on.

    Attributes:
        calibration: for the manifest.
        abstentions: by setting (None: all rows at the general temperature) what threshold was found; empty where
            none was asked for.
        label_rows: by setting, the rows of each label that its conformal threshold rests on.
        held_out: as in `Fitted`; empty where the temperatures were kept.
        risk_of: what the abstention bounds.
        dropped: settings that the bundle knew and this calibration does not.
    """

    calibration: Calibration
    abstentions: dict[str | None, Abstention]
    label_rows: dict[str | None, dict[str, int]]
    held_out: dict[str, Any]
    risk_of: Risk
    dropped: tuple[str, ...]

    @property
    def failed(self) -> list[str | None]:
        """The settings for which no threshold qualifies."""
        return [setting for setting, found in self.abstentions.items() if found.threshold is None]


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
    return fit_temperatures(read_rows(decider, files, settings, batch_size=batch_size))


def read_rows(
    decider: Decider, files: Sequence[Path], settings: Sequence[str | None] | None = None, *, batch_size: int = 16
) -> Rows:
    """Reads labelled rows and scores them with the bundle; arguments and errors as for `fit`."""
    if decider.task.labels.kind == "open":
        raise InputError("the bundle's labels are free text: there are no label scores to calibrate")
    named = list(settings) if settings is not None else [None] * len(files)
    rows = [
        (text, label, setting)
        for path, setting in zip(files, named, strict=True)
        for text, label in _read(path, decider.task.labels)
    ]
    if not rows:
        raise InputError("no labelled rows to fit a calibration on")
    prompts = [decider.encoder.predict(text) for text, _, _ in rows]
    scores = np.concatenate(
        [
            score_labels(decider.engine, decider.encoder, [one.ids for one in prompts[first : first + batch_size]])
            for first in range(0, len(prompts), batch_size)
        ]
    )
    data = ", ".join(
        f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" for path in files
    )
    return Rows(
        [text for text, _, _ in rows],
        np.array([label for _, label, _ in rows], dtype=np.int64),
        np.array([setting or "" for _, _, setting in rows]),
        scores,
        np.array([one.dropped > 0 for one in prompts]),
        data,
    )


def fit_temperatures(rows: Rows) -> Fitted:
    """What `fit` does, on rows that are read."""
    scores, gold, places = rows.scores, rows.gold, rows.places
    names = sorted(set(places.tolist()) - {""})
    for name in ("", *names):
        if 0 < (count := int((places == name).sum())) < FOLDS and names:
            raise InputError(f"setting {name!r} has {count} labelled rows: {FOLDS} or more are needed to judge the fit")
    held_out = _held_out(scores, gold, places, apart=bool(names))
    apart = bool(names) and held_out["each"]["nll"] < held_out["one"]["nll"]
    own = {name: calibration.fit_temperature(scores[places == name], gold[places == name]) for name in names}
    source = f"temperature by maximum likelihood on {len(gold)} rows ({rows.data}) scored by this quantization"
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


def calibrate(decider: Decider, rows: Rows, goal: Goal) -> Calibrated:
    """Fits temperatures, then label sets and a threshold of abstention that rest on other rows.

    The rows are dealt by the seed, a third to the temperatures (none where they are kept) and the rest to the
    others; a policy that rounds up decides by the label sets, so there the sets and the threshold share the rest by
    halves. So each bound is worked out on rows that nothing it rests on has seen. They hold for notes drawn as
    these rows were, one independent of the other: rows of one visit or patient must not be many.

    Each setting with a temperature of its own gets label sets and a threshold from its rows; the general ones are
    from all rows, at the general temperature, and hold at no other. So a setting of the bundle that no row comes from
    is dropped: a clinic that asks for it is refused, rather than given bounds that nobody has shown there.

    Raises:
        InputError: too few rows for a step, the policy does not fit the labels, or a setting is not the bundle's.
    """
    ordered = decider.task.labels.kind == "ordered"
    if goal.policy.needs_order and not ordered:
        raise InputError("costs and rounding up need labels that are ordered by severity; this bundle's are not")
    if goal.policy.check_rationale and not decider.task.explains:
        raise InputError("the bundle writes no rationales that could be checked")
    risk_of: Risk = goal.risk_of or ("under-triage" if ordered else "error")
    if risk_of == "under-triage" and not ordered:
        raise InputError("under-triage needs labels that are ordered by severity; bound the risk of an error instead")
    for_temperature, for_sets, for_threshold = _deal(rows.places, goal)
    own = decider.bundle.manifest.calibration
    if goal.keep_temperature:
        kept = {name: own.temperature_in(name) for name in sorted(set(rows.places.tolist()) - {""})}
        start, held_out = Calibration(own.temperature, source=own.source.partition(_SETS_SAID)[0], settings=kept), {}
    else:
        temperatures = fit_temperatures(rows.part(for_temperature))
        start, held_out = temperatures.calibration, temperatures.held_out
    settings: list[str | None] = [None, *sorted(start.settings)]

    def mine(setting: str | None) -> Mask:
        return np.ones(len(rows.gold), dtype=bool) if setting is None else np.asarray(rows.places == setting)

    names = decider.task.labels.labels
    sets: dict[str | None, LabelSetRule] = {}
    label_rows: dict[str | None, dict[str, int]] = {}
    for setting in settings:
        part = rows.part(mine(setting) & for_sets)
        sets[setting] = _label_sets(part, start.temperature_in(setting), names, goal.coverage)
        label_rows[setting] = {name: int((part.gold == place).sum()) for place, name in enumerate(names)}
    fitted = replace(
        start,
        policy=goal.policy.to_json(),
        label_set=sets[None].to_json(),
        by_setting={setting: {"label_set": sets[setting].to_json()} for setting in settings if setting is not None},
    )
    abstentions = {}
    if goal.threshold:
        for setting in settings:
            part = rows.part(mine(setting) & for_threshold)
            abstentions[setting] = _abstention(decider, fitted, setting, part, goal, risk_of)
    return Calibrated(
        replace(
            fitted,
            abstain_below=_threshold(abstentions.get(None)),
            by_setting={
                name: {"abstain_below": _threshold(abstentions.get(name)), **own}
                for name, own in fitted.by_setting.items()
            },
            source=_source(start.source, rows, goal, abstentions, risk_of, (for_sets, for_threshold)),
        ),
        abstentions,
        label_rows,
        held_out,
        risk_of,
        tuple(sorted(set(own.settings) - set(start.settings))),
    )


def _deal(places: npt.NDArray[np.str_], goal: Goal) -> tuple[Mask, Mask, Mask]:
    """Which rows serve the temperatures, the label sets and the threshold, [n] each; the shares hold per setting."""
    generator = np.random.default_rng(goal.seed)
    position = np.empty(len(places))
    for place in np.unique(places):
        rows = generator.permutation(np.flatnonzero(places == place))
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    share = 0.0 if goal.keep_temperature else TEMPERATURE_SHARE
    rest = position >= share
    if not goal.policy.round_up:
        return ~rest, rest, rest
    upper = position >= (1 + share) / 2
    return ~rest, rest & ~upper, upper


def _label_sets(rows: Rows, temperature: float, names: Sequence[str], coverage: float) -> LabelSetRule:
    found = calibration.conformal_thresholds(calibration.probabilities(rows.scores, temperature), rows.gold, coverage)
    # Rounded up: what is stored lets in no less than what was fitted.
    scale = 10**_THRESHOLD_DIGITS
    return LabelSetRule(
        coverage, {name: min(1.0, float(np.ceil(q * scale)) / scale) for name, q in zip(names, found, strict=True)}
    )


def _abstention(
    decider: Decider, fitted: Calibration, setting: str | None, rows: Rows, goal: Goal, risk_of: Risk
) -> Abstention:
    """The threshold for a setting's rows, decided as `infer` decides them."""
    here = fitted.in_setting(setting)
    probabilities = calibration.probabilities(rows.scores, here.temperature)
    rule = LabelSetRule.from_json(here.label_set)
    names = decider.task.labels.labels
    given, _ = policy.apply(
        probabilities,
        goal.policy,
        rule.of(names) if rule is not None else None,
        ordered=decider.task.labels.kind == "ordered",
    )
    errors = given > rows.gold if risk_of == "under-triage" else given != rows.gold
    out = rows.truncated
    if goal.policy.check_rationale:
        # Here only what the rationales say is not known from the scores.
        decided = list(_as_fitted(decider, here).decide_many(rows.texts, rationale=False))
        out = out | np.array([decision.consistent is not True for decision in decided], dtype=bool)
    confidences = np.where(out, -np.inf, probabilities.max(axis=1))
    return calibration.abstention(confidences, np.asarray(errors), goal.risk, goal.confidence)


def _as_fitted(decider: Decider, fitted: Calibration) -> Decider:
    """The same engine with another calibration."""
    other = copy.copy(decider)
    other.bundle = copy.copy(decider.bundle)
    other.bundle.manifest = replace(decider.bundle.manifest, calibration=fitted)
    other.setting = None
    return other


def _threshold(found: Abstention | None) -> float:
    return 0.0 if found is None or found.threshold is None else found.threshold


def _source(
    start: str,
    rows: Rows,
    goal: Goal,
    abstentions: dict[str | None, Abstention],
    risk_of: Risk,
    used: tuple[Mask, Mask],
) -> str:
    """In words what was fitted on what: `start` says it of the temperatures, `used` are the rows of sets, threshold."""
    parts = [f"{start}{_SETS_SAID} of coverage {goal.coverage:g}"]
    if not goal.threshold:
        parts.append("no threshold of abstention was asked for")
    for setting, found in abstentions.items():
        where = "" if setting is None else f" in setting {setting}"
        what = f"{risk_of} among the decided at most {goal.risk:g} with confidence {goal.confidence:g}{where}"
        parts.append(
            f"{what}: no threshold qualifies"
            if found.threshold is None
            else f"{what}: threshold {found.threshold:g}, {found.decided} of {found.rows} rows decided, "
            f"{found.errors} of them in error"
        )
    for_sets, for_threshold = (int(mask.sum()) for mask in used)
    if not goal.threshold:
        what = f"sets on {for_sets}"
    elif goal.policy.round_up:
        what = f"sets on {for_sets} and threshold on {for_threshold} others"
    else:
        what = f"sets and threshold on {for_sets}"
    temperature = "at the temperature the bundle had" if goal.keep_temperature else "none of them the temperature's"
    parts.append(f"{what} of {len(rows.gold)} rows ({rows.data}), {temperature}")
    return "; ".join(parts)


def _held_out(scores: FloatArray, gold: IntArray, places: Any, *, apart: bool) -> dict[str, Any]:
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
        except (ValueError, RecursionError):
            raise InputError(f"{where}: not JSON") from None
        text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or (reason := why_unreadable(text)):
            raise InputError(f"{where}: no text that can be scored{f' ({reason})' if isinstance(text, str) else ''}")
        if label not in labels.labels:
            raise InputError(f"{where}: its label is none of {list(labels.labels)}")
        yield text, labels.index(label)
