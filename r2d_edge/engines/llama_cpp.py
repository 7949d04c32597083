"""llama.cpp: GGUF bundles, decoder-only and (experimental) T5, through llama-cpp-python's C interface.

Token ids come from the bundle's own tokenizer. The vocabulary and the chat template that a GGUF file holds are
never used.

What the engine says depends on prompt and answer alone, never on what was asked before. llama.cpp rounds
otherwise when it reads a token in a batch than when it reads it alone, and in quantized weights that grows: for
200 tokens of SmolLM2 135M in Q4_1, half a nat in the vocabulary's tail. So a prompt is always read in one piece
and an answer always token by token, whether it is being written or given as a prefix; then what is still in
memory from the call before is, to the last bit, what would be computed again.

Prompts are read one after the other. A batch of eight sequences writes a token of each in 0.65 of the time
(SmolLM2 135M in Q8_0, one thread; a batch of four brings nothing), but most of a note's time goes into reading
its two prompts: for 200 tokens and a rationale of 60, eight notes at once would be done in 0.9 of the time.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before the engine's OpenMP starts: threads that wait by spinning bring a busy machine to a stand.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import llama_cpp
import numpy as np
import numpy.typing as npt

from r2d_edge.bundle import Bundle, Decoding
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, EngineError
from r2d_edge.task import PromptEncoder
from r2d_edge.threads import ThreadChoice, choose_threads

MODEL = "model/model.gguf"
ADAPTER = "model/adapter.gguf"

# Models have more rows than their tokenizers have tokens (T5 28, Qwen 2.5 271); so many more are another vocabulary.
_SPARE_ROWS = 1024

Logits = npt.NDArray[np.float32]
_Handle = tuple[Any, Any]  # how to free it, and the native pointer

_log = logging.getLogger(__name__)
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which llama-cpp-python gives no name


class _Messages:
    """What llama.cpp says: logged at the debug level, and the first error kept (set it to "" before a call).

    Without this, llama-cpp-python prints it all. It is said while a model loads; no note's text is in it.
    """

    def __init__(self) -> None:
        self.error = ""
        self._callback = llama_cpp.llama_log_callback(self._take)  # kept: the library holds a bare pointer
        llama_cpp.llama_log_set(self._callback, None)

    def _take(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR and not self.error:
            self.error = line
        _log.debug("%s", line)


_messages = _Messages()


class LlamaCppEngine:
    """A GGUF decoder-only model that goes on from its prompt."""

    batches = False  # a prompt once read is kept for what is asked of it next

    def __init__(self, model: _Model, encoder: PromptEncoder, threads: ThreadChoice, compute_type: str) -> None:
        self._model = model
        self._encoder = encoder
        self._threads = threads
        self._compute_type = compute_type

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        rows = [self._model.logits(*both) for both in zip(prompts, prefixes, strict=True)]
        return np.stack([_log_softmax(row) for row in rows])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        begun = prefixes or [()] * len(prompts)
        return [
            list(self._answer(prompt, prefix, max_tokens, decoding))
            for prompt, prefix in zip(prompts, begun, strict=True)
        ]

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        return self._answer(prompt, (), max_tokens, decoding)

    def describe(self) -> dict[str, str | int]:
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "device": self._model.device,
            "compute_type": self._compute_type,
            "threads": self._threads.count,
            "threads_why": self._threads.why,
        }

    def close(self) -> None:
        """Frees the model; the engine cannot be used afterwards."""
        self._model.close()

    def _answer(
        self, prompt: Sequence[int], prefix: Sequence[int], max_tokens: int, decoding: Decoding
    ) -> Iterator[int]:
        """The most probable token each time, up to the end token; special tokens are left out.

        As in transformers (and unlike CTranslate2's decoder-only models), a prefix counts against repetition.
        """
        if decoding.beam_size > 1:
            raise EngineError(
                f"llama.cpp writes greedily and the bundle asks for {decoding.beam_size} beams: "
                "convert it again with a beam size of 1, or for CTranslate2"
            )
        answer = list(prefix)
        while len(answer) < max_tokens:
            logits = without_repetition(self._model.logits(prompt, answer), answer, decoding)
            token = int(logits.argmax())
            if token == self._encoder.end_id:
                return
            answer.append(token)
            if token not in self._encoder.special_ids:
                yield token


class Seq2SeqLlamaCppEngine(LlamaCppEngine):
    """A T5 in GGUF. Experimental: right, but made for what llama.cpp does only on the side.

    llama.cpp keeps the encoder's states but not the keys and values that the decoder's cross-attention makes of
    them: every step makes them anew for the whole note. So a token's time grows with the note's length: with
    T5-small's shape in Q8_0 and one thread 12 ms for 64 tokens of note, 14 for 128, 30 for 256, 57 for 512.
    """

    def describe(self) -> dict[str, str | int]:
        why = "llama.cpp reads the whole note again for every token of the rationale; CTranslate2 does not"
        return {**super().describe(), "experimental": why}


class _Model:
    """The native model with its context, and how far it has read.

    Safe to be called from several threads: the calls wait for each other.

    Args:
        path: the GGUF file.
        encoder: whose task's limits the context is made for.
        threads: for tokens and for prompts.
        adapter: a LoRA adapter's GGUF file.
        gpu: whether all layers go to the GPU.

    Raises:
        EngineError: it cannot be loaded.
        BundleError: its vocabulary is not the encoder's.
    """

    def __init__(self, path: Path, encoder: PromptEncoder, *, threads: int, adapter: Path | None, gpu: bool) -> None:
        limits = encoder.task.limits
        self.device = "gpu" if gpu else "cpu"
        self._longest_prompt = limits.input
        self._size = limits.input + max(limits.label, limits.rationale) + 1  # one for the decoder's start
        self._lock = threading.Lock()
        self._handles: list[_Handle] = []
        self.close = weakref.finalize(self, _free, self._handles)  # runs at the process's end, too
        self._model = self._keep(llama_cpp.llama_model_free, _load(path, gpu))
        self.seq2seq = bool(llama_cpp.llama_model_has_encoder(self._model))
        if self.seq2seq == (encoder.task.template is not None):
            kind, needs = ("an encoder-decoder", "no") if self.seq2seq else ("a decoder-only model", "a")
            raise BundleError(f"{path.name} is {kind}, and its task must have {needs} template")
        self._vocabulary = _vocabulary_size(self._model, path, encoder)
        self._context = self._keep(llama_cpp.llama_free, self._open_context(threads, gpu))
        self._memory = llama_cpp.llama_get_memory(self._context)
        if adapter is not None:
            self._set_adapter(adapter)
        self._start = _decoder_start(self._model) if self.seq2seq else None
        self._prompt: list[int] | None = None  # what was read; None while that is not sure
        self._prompt_logits = np.empty(0, np.float32)
        self._answer: list[int] = []

    def file_type(self) -> str:
        """The type of most weights, as llama.cpp's tools call it."""
        name = str(llama_cpp.llama_ftype_name(llama_cpp.llama_model_ftype(self._model)).decode())
        return name.removeprefix("all ").replace(" - Medium", "_M").replace(" - Small", "_S")

    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> Logits:
        """The logits [vocabulary] of what follows an answer that has begun.

        Raises:
            EngineError: prompt or answer are longer than the task's limits, or llama.cpp fails.
        """
        with self._lock:
            if not self.close.alive:
                raise EngineError("this engine was closed")
            if self._prompt != list(prompt):
                self._read(list(prompt))
            if not answer:
                return self._prompt_logits
            known = _common(self._answer, answer[:-1])  # its last token is read again, for the logits
            self._cut(known)
            for token in answer[known:]:
                logits = self._step(token)
            return logits

    def _read(self, prompt: list[int]) -> None:
        """Forgets everything and reads a prompt in one piece."""
        if not 0 < len(prompt) <= self._longest_prompt:
            raise EngineError(f"a prompt has {len(prompt)} tokens; the task's limit is {self._longest_prompt}")
        self._prompt, self._answer = None, []
        llama_cpp.llama_memory_clear(self._memory, True)
        if self._start is None:
            self._prompt_logits = self._decode(prompt)
        else:
            self._run(llama_cpp.llama_encode, prompt)
            self._prompt_logits = self._decode([self._start])
        self._prompt = prompt

    def _cut(self, length: int) -> None:
        """Leaves so many tokens of the answer in memory."""
        del self._answer[length:]
        before = len(self._prompt or []) if self._start is None else 1
        # Also where nothing should lie there: an interrupted step may have left its token.
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, before + length, -1):
            raise EngineError("llama.cpp cannot take tokens back from this kind of model's memory")

    def _step(self, token: int) -> Logits:
        """Reads the answer's next token."""
        if len(self._prompt or []) + len(self._answer) + 1 > self._size:
            raise EngineError(f"an answer has more than {len(self._answer)} tokens: that is beyond the task's limits")
        logits = self._decode([token])
        self._answer.append(token)
        return logits

    def _decode(self, ids: list[int]) -> Logits:
        """Reads tokens behind those in memory; the logits after the last of them."""
        self._run(llama_cpp.llama_decode, ids)
        row = llama_cpp.llama_get_logits_ith(self._context, -1)
        result: Logits = np.ctypeslib.as_array(row, shape=(self._vocabulary,)).copy()  # the next call overwrites it
        return result

    def _run(self, function: Any, ids: list[int]) -> None:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # must outlive the batch, which only points to it
        code = function(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if code != 0:
            raise EngineError(f"llama.cpp failed with code {code} on {len(ids)} tokens")

    def _keep(self, free: Any, handle: Any) -> Any:
        self._handles.append((free, handle))
        return handle

    def _open_context(self, threads: int, gpu: bool) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self._size
        settings.n_batch = self._longest_prompt
        if self.seq2seq:
            settings.n_ubatch = self._longest_prompt  # an encoder cannot read in pieces
        settings.n_threads = settings.n_threads_batch = threads
        if llama_cpp.llama_model_ftype(self._model) == llama_cpp.LLAMA_FTYPE_ALL_F32:
            # As exact as its weights: by default keys and values are rounded to half precision.
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # rounds them, too
        settings.offload_kqv = settings.op_offload = gpu
        _messages.error = ""
        context = llama_cpp.llama_init_from_model(self._model, settings)
        if not context:
            raise EngineError(f"llama.cpp cannot open a context of {self._size} tokens: {_messages.error}")
        return context

    def _set_adapter(self, path: Path) -> None:
        _messages.error = ""
        adapter = llama_cpp.llama_adapter_lora_init(self._model, _native(path))  # is freed with the model
        if not adapter:
            raise EngineError(f"llama.cpp cannot load {path.name}: {_messages.error}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            raise EngineError(f"llama.cpp cannot apply {path.name}: {_messages.error}")


def open_engine(bundle: Bundle, encoder: PromptEncoder, options: EngineOptions) -> LlamaCppEngine:
    """Loads the bundle's model, and its adapter where it has one.

    Raises:
        EngineError: an option does not fit llama.cpp, or the model does not load.
        BundleError: the model's vocabulary is not the tokenizer's.
    """
    compute_type = bundle.manifest.compute_type
    if options.compute_type != "default":
        raise EngineError(
            f"a GGUF's type is fixed when it is made, and this bundle's is {compute_type}: leave out the compute type "
            f"{options.compute_type!r}, or convert the model again in the type you want"
        )
    if options.workers > 1:
        raise EngineError(
            f"llama.cpp works on one note at a time: ask for 1 worker, not {options.workers}, or for threads"
        )
    gpu = bool(llama_cpp.llama_supports_gpu_offload())
    if options.device == "cuda" and not gpu:
        raise EngineError(
            "this llama-cpp-python was compiled without a GPU: use --device cpu, or install it again with "
            'CMAKE_ARGS="-DGGML_CUDA=on"'
        )
    threads = choose_threads(bundle, options.threads)
    adapter = bundle.path(ADAPTER) if ADAPTER in bundle.manifest.files else None
    model = _Model(
        bundle.path(MODEL), encoder, threads=threads.count, adapter=adapter, gpu=gpu and options.device != "cpu"
    )
    return _engine(model, encoder, threads, compute_type)


def engine_of(path: Path, encoder: PromptEncoder, *, threads: int = 1, adapter: Path | None = None) -> LlamaCppEngine:
    """An engine on the CPU for a GGUF file that is in no bundle: for proofs and benchmarks.

    Raises:
        EngineError: it does not load.
        BundleError: its vocabulary is not the encoder's.
    """
    model = _Model(path, encoder, threads=threads, adapter=adapter, gpu=False)
    return _engine(model, encoder, ThreadChoice(threads, "as asked"), model.file_type())


def without_repetition(logits: Logits, written: Sequence[int], decoding: Decoding) -> Logits:
    """The logits [vocabulary] after the rules against repetition, in transformers' order and by its definitions.

    Args:
        logits: are not changed.
        written: the tokens that the rules count.
        decoding: the rules.
    """
    result: Logits = logits.copy()
    if decoding.repetition_penalty != 1.0 and written:
        seen = np.unique(np.asarray(written))
        penalty = np.float32(decoding.repetition_penalty)
        result[seen] = np.where(result[seen] < 0, result[seen] * penalty, result[seen] / penalty)
    size = decoding.no_repeat_ngram
    if 0 < size <= len(written):
        before = list(written[len(written) - size + 1 :])
        ends = range(size - 1, len(written))
        result[[written[end] for end in ends if list(written[end - size + 1 : end]) == before]] = -np.inf
    return result


def _engine(model: _Model, encoder: PromptEncoder, threads: ThreadChoice, compute_type: str) -> LlamaCppEngine:
    kind = Seq2SeqLlamaCppEngine if model.seq2seq else LlamaCppEngine
    return kind(model, encoder, threads, compute_type)


def _load(path: Path, gpu: bool) -> Any:
    llama_cpp.llama_backend_init()  # does nothing the second time
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = -1 if gpu else 0
    _messages.error = ""
    model = llama_cpp.llama_model_load_from_file(_native(path), settings)
    if not model:
        raise EngineError(f"llama.cpp cannot load {path.name}: {_messages.error}")
    return model


def _free(handles: list[_Handle]) -> None:
    """Frees what was opened, the last first."""
    while handles:
        free, handle = handles.pop()
        free(handle)


def _vocabulary_size(model: Any, path: Path, encoder: PromptEncoder) -> int:
    rows = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
    beyond = any(encoder.tokens(range(rows, rows + _SPARE_ROWS)))
    if beyond or (rows > _SPARE_ROWS and not any(encoder.tokens(range(rows - _SPARE_ROWS, rows)))):
        size = "fewer" if beyond else "far more"
        raise BundleError(
            f"{path.name} has {rows} rows, {size} than the tokenizer has tokens: they do not belong together"
        )
    return rows


def _decoder_start(model: Any) -> int:
    start = int(llama_cpp.llama_model_decoder_start_token(model))
    if start < 0:
        raise BundleError("the GGUF file does not name the token that its decoder starts with: convert it again")
    return start


def _native(path: Path) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")  # llama.cpp takes UTF-8 on Windows, too


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    alike = (one == other for one, other in zip(some, others, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, alike))


def _log_softmax(logits: Logits) -> Logits:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    result: Logits = (wide - np.log(np.exp(wide).sum())).astype(np.float32)
    return result
