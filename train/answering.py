"""A trained model asked for labels and rationales: a checkpoint of full size, or a bundle through the runtime."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from r2d_edge import calibration
from r2d_edge.bundle import Decoding
from r2d_edge.casing import CASING, Caser
from r2d_edge.decide import Decider, load, why_unreadable
from r2d_edge.engines import Engine, EngineOptions
from r2d_edge.label_scores import score_labels
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE, Task
from r2d_edge.writing import Writer
from train.data import Example

BATCH = 32
_DIGITS = 8  # significant ones: a small probability must keep its logarithm

Record = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """What a model says about one text.

    Attributes:
        label: None where the runtime would not read the text at all (a blank one, for example).
        probabilities: over the whole label set, calibrated; empty for an open one.
        rationale: None where not asked for.
        truncated: whether the end of the text was not read.
        abstained: whether the runtime would leave the case to a person.
    """

    label: str | None
    probabilities: Mapping[str, float]
    rationale: str | None = None
    truncated: bool = False
    abstained: bool = False


class Model(Protocol):
    """A model that can be asked."""

    name: str
    task: Task
    temperature: float
    provenance: Mapping[str, Any]

    def answer(self, texts: Sequence[str], *, rationales: bool) -> list[Answer]:
        """Labels and, where asked, rationales given those labels, in the order of the texts."""
        ...

    def describe(self) -> dict[str, Any]:
        """Engine, compute type, decoding and batch size, for the report."""
        ...


class CheckpointModel:
    """A checkpoint in PyTorch, uncalibrated, writing as the runtime writes.

    Args:
        folder: the checkpoint.
        decoding: how rationales are decoded; greedily by default.
        batch_size: how many prompts are run at once.
        bf16: whether to compute in bfloat16.
        device: `cpu`, `cuda` or `auto`.
    """

    temperature = 1.0

    def __init__(
        self,
        folder: Path,
        *,
        decoding: Decoding | None = None,
        batch_size: int = BATCH,
        bf16: bool = False,
        device: str = "auto",
    ) -> None:
        from r2d_edge.engines.transformers import open_checkpoint

        checkpoint = open_checkpoint(folder, device=device, bf16=bf16)
        self.task = checkpoint.task
        self.provenance = read_provenance(folder)
        self.name = f"{folder.name} sha256:{checkpoint.digest[:12]}"
        self._encoder = checkpoint.encoder
        self._engine: Engine = checkpoint.engine
        caser = Caser.load(folder / CASING) if (folder / CASING).exists() else None
        self._writer = Writer(self._encoder, caser)
        self._decoding = decoding or Decoding()
        self._batch_size = batch_size

    def answer(self, texts: Sequence[str], *, rationales: bool) -> list[Answer]:
        readable = [row for row, text in enumerate(texts) if why_unreadable(text) is None]
        prompts = {row: self._encoder.predict(texts[row]) for row in readable}
        labelled = self._in_batches({row: prompt.ids for row, prompt in prompts.items()}, "labels", self._label)
        answers = [Answer(None, {}, abstained=True)] * len(texts)
        for row, answer in labelled.items():
            truncated = prompts[row].dropped > 0
            answers[row] = replace(answer, truncated=truncated, abstained=truncated)
        if rationales:
            asked = {row: self._encoder.explain(texts[row], answers[row].label or "").ids for row in readable}
            for row, ids in self._in_batches(asked, "rationales", self._write).items():
                answers[row] = replace(answers[row], rationale=self._writer.write(ids, texts[row]))
        return answers

    def describe(self) -> dict[str, Any]:
        return {
            **self._engine.describe(),
            "decoding": vars(self._decoding),
            "batch_size": self._batch_size,
            "prompts": vars(self.task.prompts),
        }

    def _label(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        if self.task.labels.kind == "open":
            written = self._engine.generate(prompts, max_tokens=self.task.limits.label, decoding=Decoding())
            return [Answer(self._encoder.decode(ids).strip(), {}) for ids in written]
        names = self.task.labels.labels
        scores = calibration.probabilities(score_labels(self._engine, self._encoder, prompts), self.temperature)
        return [Answer(names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True))) for row in scores]

    def _write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return self._engine.generate(prompts, max_tokens=self.task.limits.rationale, decoding=self._decoding)

    def _in_batches(
        self, prompts: Mapping[int, list[int]], what: str, run: Callable[[list[list[int]]], list[Item]]
    ) -> dict[int, Item]:
        """What `run` gives for each row's prompt, run in batches of about one length, the longest first."""
        order = sorted(prompts, key=lambda row: len(prompts[row]), reverse=True)
        batches = [order[first : first + self._batch_size] for first in range(0, len(order), self._batch_size)]
        found: dict[int, Item] = {}
        for rows in _shown(batches, what, len(batches)):
            found.update(zip(rows, run([prompts[row] for row in rows]), strict=True))
        return found


class BundleModel:
    """A bundle, asked through the runtime itself; `decoding` replaces the bundle's own."""

    def __init__(self, decider: Decider, *, decoding: Decoding | None = None, batch_size: int = BATCH) -> None:
        if decoding is not None:
            decider.bundle.manifest = replace(decider.bundle.manifest, decoding=decoding)
        self._decider = decider
        self._batch_size = batch_size
        self.name = decider.bundle.label
        self.task = decider.task
        self.temperature = decider.bundle.manifest.calibration.temperature_in(decider.setting)
        self.provenance = _mapping(decider.bundle.manifest.extra.get("provenance"))

    def answer(self, texts: Sequence[str], *, rationales: bool) -> list[Answer]:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        decisions = self._decider.decide_many(
            [texts[row] for row in order], rationale=rationales, batch_size=self._batch_size
        )
        found = {}
        for row, decision in zip(order, _shown(decisions, "decisions", len(texts)), strict=True):
            open_set = self.task.labels.kind == "open"
            found[row] = Answer(
                decision.label,
                {} if open_set else decision.probabilities,
                decision.rationale,
                decision.truncated,
                decision.abstained,
            )
        return [found[row] for row in range(len(texts))]

    def describe(self) -> dict[str, Any]:
        return {
            **self._decider.engine.describe(),
            "decoding": vars(self._decider.bundle.manifest.decoding),
            "batch_size": self._batch_size,
            "prompts": vars(self.task.prompts),
        }


def open_model(
    model: str | Path,
    *,
    decoding: Decoding | None = None,
    batch_size: int = BATCH,
    bf16: bool = False,
    device: str = "auto",
) -> Model:
    """Opens a checkpoint folder, a bundle (folder or .zip) or an embedded model by its name.

    `decoding` is of no use to a checkpoint that is a classifier.

    Raises:
        BundleError: there is neither a checkpoint nor a bundle, or the bundle was refused.
    """
    if (Path(model) / TASK_FILE).is_file():
        from train.classifier import ClassifierModel, is_classifier

        if is_classifier(Path(model)):
            return ClassifierModel(Path(model), batch_size=batch_size, bf16=bf16, device=device)
        return CheckpointModel(Path(model), decoding=decoding, batch_size=batch_size, bf16=bf16, device=device)
    return BundleModel(load(model, EngineOptions(device=device)), decoding=decoding, batch_size=batch_size)


def method_of(provenance: Mapping[str, Any]) -> str | None:
    """The training method that a checkpoint's provenance names in its recipe."""
    method = _mapping(provenance.get("recipe")).get("method")
    return method if isinstance(method, str) else None


def answer_rows(
    model: Model, examples: Sequence[Example], source: str | None, *, rationales: bool = True
) -> list[Record]:
    """What a model says about every row of a data set, as JSON-ready records.

    Args:
        model: whom to ask.
        examples: the rows; a record carries a row's id, never its text.
        source: whose rationales are the references; None for none.
        rationales: whether to have rationales written, and labels recovered from them: the model is asked for
            the label of its own rationale (`recovered`) and of the reference (`recovered_from_reference`), each
            alone and in the note's place. A blank rationale recovers no label ("").

    Raises:
        ValueError: rows that the runtime would not read (no words, or not text), with their ids.
    """
    answers = model.answer([example.text for example in examples], rationales=rationales)
    unread = [example.id for example, answer in zip(examples, answers, strict=True) if answer.label is None]
    if unread:
        raise ValueError(f"{len(unread)} rows hold no note that a model could read: {', '.join(unread[:20])}")
    references = [example.rationales.get(source) if source is not None else None for example in examples]
    recovered: list[str | None] = [None] * len(examples)
    from_reference = list(recovered)
    if rationales:
        recovered = _recovered(model, [answer.rationale for answer in answers])
        from_reference = _recovered(model, references)
    return [
        {
            "id": example.id,
            "gold": example.label,
            "label": answer.label,
            "probabilities": {label: float(f"{p:.{_DIGITS}g}") for label, p in answer.probabilities.items()},
            "rationale": answer.rationale,
            "reference": reference,
            "recovered": own,
            "recovered_from_reference": theirs,
            "truncated": answer.truncated,
            "abstained": answer.abstained,
        }
        for example, answer, reference, own, theirs in zip(
            examples, answers, references, recovered, from_reference, strict=True
        )
    ]


def _recovered(model: Model, texts: Sequence[str | None]) -> list[str | None]:
    """The label of each text, "" where it has none; None where there is no text."""
    rows = [row for row, text in enumerate(texts) if text is not None]
    found: list[str | None] = [None] * len(texts)
    for row, answer in zip(rows, model.answer([texts[row] or "" for row in rows], rationales=False), strict=True):
        found[row] = answer.label or ""
    return found


def _shown(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    """The items, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, what, total, console=console, transient=True, disable=not sys.stderr.isatty())


def read_provenance(folder: Path) -> Mapping[str, Any]:
    """What a checkpoint folder tells of its making; empty where it tells nothing."""
    file = folder / PROVENANCE_FILE
    return _mapping(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
