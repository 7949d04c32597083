"""The proof of a conversion: the exported model against the PyTorch checkpoint, on golden rows.

Two things are compared. First the next-token distributions over the whole vocabulary, at the answer's
first token and along every label's tokens, and along the checkpoint's own greedy rationale, which
walks the positions further than labels do. Second what the runtime makes of them: the
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
from convert.rewriting import next_logits
from r2d_edge.label_scores import score_labels

if TYPE_CHECKING:
    from r2d_edge.engines import Engine
    from r2d_edge.task import PromptEncoder

FloatArray = npt.NDArray[np.float64]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """Allowed differences of log-probabilities, in nats: of normalised labels, and of single next tokens."""

    labels: float
    tokens: float


# Float32 differs by the order of summation alone (about 1e-5). The others round weights and, for int8,
# activations: on a 23 M BART grown out of MiniLM, whose activations have strong outliers, int8 differed on
# the built-in rows by up to 0.7 on labels and 2.1 on tokens, bfloat16 by 0.03 and 0.10. PyTorch with its
# weights and activations rounded alike differs by as much: it is the rounding, not the wiring.
BOUNDS: Mapping[str, Bound] = {
    "float32": Bound(1e-3, 1e-3),
    "bfloat16": Bound(0.25, 0.5),
    "float16": Bound(0.25, 0.5),  # not measured, no GPU was at hand: it rounds finer than bfloat16
    "int8_float16": Bound(1.0, 3.0),
    "int8": Bound(1.0, 3.0),
    "int8_float32": Bound(1.0, 3.0),
    "int8_bfloat16": Bound(1.0, 3.0),
}
# llama.cpp adds in another order (1e-5), but reads the GELU of a gated T5 out of a table in half precision, which
# at float32 costs up to 2e-3. Rounding costs most on SmolLM2 135M, as published and with an adapter for triage, whose
# rows of 576 leave K-quants half undone: on labels and on tokens F16 0.01 and 0.02, Q8_0 0.3 and 0.75, Q6_K 0.6 and
# 0.9, Q5_K_M 1.7 and 4.3, Q4_K_M 1.6 and 3.3. A T5 of t5-small's shape with fresh weights keeps within half of that.
GGUF_BOUNDS: Mapping[str, Bound] = {
    "F32": Bound(1e-2, 2e-2),
    "F16": Bound(0.1, 0.3),
    "Q8_0": Bound(0.5, 1.5),
    "Q6_K": Bound(1.25, 3.0),
    "Q5_K_M": Bound(2.5, 6.0),
    "Q4_K_M": Bound(2.5, 6.0),
}
# A base's own file may come in any type (`as-is`).
OTHER_BOUND = GGUF_BOUNDS["Q4_K_M"]
TOP_K = 10
RATIONALE_STEPS = 8
BATCH_ROWS = 8


def bound_of(compute_type: str) -> Bound:
    """The bound of a compute type; that of 4 bits for a type of which none was measured."""
    return BOUNDS.get(compute_type) or GGUF_BOUNDS.get(compute_type, OTHER_BOUND)


@dataclass(frozen=True)
class Difference:
    """The largest difference found, in nats, and on which row."""

    value: float
    row: str


@dataclass(frozen=True)
class Parity:
    """The result of a proof.

    Attributes:
        tokens: worst next-token log-probability, over the labels' tokens and the `TOP_K` likeliest.
        labels: worst normalised label log-probability; 0 for an open label set.
        golden: label log-probabilities [rows, labels] of the exported model.
        expected: the same of the checkpoint.
    """

    compute_type: str
    bound: Bound
    tokens: Difference
    labels: Difference
    golden: FloatArray
    expected: FloatArray
    against: str

    @property
    def rows(self) -> int:
        """On how many golden rows it rests."""
        return len(self.golden)

    @property
    def same_label(self) -> int:
        """On how many rows both find the same label the likeliest."""
        if self.golden.shape[1] == 0:
            return 0
        return int((self.golden.argmax(axis=1) == self.expected.argmax(axis=1)).sum())

    @property
    def probability(self) -> float:
        """The largest difference of a label's probability."""
        return float(np.abs(np.exp(self.golden) - np.exp(self.expected)).max(initial=0.0))

    def to_json(self) -> dict[str, Any]:
        """For the manifest; `bound` and `measured` are those of label log-probabilities."""
        return {
            "against": self.against,
            "rows": self.rows,
            "bound": self.bound.labels,
            "measured": _rounded(self.labels.value),
            "token_bound": self.bound.tokens,
            "token_measured": _rounded(self.tokens.value),
            "probability_measured": _rounded(self.probability),
            "same_label": self.same_label,
        }


def prove(
    model: Any,
    start_id: int | None,
    engine: Engine,
    encoder: PromptEncoder,
    rows: Sequence[GoldenRow],
    *,
    compute_type: str,
    bound: Bound | None = None,
) -> Parity:
    """Compares an engine with the PyTorch model it was exported from.

    Args:
        model: the checkpoint's network, float32, in evaluation mode.
        start_id: the decoder's start token; None for a decoder-only model.
        engine: the exported model, as the runtime opens it.
        encoder: makes the prompts, for both.
        rows: what is compared.
        compute_type: the export's, for the bound and the message.
        bound: allowed differences in nats; default: the compute type's.

    Raises:
        ParityError: a difference is beyond its bound, or not a number.
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("nothing can be proven without golden rows")
    bound = bound or bound_of(compute_type)
    sequences = [(*encoder.label_ids(label), encoder.end_id) for label in encoder.task.labels.labels]
    tokens, labels = Difference(0.0, rows[0].id), Difference(0.0, rows[0].id)
    golden: list[FloatArray] = []
    expected: list[FloatArray] = []
    for chunk in _chunks(rows, BATCH_ROWS):
        predict = [
            _reference(model, start_id, row.id, tuple(encoder.predict(row.text).ids), sequences) for row in chunk
        ]
        explain = [_reference_rationale(model, start_id, row.id, encoder, row.text) for row in chunk]
        tokens = _worse(tokens, _compare_tokens(engine, [*predict, *explain]))
        if not sequences:
            golden.append(np.zeros((len(chunk), 0)))
            expected.append(np.zeros((len(chunk), 0)))
            continue
        golden.append(np.asarray(score_labels(engine, encoder, [probe.prompt for probe in predict]), dtype=np.float64))
        expected.append(np.stack([label_log_probabilities(sequences, probe.distributions) for probe in predict]))
        for row, got, wanted in zip(chunk, golden[-1], expected[-1], strict=True):
            labels = _worse(labels, Difference(float(np.abs(got - wanted).max()), row.id))
    for what, worst, allowed, option in (
        ("label log-probabilities", labels, bound.labels, "--bound"),
        ("next-token log-probabilities", tokens, bound.tokens, "--token-bound"),
    ):
        if not worst.value <= allowed:  # so written that a NaN fails
            unequal = f"the exported {compute_type} model is not the checkpoint's equal"
            raise ParityError(unequal, what, worst.row, worst.value, allowed, option)
    return Parity(
        compute_type=compute_type,
        bound=bound,
        tokens=tokens,
        labels=labels,
        golden=np.concatenate(golden),
        expected=np.concatenate(expected),
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


def _reference(model: Any, start_id: int | None, row: str, prompt: Ids, sequences: Sequence[Ids]) -> _Probe:
    """The PyTorch model along every label's tokens (for an open label set: the first step)."""
    distributions: dict[Ids, FloatArray] = {}
    watched: dict[Ids, frozenset[int]] = {}
    for sequence in sequences or [()]:
        steps = _log_probabilities(model, start_id, prompt, sequence[:-1])
        for step, log_probabilities in enumerate(steps):
            prefix = sequence[:step]
            distributions[prefix] = log_probabilities
            watched[prefix] = watched.get(prefix, frozenset()) | set(sequence[step : step + 1])
    return _Probe(row, prompt, distributions, watched)


def _reference_rationale(model: Any, start_id: int | None, row: str, encoder: PromptEncoder, text: str) -> _Probe:
    """The PyTorch model along its own greedy rationale for the first label."""
    labels = encoder.task.labels.labels
    prompt = tuple((encoder.explain(text, labels[0]) if labels else encoder.rationale(text)).ids)
    distributions: dict[Ids, FloatArray] = {}
    written: Ids = ()
    for _ in range(min(RATIONALE_STEPS, encoder.task.limits.rationale)):
        distributions[written] = _log_probabilities(model, start_id, prompt, written)[-1]
        written = (*written, _likeliest_plain(distributions[written], encoder))
    return _Probe(row, prompt, distributions, {})


def _log_probabilities(model: Any, start_id: int | None, prompt: Ids, answer: Ids) -> FloatArray:
    """Next-token log-probabilities [1 + answer, vocabulary] of the PyTorch model before and after each token."""
    result: FloatArray = next_logits(model, start_id, prompt, answer).log_softmax(-1).numpy()
    return result


def _likeliest_plain(log_probabilities: FloatArray, encoder: PromptEncoder) -> int:
    """The likeliest token that may stand in an answer's prefix.

    The end token would stop the engine, and a row of the embedding matrix that has no token cannot be told to it.
    """
    for index in map(int, np.argsort(-log_probabilities)):
        if index not in encoder.special_ids and encoder.ids(encoder.tokens([index])) == [index]:
            return index
    raise ValueError("the vocabulary has no plain token")


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
    return Difference(float(np.abs(got[tokens].astype(np.float64) - expected[tokens]).max()), probe.row)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


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
