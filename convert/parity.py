"""The proof of a conversion: the exported model against the PyTorch checkpoint, on golden rows.

Two things are compared. First the next-token distributions over the whole vocabulary, at the first
decoder step and along every label's tokens, and along the checkpoint's own greedy rationale, which
walks the decoder's positions further than labels do. Second what the runtime makes of them: the
normalised log-probabilities of the labels.

The PyTorch side is computed here by itself, one row at a time and so without padding; the engine sees
batches of mixed lengths, and every prompt alone as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convert.errors import ParityError
from convert.golden import GoldenRow
from r2d_edge.label_scores import score_labels

if TYPE_CHECKING:
    from r2d_edge.engines import Engine
    from r2d_edge.task import PromptEncoder

FloatArray = npt.NDArray[np.float64]
Ids = tuple[int, ...]

# Allowed difference of log-probabilities, in nats. Float32 differs by the order of summation alone. The
# others round weights (and, for int8, activations) and were set from measurements: see the test suite.
BOUNDS: Mapping[str, float] = {
    "float32": 1e-3,
    "bfloat16": 0.25,
    "int8": 0.5,
    "int8_float32": 0.5,
    "int8_bfloat16": 0.5,
}
TOP_K = 10
RATIONALE_STEPS = 8
BATCH_ROWS = 8


@dataclass(frozen=True)
class Difference:
    """The largest difference found, in nats, and on which row."""

    value: float
    row: str


@dataclass(frozen=True)
class Parity:
    """The result of a proof.

    Attributes:
        tokens: of next-token log-probabilities, over the label's tokens and the `TOP_K` likeliest.
        labels: of normalised label log-probabilities; None for an open label set.
        golden: label log-probabilities of the exported model [rows, labels].
    """

    compute_type: str
    bound: float
    rows: int
    tokens: Difference
    labels: Difference | None
    golden: FloatArray
    against: str

    @property
    def measured(self) -> float:
        """The larger of both differences."""
        return max(self.tokens.value, self.labels.value if self.labels else 0.0)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "against": self.against,
            "rows": self.rows,
            "bound": self.bound,
            "measured": self.measured,
            "token_log_probabilities": self.tokens.value,
            "label_log_probabilities": self.labels.value if self.labels else None,
        }


def prove(
    model: Any,
    start_id: int,
    engine: Engine,
    encoder: PromptEncoder,
    rows: Sequence[GoldenRow],
    *,
    compute_type: str,
    bound: float | None = None,
) -> Parity:
    """Compares an engine with the PyTorch model it was exported from.

    Args:
        model: the checkpoint's network, float32, in evaluation mode.
        start_id: the decoder's start token.
        bound: allowed difference in nats; default: the compute type's of `BOUNDS`.

    Raises:
        ParityError: the difference is beyond the bound, or not a number.
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("nothing can be proven without golden rows")
    bound = BOUNDS[compute_type] if bound is None else bound
    sequences = [(*encoder.label_ids(label), encoder.end_id) for label in encoder.task.labels.labels]
    token_worst, label_worst = Difference(0.0, rows[0].id), Difference(0.0, rows[0].id)
    golden: list[FloatArray] = []
    for chunk in _chunks(rows, BATCH_ROWS):
        probes = []
        for row in chunk:
            prompt = tuple(encoder.predict(row.text).ids)
            probes.append(_reference(model, start_id, row.id, prompt, sequences))
            probes.append(_reference_rationale(model, start_id, row.id, encoder, row.text))
        token_worst = _worse(token_worst, _compare_tokens(engine, probes))
        scores = np.asarray(score_labels(engine, encoder, [probe.prompt for probe in probes[::2]]), dtype=np.float64)
        golden.append(scores)
        if sequences:
            for probe, got in zip(probes[::2], scores, strict=True):
                expected = label_log_probabilities(sequences, probe.distributions)
                label_worst = _worse(label_worst, Difference(_largest(np.abs(got - expected)), probe.row))
    for what, worst in (("label log-probabilities", label_worst), ("next-token log-probabilities", token_worst)):
        # Written so that a NaN fails.
        if not worst.value <= bound:
            raise ParityError(what, worst.row, worst.value, bound, compute_type)
    return Parity(
        compute_type=compute_type,
        bound=bound,
        rows=len(rows),
        tokens=token_worst,
        labels=label_worst if sequences else None,
        golden=np.concatenate(golden),
        against=_reference_name(),
    )


def label_log_probabilities(sequences: Sequence[Ids], distributions: Mapping[Ids, FloatArray]) -> FloatArray:
    """Label log-probabilities [labels] under decoding that may write nothing but a label.

    Args:
        sequences: every label's tokens, the end token included.
        distributions: next-token log-probabilities [vocabulary] after every proper prefix of them.
    """
    scores = np.zeros(len(sequences))
    for index, sequence in enumerate(sequences):
        for step, token in enumerate(sequence):
            prefix = sequence[:step]
            allowed = sorted({other[step] for other in sequences if len(other) > step and other[:step] == prefix})
            log_probabilities = distributions[prefix]
            scores[index] += log_probabilities[token] - np.logaddexp.reduce(log_probabilities[allowed])
    return scores


@dataclass(frozen=True)
class _Probe:
    """The reference's next-token log-probabilities [vocabulary] for a prompt after some prefixes.

    `watched` are the tokens that are compared after a prefix beside the likeliest.
    """

    row: str
    prompt: Ids
    distributions: Mapping[Ids, FloatArray]
    watched: Mapping[Ids, frozenset[int]]


def _reference(model: Any, start_id: int, row: str, prompt: Ids, sequences: Sequence[Ids]) -> _Probe:
    """The PyTorch model along every label's tokens (for an open label set: the first step)."""
    import torch

    distributions: dict[Ids, FloatArray] = {}
    watched: dict[Ids, frozenset[int]] = {}
    with torch.inference_mode():
        source = torch.tensor([prompt])
        for sequence in sequences or [(start_id,)]:
            logits = model(
                input_ids=source, decoder_input_ids=torch.tensor([[start_id, *sequence[:-1]]]), use_cache=False
            ).logits
            for step, log_probabilities in enumerate(logits[0].double().log_softmax(-1).numpy()):
                prefix = sequence[:step]
                distributions[prefix] = log_probabilities
                watched[prefix] = watched.get(prefix, frozenset()) | {sequence[step]}
    return _Probe(row, prompt, distributions, watched)


def _reference_rationale(model: Any, start_id: int, row: str, encoder: PromptEncoder, text: str) -> _Probe:
    """The PyTorch model along its own greedy rationale for the first label."""
    import torch

    labels = encoder.task.labels.labels
    prompt = tuple((encoder.explain(text, labels[0]) if labels else encoder.rationale(text)).ids)
    distributions: dict[Ids, FloatArray] = {}
    written: Ids = ()
    with torch.inference_mode():
        source = torch.tensor([prompt])
        for _ in range(min(RATIONALE_STEPS, encoder.task.limits.rationale)):
            logits = model(
                input_ids=source, decoder_input_ids=torch.tensor([[start_id, *written]]), use_cache=False
            ).logits
            distributions[written] = logits[0, -1].double().log_softmax(-1).numpy()
            # Any path of plain tokens serves; the end token would stop the engine, and rows of the embedding
            # matrix without a token cannot be told to it.
            likeliest = map(int, np.argsort(-distributions[written]))
            written = (
                *written,
                next(i for i in likeliest if i not in encoder.special_ids and encoder.ids(encoder.tokens([i])) == [i]),
            )
    return _Probe(row, prompt, distributions, {})


def _compare_tokens(engine: Engine, probes: Sequence[_Probe]) -> Difference:
    """The worst next-token difference, in batches of mixed lengths and for each prompt alone."""
    worst = Difference(0.0, probes[0].row)
    for length in sorted({len(prefix) for probe in probes for prefix in probe.distributions}):
        asked = [(probe, prefix) for probe in probes for prefix in sorted(probe.distributions) if len(prefix) == length]
        for batch in _chunks(asked, 2 * BATCH_ROWS):
            got = engine.next_log_probabilities([probe.prompt for probe, _ in batch], [prefix for _, prefix in batch])
            for (probe, prefix), log_probabilities in zip(batch, got, strict=True):
                worst = _worse(worst, _compare_step(probe, prefix, log_probabilities))
    for probe in probes:
        alone = engine.next_log_probabilities([probe.prompt], [()])
        worst = _worse(worst, _compare_step(probe, (), alone[0]))
    return worst


def _compare_step(probe: _Probe, prefix: Ids, got: npt.NDArray[np.float32]) -> Difference:
    expected = probe.distributions[prefix]
    if got.shape != expected.shape:
        return Difference(float("nan"), probe.row)
    tokens = sorted({*probe.watched.get(prefix, ()), *map(int, np.argsort(-expected)[:TOP_K])})
    return Difference(_largest(np.abs(got[tokens].astype(np.float64) - expected[tokens])), probe.row)


def _largest(values: FloatArray) -> float:
    return float(values.max())  # NaN if any is


def _worse(one: Difference, other: Difference) -> Difference:
    """The larger difference; one that is no number is the largest of all."""
    if np.isnan(one.value) or one.value >= other.value:
        return one
    return other


def _reference_name() -> str:
    import torch
    import transformers

    return f"PyTorch {torch.__version__}, transformers {transformers.__version__}, float32"


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
