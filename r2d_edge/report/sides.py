"""The two sides of a comparison: a bundle, a checkpoint, or decisions that were made before.

A checkpoint is asked through the runtime's own `Decider`, so that the only thing that differs from a bundle
is the engine under it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r2d_edge.bundle import TOKENIZER, Bundle, Decoding, Manifest
from r2d_edge.casing import CASING
from r2d_edge.decide import Decider, load
from r2d_edge.decision import SCHEMA
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, EngineError, InputError
from r2d_edge.inputs import MAX_NOTE_BYTES, open_notes
from r2d_edge.report.labelled import LabelledRow
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE, LabelSet

BATCH = 16
# Decisions are written with six digits: what rounds to nothing is taken for half of the last one.
WRITTEN_FLOOR = 5e-7
EXACT_FLOOR = 1e-12
_SUM_TOLERANCE = 1e-3
_LISTED = 10

OnRow = Callable[[], None]


class MismatchError(InputError):
    """The two sides cannot be compared."""


@dataclass(frozen=True)
class Answers:
    """What a side said of n rows; entry i belongs to row i.

    Attributes:
        labels: places in the label set; -1 where no label was given.
        probabilities: [n, k]; nan where no label was given.
        rationales: None where there is none.
        consistent: whether the rationale alone leads to the row's label; None where that is not known.
    """

    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    rationales: Sequence[str | None]
    consistent: Sequence[bool | None]
    truncated: int
    abstained: int


@dataclass(frozen=True)
class LiveSide:
    """A bundle or a checkpoint, opened. `description` is what the report says of it."""

    decider: Decider
    description: dict[str, Any]
    provenance: Mapping[str, Any]
    exact: bool = True

    @property
    def labels(self) -> LabelSet:
        """Its label set."""
        return self.decider.task.labels

    @property
    def decoding(self) -> Decoding:
        """How it writes rationales."""
        return self.decider.bundle.manifest.decoding

    def answer(
        self, rows: Sequence[LabelledRow], labels: LabelSet, *, rationales: bool, on_row: OnRow = lambda: None
    ) -> Answers:
        """Decides every row, and where asked the rationales too, each in its note's place."""
        decisions = []
        texts = [row.text for row in rows]
        for decision in self.decider.decide_many(texts, rationale=rationales, batch_size=BATCH):
            decisions.append(decision)
            on_row()
        consistent: list[bool | None] = [None] * len(rows)
        if rationales:
            written = [place for place, decision in enumerate(decisions) if decision.rationale is not None]
            alone = self.decider.decide_many(
                [decisions[place].rationale or "" for place in written], rationale=False, batch_size=BATCH
            )
            for place, again in zip(written, alone, strict=True):
                consistent[place] = again.label == decisions[place].label  # a blank one leads to no label
        names = labels.labels
        blank = [math.nan] * len(names)
        return Answers(
            labels=np.array([-1 if d.label is None else labels.index(d.label) for d in decisions], dtype=np.int64),
            probabilities=np.array([[d.probabilities[n] for n in names] if d.label else blank for d in decisions]),
            rationales=[decision.rationale for decision in decisions],
            consistent=consistent,
            truncated=sum(decision.truncated for decision in decisions),
            abstained=sum(decision.abstained for decision in decisions),
        )


@dataclass(frozen=True)
class DecisionsSide:
    """Decisions read from a file, by id. `names` are the labels in the order of the first record."""

    records: Mapping[str, Mapping[str, Any]]
    names: tuple[str, ...]
    description: dict[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False

    def answer(
        self, rows: Sequence[LabelledRow], labels: LabelSet, *, rationales: bool, on_row: OnRow = lambda: None
    ) -> Answers:
        """The decisions on these rows, found by their ids; a row without one has no label.

        Raises:
            InputError: the file has no decision on any of the rows.
        """
        times = Counter(row.own_id for row in rows)
        found = [
            self.records.get(row.id) or (self.records.get(row.own_id) if times[row.own_id] == 1 else None)
            for row in rows
        ]
        if not any(found):
            raise InputError(f"{self.description['name']} holds no decision on any row of the data: the ids differ")
        k = len(labels.labels)
        answers = np.full(len(rows), -1, dtype=np.int64)
        probabilities = np.full((len(rows), k), math.nan)
        for place, record in enumerate(found):
            if record is not None and record["label"] is not None:
                answers[place] = labels.index(record["label"])
                given = np.array([record["probabilities"][name] for name in labels.labels], dtype=np.float64)
                probabilities[place] = given / given.sum()
            on_row()
        there = [record or {} for record in found]
        return Answers(
            labels=answers,
            probabilities=probabilities,
            rationales=[record.get("rationale") if rationales else None for record in there],
            consistent=[record.get("consistent") if rationales else None for record in there],
            truncated=sum(record.get("truncated") is True for record in there),
            abstained=sum(record.get("abstained") is True for record in there),
        )


Side = LiveSide | DecisionsSide


def is_decisions(spec: str) -> bool:
    """Whether a side is given as a file of decisions."""
    return Path(spec).suffix.lower() == ".jsonl" and Path(spec).is_file()


def is_checkpoint(spec: str) -> bool:
    """Whether a side is given as a checkpoint folder."""
    folder = Path(spec)
    return (folder / TASK_FILE).is_file() and (folder / "config.json").is_file()


def open_bundle_side(spec: str, options: EngineOptions, *, setting: str | None = None) -> LiveSide:
    """Opens a bundle (name, folder or .zip).

    Raises:
        R2DError: as `r2d_edge.load`.
    """
    decider = load(spec, options, setting=setting)
    manifest = decider.bundle.manifest
    size = sum(entry["size"] for entry in manifest.files.values())
    description = _describe(decider, "bundle", decider.bundle.label, decider.bundle.digest, size)
    return LiveSide(decider, description, _mapping(manifest.extra.get("provenance")))


def open_checkpoint_side(spec: str, options: EngineOptions, *, decoding: Decoding) -> LiveSide:
    """Opens a checkpoint folder in float32, uncalibrated.

    Args:
        spec: the folder.
        options: of these the device counts.
        decoding: how rationales are decoded; a checkpoint itself does not say.

    Raises:
        EngineError: torch or transformers are not installed, or the checkpoint cannot be opened.
    """
    try:
        from r2d_edge.engines.transformers import open_checkpoint
    except ImportError as error:
        raise EngineError(
            f"{spec} is a checkpoint: to open it torch and transformers are needed (pip install "
            f"'r2d-edge[convert]'), or give a bundle or a file of decisions ({error})"
        ) from None
    folder = Path(spec)
    checkpoint = open_checkpoint(folder, device=options.device)
    files = {path.name: {"size": path.stat().st_size} for path in sorted(folder.iterdir()) if path.is_file()}
    manifest = Manifest(
        name=folder.resolve().name,
        version="checkpoint",
        task=checkpoint.task,
        engine="transformers",
        compute_type="float32",
        files={name: files[name] for name in files if name in (TOKENIZER, CASING)},
        decoding=decoding,
    )
    decider = _CheckpointDecider(Bundle(folder, manifest, checkpoint.digest), checkpoint.encoder, checkpoint.engine)
    size = sum(entry["size"] for name, entry in files.items() if name.endswith(".safetensors"))
    description = _describe(decider, "checkpoint", manifest.name, checkpoint.digest, size)
    provenance = folder / PROVENANCE_FILE
    said = json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}
    return LiveSide(decider, description, _mapping(said))


class _CheckpointDecider(Decider):
    """The runtime over a network that is open already."""

    def __init__(self, bundle: Bundle, encoder: Any, engine: Any) -> None:
        self.bundle = bundle
        self.setting = None
        self.task = bundle.manifest.task
        self.encoder = encoder
        self.engine = engine


def read_decisions(spec: str) -> DecisionsSide:
    """Reads JSON Lines of decisions: `id`, `label`, `probabilities`, and whatever else of schema 1 there is.

    Raises:
        InputError: a line is no such record, an id comes twice, or the records are not of one label set; lines
            are named, what they hold is not.
    """
    path = Path(spec)
    with open_notes(path) as stream:
        data = stream.read()
    records: dict[str, Mapping[str, Any]] = {}
    faults: list[str] = []
    names: tuple[str, ...] = ()
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8")) if len(line) <= MAX_NOTE_BYTES else None
        except (ValueError, RecursionError):
            record = None
        fault = _fault(record, names)
        if fault is None and isinstance(record, dict):
            name = str(record["id"])
            if name in records:
                fault = f"id {name} comes twice"
            else:
                records[name] = record
                if record["label"] is not None:
                    names = names or tuple(record["probabilities"])
        if fault is not None:
            faults.append(f"line {number}: {fault}")
    if faults:
        more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise InputError(f"{path} is not a file of decisions: {'; '.join(faults[:_LISTED])}{more}")
    if not names:
        raise InputError(f"{path} holds no decision with probabilities")
    models = {str(record["model"]) for record in records.values() if isinstance(record.get("model"), str)}
    description = {
        "name": path.name,
        "kind": "decisions",
        "digest": hashlib.sha256(data).hexdigest(),
        "engine": None,
        "version": None,
        "compute_type": None,
        "device": None,
        "threads": None,
        "prompts": None,
        "decoding": None,
        "size_bytes": None,
        "temperature": None,
        "made_by": sorted(models),
    }
    return DecisionsSide(records, names, description)


def _fault(record: Any, names: tuple[str, ...]) -> str | None:
    """What keeps a line from being a decision; None if nothing does."""
    if not isinstance(record, dict):
        return "not a JSON object"
    if record.get("schema", SCHEMA) != SCHEMA:
        return f"schema {record['schema']!r} is not {SCHEMA}"
    if type(record.get("id")) not in (str, int):
        return "no id"
    for key in ("label", "probabilities"):
        if key not in record:
            return f"no {key}"
    for key, kind in (("rationale", str), ("consistent", bool)):
        if not isinstance(record.get(key), (kind, type(None))):
            return f"{key} is not {'text' if kind is str else 'true or false'}"
    probabilities = record["probabilities"]
    if record["label"] is None:
        return None  # nothing could be scored: an outcome as any other
    if not isinstance(probabilities, dict) or not probabilities:
        return "no probabilities over the label set"
    values = list(probabilities.values())
    if not all(type(value) in (int, float) and 0 <= value <= 1 + _SUM_TOLERANCE for value in values):
        return "a probability is not a number of 0 to 1"
    if abs(sum(values) - 1) > _SUM_TOLERANCE:
        return "the probabilities do not sum to 1"
    if not isinstance(record["label"], str) or record["label"] not in probabilities:
        return "the label has no probability"
    if names and set(probabilities) != set(names):
        return "its labels are not those of the lines before"
    return None


def common_labels(reference: Side, candidate: Side, ordered: Sequence[str] | None = None) -> LabelSet:
    """The label set that both sides decide over.

    A JSON object has no order, so files of decisions take that of a bundle or a checkpoint. Two files have an
    order of severity only if it is given.

    Args:
        reference: one side.
        candidate: the other.
        ordered: the labels, most severe first, for two files of decisions.

    Raises:
        MismatchError: the sets or their orders differ, a set is open, or `ordered` is not the labels of the files.
    """
    live = [side for side in (reference, candidate) if isinstance(side, LiveSide)]
    if any(side.labels.kind == "open" for side in live):
        raise MismatchError("labels that are free text have no common label set: such models cannot be compared here")
    if len(live) == 2 and live[0].labels != live[1].labels:
        raise MismatchError(
            f"the sides have different label sets: {_shown(live[0].labels)} and {_shown(live[1].labels)}; "
            "the same labels in the same order are needed"
        )
    if live and ordered is not None:
        raise MismatchError("--labels is for two files of decisions: here a model says what its labels are")
    files = [side for side in (reference, candidate) if isinstance(side, DecisionsSide)]
    if live:
        wanted = live[0].labels
    else:
        try:
            wanted = LabelSet(tuple(ordered or files[0].names), "ordered" if ordered else "plain")
        except ValueError as error:
            raise MismatchError(f"the sides cannot be compared: {error}") from None
    for side in files:
        if set(side.names) != set(wanted.labels):
            raise MismatchError(
                f"{side.description['name']} has the labels {', '.join(side.names)}, not {', '.join(wanted.labels)}"
            )
    return wanted


def _shown(labels: LabelSet) -> str:
    return f"{', '.join(labels.labels)} ({labels.kind})"


def _describe(decider: Decider, kind: str, name: str, digest: str, size: int) -> dict[str, Any]:
    manifest = decider.bundle.manifest
    engine = decider.engine.describe()
    return {
        "name": name,
        "kind": kind,
        "digest": digest,
        **{key: engine.get(key) for key in ("engine", "version", "compute_type", "device", "threads")},
        "prompts": {
            **asdict(manifest.task.prompts),
            **({"template": asdict(manifest.task.template)} if manifest.task.template else {}),
        },
        "decoding": asdict(manifest.decoding),
        "size_bytes": size,
        "temperature": manifest.calibration.temperature_in(decider.setting),
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def sources_of(side: Side) -> list[str]:
    """The rationale sources that a side's model learned from, as its provenance says."""
    names = _mapping(side.provenance.get("recipe")).get("sources")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def open_sides(
    reference: str, candidate: str, options: EngineOptions, *, setting: str | None = None
) -> tuple[Side, Side]:
    """Opens both sides; a checkpoint decodes its rationales as the bundle on the other side does.

    Raises:
        R2DError: a side cannot be opened.
    """
    specs = (reference, candidate)
    found: dict[int, Side] = {}
    for place, spec in enumerate(specs):
        if is_decisions(spec):
            found[place] = read_decisions(spec)
        elif not is_checkpoint(spec):
            if not spec or (Path(spec).is_file() and Path(spec).suffix.lower() != ".zip"):
                raise BundleError(f"{spec!r} is neither a bundle, a checkpoint folder nor a .jsonl file of decisions")
            found[place] = open_bundle_side(spec, options, setting=setting)
    decoding = next((side.decoding for side in found.values() if isinstance(side, LiveSide)), Decoding())
    for place, spec in enumerate(specs):
        if place not in found:
            found[place] = open_checkpoint_side(spec, options, decoding=decoding)
    return found[0], found[1]
