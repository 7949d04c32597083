"""The full-size reference: a PyTorch model behind the engine protocol.

For workstations that have torch; the laptop never imports this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from r2d_edge.bundle import TOKENIZER, Decoding
from r2d_edge.errors import EngineError
from r2d_edge.task import TASK_FILE, PromptEncoder, Task


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, opened. `digest` is the SHA-256 of its weights, file after file."""

    folder: Path
    task: Task
    encoder: PromptEncoder
    engine: TransformersEngine
    digest: str


def open_checkpoint(folder: Path, *, device: str = "auto", bf16: bool = False) -> Checkpoint:
    """Opens what training wrote: config.json, r2d_task.json, tokenizer.json and safetensors weights.

    No code of a checkpoint is run, nothing is fetched, and weights that are absent are not made up.

    Args:
        folder: the checkpoint.
        device: `cpu`, `cuda` or `auto`.
        bf16: whether to compute in bfloat16; the weights stay in float32.

    Raises:
        EngineError: a file is missing or cannot be used.
    """
    try:
        task = Task.from_json(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EngineError(f"checkpoint {folder}: {TASK_FILE} cannot be read: {_said(error)}") from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EngineError(f"checkpoint {folder} holds no .safetensors weights, and no others are read")
    try:
        encoder = PromptEncoder.from_file(folder / TOKENIZER, task)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise EngineError(f"checkpoint {folder}: {TOKENIZER} cannot be used: {error}") from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = _load_weights(folder, decoder_only=task.template is not None).to(device)
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineError(f"checkpoint {folder} cannot be opened: {_said(error)}") from None
    engine = transformers_engine(model, encoder, autocast=torch.bfloat16 if bf16 else None)
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return Checkpoint(folder, task, encoder, engine, digest.hexdigest())


def _load_weights(folder: Path, *, decoder_only: bool) -> Any:
    """The network in float32 and eval mode."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return _checked_weights(AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM, folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def _checked_weights(network: Any, folder: Path) -> Any:
    model, loading = network.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, for one {missing[0]}")  # else random numbers
    return model.eval()


def forget_quantization(model: Any) -> None:
    """Makes a model that was read from a GGUF file a plain one, to be trained and saved.

    Its weights were dequantized on loading; what still says otherwise would forbid both.
    """
    model.is_quantized = False
    model.hf_quantizer = None
    del model.config.quantization_config


def _said(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error) or type(error).__name__).splitlines()[0]


def transformers_engine(model: Any, encoder: PromptEncoder, autocast: torch.dtype | None = None) -> TransformersEngine:
    """The engine that fits a model: the decoder-only one where the task holds a template.

    Args:
        model: a transformers seq2seq or causal LM, bare or wrapped by PEFT.
        encoder: makes its prompts.
        autocast: the type to compute in; None: the weights' own.
    """
    kind = TransformersEngine if encoder.task.template is None else CausalTransformersEngine
    return kind(model, encoder, autocast=autocast)


def pad(rows: Sequence[Sequence[int]], value: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Rows of ids to one [n, longest] tensor, filled at the right with `value`."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


def pad_left(rows: Sequence[Sequence[int]], value: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The same, filled at the left: what is written next follows every row's last id."""
    width = max(map(len, rows))
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows], device=device)


class TransformersEngine:
    """A transformers seq2seq LM that scores and generates without gradient, in eval mode.

    The model is put back into the mode it was in, so that training can use this for its own labels. The last
    prompts stay encoded: an engine speaks for the weights of the moment it was made.
    """

    batches = True

    def __init__(self, model: Any, encoder: PromptEncoder, *, autocast: torch.dtype | None = None) -> None:
        self._model = model
        self._encoder = encoder
        self._autocast = autocast
        self._encoded: tuple[list[list[int]], Any, torch.Tensor] | None = None

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        with self._evaluating():
            logits = self._decoder_logits(prompts, prefixes)[:, -1]
            result: npt.NDArray[np.float32] = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return result

    def sequence_log_probabilities(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The log-probability of each token of each prompt's target."""
        with self._evaluating():
            ids = pad(targets, 0, self._model.device)
            scores = torch.log_softmax(self._decoder_logits(prompts, ids[:, :-1].tolist()).float(), dim=-1)
            rows = scores.gather(2, ids[..., None])[..., 0].tolist()
        return [row[: len(target)] for row, target in zip(rows, targets, strict=True)]

    def _decoder_logits(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits [n, prefix + 1, vocabulary]."""
        states, mask = self._encode(prompts)
        start = self._model.config.decoder_start_token_id
        decoder_ids = torch.tensor([[start, *prefix] for prefix in prefixes], device=self._model.device)
        result: torch.Tensor = self._model(
            encoder_outputs=states, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
        ).logits
        return result

    def _encode(self, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor]:
        """Encoder states and mask; asked again for the same prompts (another prefix), they are at hand."""
        key = [list(prompt) for prompt in prompts]
        if self._encoded is None or self._encoded[0] != key:
            ids = pad(prompts, self._model.config.pad_token_id, self._model.device)
            mask = pad([[1] * len(prompt) for prompt in prompts], 0, self._model.device)
            self._encoded = (key, self._model.get_encoder()(input_ids=ids, attention_mask=mask), mask)
        return self._encoded[1], self._encoded[2]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        config = self._model.config
        device = self._model.device
        begun = [[config.decoder_start_token_id, *prefix] for prefix in prefixes or [[]] * len(prompts)]
        with self._evaluating():
            output = self._model.generate(
                input_ids=pad(prompts, config.pad_token_id, device),
                attention_mask=pad([[1] * len(prompt) for prompt in prompts], 0, device),
                decoder_input_ids=torch.tensor(begun, device=device),
                max_new_tokens=max_tokens + 1 - len(begun[0]),
                min_length=0,
                do_sample=False,
                num_beams=decoding.beam_size,
                repetition_penalty=decoding.repetition_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram,
                # Of BART from the hub: no target here begins or must end so, and no other engine obeys it.
                forced_bos_token_id=None,
                forced_eos_token_id=None,
            )
        return [self._plain(row) for row in output[:, len(begun[0]) :].tolist()]

    def stream(self, prompt: Sequence[int], *, max_tokens: int, decoding: Decoding) -> Iterator[int]:
        yield from self.generate([prompt], max_tokens=max_tokens, decoding=decoding)[0]

    def describe(self) -> dict[str, str | int]:
        return {
            "engine": "transformers",
            "version": torch.__version__,
            "device": str(self._model.device),
            "compute_type": str(self._autocast or self._model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "threads_why": "torch's own choice",
        }

    def _plain(self, ids: Sequence[int]) -> list[int]:
        """What was written before the end token, without the special tokens."""
        end = ids.index(self._encoder.end_id) if self._encoder.end_id in ids else len(ids)
        return [index for index in ids[:end] if index not in self._encoder.special_ids]

    def _evaluating(self) -> AbstractContextManager[None]:
        return _Evaluating(self._model, self._autocast)


class CausalTransformersEngine(TransformersEngine):
    """The same for a decoder-only LM; prompts of unequal length are filled up at the left."""

    def _decoder_logits(self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> torch.Tensor:
        ids, mask = self._filled([[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)])
        # Counted from each row's own first token: a row reads the same with and without filling.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        result: torch.Tensor = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=len(prefixes[0]) + 1,  # a whole prompt's logits would be large for nothing
        ).logits
        return result

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        decoding: Decoding,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        length = len(prefixes[0]) if prefixes else 0
        if prefixes:
            prompts = [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)]
        with self._evaluating():
            ids, mask = self._filled(prompts)
            width = ids.shape[1]
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_tokens - length,
                do_sample=False,
                num_beams=decoding.beam_size,
                eos_token_id=self._encoder.end_id,
                pad_token_id=self._encoder.end_id,
                logits_processor=_answer_processors(decoding, width - length),
                # Against what the model's own generation_config may ask for.
                min_length=0,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
            )
        return [self._plain(row) for row in output[:, width:].tolist()]

    def _filled(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, both [n, longest]; any id may fill, since the mask hides it."""
        device = self._model.device
        return pad_left(rows, self._encoder.end_id, device), pad_left([[1] * len(row) for row in rows], 0, device)


class _OnAnswer(LogitsProcessor):
    """A logits processor that sees the answer alone.

    transformers' own options count the prompt as text that was written: a penalty on repetition would keep the
    rationale from naming what stands in the note.
    """

    def __init__(self, processor: LogitsProcessor, prompt_width: int) -> None:
        self._processor = processor
        self._prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._processor(input_ids[:, self._prompt_width :], scores)
        return result


def _answer_processors(decoding: Decoding, prompt_width: int) -> LogitsProcessorList:
    processors: list[LogitsProcessor] = []
    if decoding.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty)))
    if decoding.no_repeat_ngram > 0:
        processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
    return LogitsProcessorList(_OnAnswer(processor, prompt_width) for processor in processors)


class _Evaluating(AbstractContextManager[None]):
    """Eval mode, no gradient and the right precision, for as long as the block lasts."""

    def __init__(self, model: Any, autocast: torch.dtype | None) -> None:
        self._model = model
        self._no_grad = torch.inference_mode()
        self._precision: Any = (
            torch.autocast(model.device.type, dtype=autocast) if autocast is not None else nullcontext()
        )

    def __enter__(self) -> None:
        self._was_training = self._model.training
        self._model.eval()
        self._no_grad.__enter__()
        self._precision.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._precision.__exit__(*error)
        self._no_grad.__exit__(*error)
        self._model.train(self._was_training)
