"""Note → Decision: score the labels, calibrate, abstain, explain."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from r2d_edge import calibration, policy
from r2d_edge.bundle import TOKENIZER, Bundle, Calibration, Decoding
from r2d_edge.catalogue import DEFAULT_MODEL as DEFAULT_MODEL
from r2d_edge.catalogue import MODELS as MODELS
from r2d_edge.catalogue import find_model as find_model
from r2d_edge.catalogue import open_model
from r2d_edge.decision import Decision
from r2d_edge.engines import Engine, EngineOptions, open_engine
from r2d_edge.errors import BundleError
from r2d_edge.label_scores import score_labels
from r2d_edge.policy import LabelSetRule, Policy
from r2d_edge.task import Prompt, PromptEncoder, Task

MAX_CONTROL_SHARE = 0.1

if TYPE_CHECKING:
    from r2d_edge.revision import Reviser
    from r2d_edge.writing import Writer

OnToken = Callable[[str], None]
OnLabel = Callable[[Decision], None]


def load(
    path: Path | str | None = None, options: EngineOptions | None = None, *, setting: str | None = None
) -> Decider:
    """Opens a model by name or path (default: the embedded one), checked whole before its engine sees it.

    Args:
        path: the model's name or where its bundle lies.
        options: what the engine may use of this machine.
        setting: where the notes come from, as the bundle's calibration names it; its temperature is used.

    Raises:
        InputError: the bundle was not calibrated for that setting.
        BundleError: the bundle was refused.
        AssemblyError: a model that comes in parts cannot be assembled here.
        EngineError: its engine cannot run here.
    """
    from r2d_edge.integrity.trial import try_loading

    bundle, options = open_model(path), options or EngineOptions()
    try_loading(bundle, options)
    return Decider(bundle, options, setting=setting)


def why_unreadable(text: str) -> str | None:
    """Why a text cannot be a note, or None: such a text is abstained on, never scored."""
    if not text.strip():
        return "empty note"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "not valid Unicode"
    control = sum(unicodedata.category(c) in ("Cc", "Co", "Cn") and c not in "\t\n\r" for c in text)
    control += text.count("\ufffd")
    if "\0" in text or control > MAX_CONTROL_SHARE * len(text):
        return "not text"
    if not any(character.isalpha() for character in text):
        return "no words"
    return None


@dataclass(frozen=True)
class _Choice:
    """What the scores of one prompt come to."""

    label: str
    probabilities: dict[str, float]
    label_set: tuple[str, ...] | None = None


class Decider:
    """A bundle with its engine, ready to decide; `setting` as for `load`."""

    def __init__(self, bundle: Bundle, options: EngineOptions, *, setting: str | None = None) -> None:
        bundle.manifest.calibration.temperature_in(setting)  # a wrong name is told before a model is loaded
        self.bundle = bundle
        self.setting = setting
        self.task = bundle.manifest.task
        _check_policy(bundle.manifest.calibration, self.task)
        try:
            self.encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), self.task)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise BundleError(f"{TOKENIZER} cannot be used: {error}") from None
        self.engine: Engine = open_engine(bundle, self.encoder, options)

    @cached_property
    def _writer(self) -> Writer:
        """Made when a rationale is first wanted: a label must not wait for a lexicon to load."""
        from r2d_edge.writing import Writer

        return Writer.of(self.bundle, self.encoder)

    def _reviser(self) -> Reviser | None:
        """What checks rationales against their notes, where the bundle asks for it."""
        decoding = self.bundle.manifest.decoding
        if not decoding.only_numbers_of_the_note:
            return None
        from r2d_edge.revision import Reviser

        limit = self.task.limits.rationale
        return Reviser(self.engine, self.encoder, self._writer, max_tokens=limit, decoding=decoding)

    def decide(
        self,
        text: str,
        *,
        id: str = "0",  # noqa: A002  the record's own name for it
        rationale: bool = True,
        check: bool = False,
        on_label: OnLabel | None = None,
        on_token: OnToken | None = None,
    ) -> Decision:
        """Decides one note.

        Args:
            text: the note. What cannot be a note (empty, binary, no words) is abstained on.
            id: carried into the decision.
            rationale: whether to write one, conditioned on the predicted label; it is empty where no sentence
                of it passed the bundle's check, and None of a model that writes none.
            check: whether to say if the rationale alone leads to the same label; it is written for that even
                where it is not asked for. A bundle's policy can ask for this always.
            on_label: called with the decision so far once the label is known, or with the whole decision where
                the policy lets the rationale overrule it.
            on_token: called with each piece of the rationale as it is made, and checked where the bundle asks
                for that; not called where the rationale may overrule the label.
        """
        if self._policy.check_rationale:
            [decision] = self.decide_many([text], ids=[id], rationale=rationale)
            if on_label is not None:
                on_label(decision)
            return decision
        decision = next(self._label([text], [id]))
        if on_label is not None:
            on_label(decision)
        if not (rationale or check) or not self.task.explains or decision.label is None:
            return decision
        start = time.perf_counter()
        prompt = self.encoder.explain(text, decision.label)
        decoding, limit = self.bundle.manifest.decoding, self.task.limits.rationale
        # A beam knows its first word only when it knows its last; and token by token is slower.
        if decoding.beam_size > 1 or on_token is None:
            ids: Iterable[int] = self.engine.generate([prompt.ids], max_tokens=limit, decoding=decoding)[0]
        else:
            ids = self.engine.stream(prompt.ids, max_tokens=limit, decoding=decoding)
        if (reviser := self._reviser()) is not None:
            ids = reviser.revise(prompt.ids, ids, text)
        written = self._writer.stream(ids, text, on_token if rationale else None)
        decision = replace(decision, rationale=written, ms={**decision.ms, "rationale": _since(start)})
        if check:
            [decision] = self._checked([decision])
        return decision if rationale else replace(decision, rationale=None)

    def decide_many(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        rationale: bool = True,
        check: bool = False,
        batch_size: int = 64,
    ) -> Iterator[Decision]:
        """Decides notes in their order, `batch_size` at a time; `ms` is a note's share of its batch.

        The engine sorts a batch by length and takes it in parts, so a large one costs memory for its decisions
        alone and is faster than small ones.
        """
        check = (check or self._policy.check_rationale) and self.task.explains
        write = (rationale or check) and self.task.explains
        names = list(ids) if ids is not None else [str(number) for number in range(len(texts))]
        if len(names) != len(texts):
            raise ValueError(f"{len(names)} ids for {len(texts)} texts")
        for first in range(0, len(texts), batch_size):
            part = slice(first, first + batch_size)
            decisions = list(self._label(texts[part], names[part]))
            if write:
                decisions = list(self._explain(texts[part], decisions))
            if check:
                decisions = list(self._checked(decisions))
            yield from decisions if rationale else (replace(decision, rationale=None) for decision in decisions)

    def golden_differences(self) -> list[float]:
        """The greatest label log-probability difference (nats) of each golden row, re-scored here."""
        found, expected = self._golden_scores
        return [float(value) for value in np.abs(found - expected).max(axis=1, initial=0.0)]

    def golden_shifts(self) -> list[float]:
        """The greatest difference of a calibrated label probability of each golden row, re-scored here."""
        if not self.task.labels.labels:
            return [0.0 for _ in self.bundle.golden()]
        temperature = self._calibration.temperature
        found, expected = (calibration.probabilities(scores, temperature) for scores in self._golden_scores)
        return [float(value) for value in np.abs(found - expected).max(axis=1)]

    @cached_property
    def _golden_scores(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Label log-probabilities of the golden rows, scored here and as the bundle holds them, each [n, k]."""
        rows = self.bundle.golden()
        found = score_labels(self.engine, self.encoder, [self.encoder.predict(row["text"]).ids for row in rows])
        expected = [[row["log_probabilities"][label] for label in self.task.labels.labels] for row in rows]
        return found.astype(np.float64), np.array(expected, dtype=np.float64)

    def _label(self, texts: Sequence[str], ids: Sequence[str]) -> Iterator[Decision]:
        """Decisions without rationale, in order."""
        start = time.perf_counter()
        reasons = [why_unreadable(text) for text in texts]
        prompts = {
            row: self.encoder.predict(text)
            for row, (text, reason) in enumerate(zip(texts, reasons, strict=True))
            if reason is None
        }
        found: dict[int, _Choice] = {}
        if prompts:
            found = dict(zip(prompts, self._choices([prompt.ids for prompt in prompts.values()]), strict=True))
        share = _since(start) / max(1, len(texts))
        for row, name in enumerate(ids):
            if row in found:
                yield self._decided(name, found[row], prompts[row], share)
            else:
                yield Decision(name, None, {}, self.bundle.label, abstained=True, reason=reasons[row])

    @property
    def _calibration(self) -> Calibration:
        return self.bundle.manifest.calibration.in_setting(self.setting)

    @property
    def _policy(self) -> Policy:
        return Policy.from_json(self.bundle.manifest.calibration.policy)

    def _choices(self, prompts: list[list[int]]) -> list[_Choice]:
        """What the bundle's calibration and policy make of each prompt's label scores."""
        if self.task.labels.kind == "open":
            return [_Choice(label, {label: probability}) for label, probability in self._written_labels(prompts)]
        fitted = self._calibration
        names = self.task.labels.labels
        probabilities = calibration.probabilities(score_labels(self.engine, self.encoder, prompts), fitted.temperature)
        rule = LabelSetRule.from_json(fitted.label_set)
        given, members = policy.apply(
            probabilities,
            self._policy,
            rule.of(names) if rule is not None else None,
            ordered=self.task.labels.kind == "ordered",
        )
        sets = [None] * len(given) if members is None else [np.flatnonzero(row).tolist() for row in members]
        return [
            _Choice(
                names[place],
                dict(zip(names, row, strict=True)),
                None if places is None else tuple(names[member] for member in places),
            )
            for place, row, places in zip(given.tolist(), probabilities.tolist(), sets, strict=True)
        ]

    def _written_labels(self, prompts: list[list[int]]) -> Iterator[tuple[str, float]]:
        """Greedy labels of an open set, each with the probability of its token sequence."""
        limit = self.task.limits.label
        for prompt, ids in zip(
            prompts, self.engine.generate(prompts, max_tokens=limit, decoding=Decoding()), strict=True
        ):
            sequence = [*ids, self.encoder.end_id][:limit]
            steps = (
                self.engine.next_log_probabilities([prompt], [sequence[:position]])[0, token]
                for position, token in enumerate(sequence)
            )
            yield self.encoder.decode(ids).strip(), float(np.exp(sum(steps)))

    def _decided(self, name: str, choice: _Choice, prompt: Prompt, ms: float) -> Decision:
        reason = None
        if prompt.dropped:
            reason = "truncated"
        elif max(choice.probabilities.values()) < self._calibration.abstain_below:
            reason = "low confidence"
        return Decision(
            id=name,
            label=choice.label,
            probabilities=choice.probabilities,
            label_set=choice.label_set,
            model=self.bundle.label,
            abstained=reason is not None,
            reason=reason,
            truncated=prompt.dropped > 0,
            ms={"label": ms},
        )

    def _checked(self, decisions: Sequence[Decision]) -> Iterator[Decision]:
        """Says of decisions with a rationale whether it alone leads to the same label, by the same rule.

        A rationale without words leads to none. Where the policy asks for it, such a decision is abstained on.
        """
        start = time.perf_counter()
        texts = {
            row: decision.rationale
            for row, decision in enumerate(decisions)
            if decision.rationale is not None and why_unreadable(decision.rationale) is None
        }
        found: dict[int, _Choice] = {}
        if texts:
            prompts = [self.encoder.predict(text).ids for text in texts.values()]
            found = dict(zip(texts, self._choices(prompts), strict=True))
        share = _since(start) / max(1, len(texts))
        for row, decision in enumerate(decisions):
            if decision.rationale is None or decision.label is None:
                yield decision
                continue
            same = row in found and found[row].label.casefold() == decision.label.casefold()
            overruled = self._policy.check_rationale and not same and not decision.abstained
            yield replace(
                decision,
                consistent=same,
                abstained=decision.abstained or overruled,
                reason="rationale disagrees" if overruled else decision.reason,
                ms={**decision.ms, "check": share},
            )

    def _explain(self, texts: Sequence[str], decisions: list[Decision]) -> Iterator[Decision]:
        """Adds rationales to the decisions that have a label."""
        start = time.perf_counter()
        rows = [row for row, decision in enumerate(decisions) if decision.label is not None]
        prompts = [self.encoder.explain(texts[row], decisions[row].label or "").ids for row in rows]
        written = {}
        if rows:
            generated = self.engine.generate(
                prompts, max_tokens=self.task.limits.rationale, decoding=self.bundle.manifest.decoding
            )
            if (reviser := self._reviser()) is not None:
                generated = reviser.revise_many(prompts, generated, [texts[row] for row in rows])
            written = {row: self._writer.write(ids, texts[row]) for row, ids in zip(rows, generated, strict=True)}
        share = _since(start) / max(1, len(rows))
        for row, decision in enumerate(decisions):
            if row in written:
                yield replace(decision, rationale=written[row], ms={**decision.ms, "rationale": share})
            else:
                yield decision


def _check_policy(fitted: Calibration, task: Task) -> None:
    """Raises a BundleError where a calibration does not fit the task."""
    sets = [fitted.label_set, *(own.get("label_set", {}) for own in fitted.by_setting.values())]
    try:
        if Policy.from_json(fitted.policy).needs_order and task.labels.kind != "ordered":
            raise ValueError("costs and rounding up need labels that are ordered by severity")
        if Policy.from_json(fitted.policy).check_rationale and not task.explains:
            raise ValueError("the policy checks rationales, and the model writes none")
        for rule in map(LabelSetRule.from_json, sets):
            if rule is not None:
                rule.of(task.labels.labels)
    except ValueError as error:
        raise BundleError(f"the calibration does not fit the task: {error}") from None


def _since(start: float) -> float:
    """Milliseconds since a `perf_counter` reading."""
    return (time.perf_counter() - start) * 1000
