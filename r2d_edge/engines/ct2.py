"""CTranslate2: encoder-decoder bundles on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

# Before the engine's OpenMP starts: threads that wait by spinning bring a busy machine to a stand
# (one decision with two threads beside other work: 10 s spinning, 8 ms waiting).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import ctranslate2
import numpy as np
import numpy.typing as npt

from r2d_edge.bundle import Bundle, Decoding
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import EngineError
from r2d_edge.task import PromptEncoder
from r2d_edge.threads import ThreadChoice, choose_threads

MODEL_FOLDER = "model"


class CTranslate2Engine:
    """A `ctranslate2.Translator` that speaks in token ids."""

    def __init__(
        self, translator: ctranslate2.Translator, encoder: PromptEncoder, threads: ThreadChoice, workers: int = 1
    ) -> None:
        self._translator = translator
        self._encoder = encoder
        self._threads = threads
        self._workers = workers

    def _share(self, prompts: Sequence[Sequence[int]]) -> int:
        """The engine's max_batch_size that gives every worker its share; 0 is no split."""
        return -(-len(prompts) // self._workers) if self._workers > 1 else 0

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        # Only prompts of one length share a batch. Padding changes the order of float sums, and int8 rounding
        # makes up to 0.4 nats of that: a note's label must not depend on its neighbours, and one thread scores
        # no faster in mixed batches.
        logits: dict[int, npt.NDArray[np.float32]] = {}
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            found = self._next_logits([prompts[row] for row in rows], [prefixes[row] for row in rows])
            logits.update(zip(rows, found, strict=True))
        return log_softmax(np.stack([logits[row] for row in range(len(prompts))]))

    def _next_logits(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        length = len(prefixes[0])
        results = self._translator.translate_batch(
            [self._encoder.tokens(ids) for ids in prompts],
            target_prefix=[self._encoder.tokens(ids) for ids in prefixes] if length else None,
            max_decoding_length=length + 1,
            min_decoding_length=0,  # the default of 1 would hide the end token from the first step
            max_batch_size=self._share(prompts),
            max_input_length=0,  # lengths are the prompt encoder's affair; never cut in silence
            beam_size=1,
            return_logits_vocab=True,
        )
        return [_to_numpy(result.logits[0][length]) for result in results]

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, decoding: Decoding) -> list[list[int]]:
        results = self._translator.translate_batch(
            [self._encoder.tokens(ids) for ids in prompts],
            max_batch_size=self._share(prompts),
            max_decoding_length=max_tokens,
            max_input_length=0,
            beam_size=decoding.beam_size,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
        )
        return [self._encoder.ids(result.hypotheses[0]) for result in results]

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        steps = self._translator.generate_tokens(
            self._encoder.tokens(prompt),
            max_decoding_length=max_tokens,
            max_input_length=0,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
        )
        for step in steps:
            if step.token_id not in self._encoder.special_ids:
                yield step.token_id

    def describe(self) -> dict[str, str | int]:
        return {
            "engine": "ctranslate2",
            "version": ctranslate2.__version__,
            "device": self._translator.device,
            "compute_type": self._translator.compute_type,
            "threads": self._threads.count,
            "threads_why": self._threads.why,
        }


def open_engine(bundle: Bundle, encoder: PromptEncoder, options: EngineOptions) -> CTranslate2Engine:
    """Loads the bundle's model.

    Raises:
        EngineError: the device or compute type is not to be had here, or the model does not load.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    threads = choose_threads(bundle, options.threads)
    try:
        translator = ctranslate2.Translator(
            str(bundle.root / MODEL_FOLDER),
            device=device,
            compute_type=options.compute_type,
            intra_threads=threads.count,
            inter_threads=options.workers,
        )
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"CTranslate2 cannot load the model on {device} as {options.compute_type}: {error}") from None
    return CTranslate2Engine(translator, encoder, threads, options.workers)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits [..., k] to log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _to_numpy(view: ctranslate2.StorageView) -> npt.NDArray[np.float32]:
    """A copy, since the view's memory goes with the result that owns it."""
    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if view.dtype != ctranslate2.DataType.float32:
        view = view.to(ctranslate2.DataType.float32)
    return np.array(view, dtype=np.float32, copy=True).reshape(-1)
