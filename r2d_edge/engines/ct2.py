"""CTranslate2: encoder-decoder and decoder-only bundles on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

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
# Rationales written at once. CTranslate2 sorts what it is given by length before it cuts it into batches; 64 notes
# of mixed length in batches of 16 took two thirds of the time of one batch (23 M parameters, one thread), and no
# other size from 8 to 32 was better by more than the noise.
ROWS_AT_ONCE = 16


class CTranslate2Engine:
    """A `ctranslate2.Translator` that speaks in token ids."""

    batches = True

    def __init__(self, model: Any, encoder: PromptEncoder, threads: ThreadChoice, workers: int = 1) -> None:
        self._model = model
        self._encoder = encoder
        self._threads = threads
        self._workers = workers

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        # Only prompts of one length share a batch. Padding changes the order of float sums, and int8 rounding
        # makes up to 0.4 nats of that: a note's label must not depend on its neighbours, and one thread scores
        # no faster in mixed batches.
        results: dict[int, Any] = {}
        for rows in _of_one_length(prompts):
            steps = self._start_step([prompts[row] for row in rows], [prefixes[row] for row in rows])
            results.update(zip(rows, steps, strict=True))
        return log_softmax(np.stack([_to_numpy(results[row].result().logits[0][-1]) for row in range(len(prompts))]))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        length = len(prefixes[0]) if prefixes else 0
        results = self._model.translate_batch(
            [self._encoder.tokens(ids) for ids in prompts],
            target_prefix=[self._encoder.tokens(ids) for ids in prefixes] if prefixes and length else None,
            max_batch_size=min(ROWS_AT_ONCE, -(-len(prompts) // self._workers)),
            max_decoding_length=max_tokens,
            max_input_length=0,  # lengths are the prompt encoder's affair; never cut in silence
            beam_size=decoding.beam_size,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
        )
        return [self._encoder.ids(result.hypotheses[0][length:]) for result in results]

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        steps = self._model.generate_tokens(
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
            "device": self._model.device,
            "compute_type": self._model.compute_type,
            "threads": self._threads.count,
            "threads_why": self._threads.why,
        }

    def _start_step(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> list[Any]:
        """Asks for the logits after each prefix, for prompts of one length; the workers take it up at once."""
        length = len(prefixes[0])
        results: list[Any] = self._model.translate_batch(
            [self._encoder.tokens(ids) for ids in prompts],
            target_prefix=[self._encoder.tokens(ids) for ids in prefixes] if length else None,
            max_decoding_length=length + 1,
            min_decoding_length=0,  # the default of 1 would hide the end token from the first step
            max_batch_size=self._share(prompts),
            max_input_length=0,
            beam_size=1,
            return_logits_vocab=True,
            asynchronous=True,
        )
        return results

    def _share(self, prompts: Sequence[Sequence[int]]) -> int:
        """The engine's max_batch_size that gives every worker its share; 0 is no split."""
        return -(-len(prompts) // self._workers) if self._workers > 1 else 0


class CausalCTranslate2Engine(CTranslate2Engine):
    """The same for a `ctranslate2.Generator`: a decoder-only model that goes on from its prompt.

    `include_prompt_in_result=False` reads the prompt in one pass and projects its last position alone to the
    vocabulary (`forward_batch` projects every position, a fifth more time for 250 tokens). It also keeps the
    prompt out of what the repetition penalty and the n-gram rule count, as `CausalTransformersEngine` does: but
    only as far as the shortest prompt of a batch goes, since what others have beyond it is decoded step by step
    like an answer. So rationales, too, are written in batches of prompts of one length.
    With beams the two engines' penalties are not the same: transformers applies them to log-probabilities,
    CTranslate2 to logits, which it normalises afterwards.
    """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        # A prefix counts as prompt here: the rules against repetition start anew behind it.
        length = len(prefixes[0]) if prefixes else 0
        if prefixes:
            prompts = [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)]
        results: dict[int, Any] = {}
        for rows in _of_one_length(prompts):
            found = self._start_generation(
                [prompts[row] for row in rows],
                max_length=max_tokens - length,
                beam_size=decoding.beam_size,
                repetition_penalty=decoding.repetition_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram,
            )
            results.update(zip(rows, found, strict=True))
        written = (results[row].result().sequences_ids[0] for row in range(len(prompts)))
        return [[index for index in ids if index not in self._encoder.special_ids] for ids in written]

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        steps = self._model.generate_tokens(
            self._encoder.tokens(prompt),
            max_length=max_tokens,
            end_token=[self._encoder.end_id],
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram,
        )
        for step in steps:
            if step.token_id not in self._encoder.special_ids:
                yield step.token_id

    def _start_step(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> list[Any]:
        rows = [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)]
        return self._start_generation(rows, max_length=1, return_logits_vocab=True)

    def _start_generation(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Any]:
        """Sends prompts of one length to the workers."""
        results: list[Any] = self._model.generate_batch(
            [self._encoder.tokens(ids) for ids in prompts],
            max_batch_size=self._share(prompts),
            end_token=[self._encoder.end_id],
            include_prompt_in_result=False,
            asynchronous=True,
            **options,
        )
        return results


def open_engine(bundle: Bundle, encoder: PromptEncoder, options: EngineOptions) -> CTranslate2Engine:
    """Loads the bundle's model.

    Raises:
        EngineError: the device or compute type is not to be had here, or the model does not load.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    threads = choose_threads(bundle, options.threads)
    # A template is what a decoder-only model needs and no other has.
    causal = encoder.task.template is not None
    try:
        model = (ctranslate2.Generator if causal else ctranslate2.Translator)(
            str(bundle.root / MODEL_FOLDER),
            device=device,
            compute_type=options.compute_type,
            intra_threads=threads.count,
            inter_threads=options.workers,
        )
    except (IndexError, RuntimeError, ValueError) as error:  # the first for a weight that is not there
        raise EngineError(f"CTranslate2 cannot load the model on {device} as {options.compute_type}: {error}") from None
    return (CausalCTranslate2Engine if causal else CTranslate2Engine)(model, encoder, threads, options.workers)


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


def _of_one_length(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The rows of the prompts of each length."""
    for length in sorted({len(prompt) for prompt in prompts}):
        yield [row for row, prompt in enumerate(prompts) if len(prompt) == length]
