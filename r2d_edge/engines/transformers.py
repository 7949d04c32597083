"""The full-size reference: a PyTorch encoder-decoder behind the engine protocol.

For workstations that have torch; the laptop never imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r2d_edge.bundle import Decoding
from r2d_edge.task import PromptEncoder


def pad(rows: Sequence[Sequence[int]], value: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Rows of ids to one [n, longest] tensor, filled at the right with `value`."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


class TransformersEngine:
    """A transformers seq2seq LM that scores and generates without gradient, in eval mode.

    The model is put back into the mode it was in, so that training can use this for its own labels.
    """

    def __init__(self, model: Any, encoder: PromptEncoder, *, autocast: torch.dtype | None = None) -> None:
        self._model = model
        self._encoder = encoder
        self._autocast = autocast

    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float32]:
        config = self._model.config
        start = config.decoder_start_token_id
        with self._evaluating():
            ids = pad(prompts, config.pad_token_id, self._model.device)
            mask = pad([[1] * len(prompt) for prompt in prompts], 0, self._model.device)
            decoder_ids = torch.tensor([[start, *prefix] for prefix in prefixes], device=self._model.device)
            logits = self._model(
                input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
            ).logits[:, -1]
            result: npt.NDArray[np.float32] = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
        return result

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, decoding: Decoding) -> list[list[int]]:
        config = self._model.config
        with self._evaluating():
            output = self._model.generate(
                input_ids=pad(prompts, config.pad_token_id, self._model.device),
                attention_mask=pad([[1] * len(prompt) for prompt in prompts], 0, self._model.device),
                max_new_tokens=max_tokens,
                min_length=0,
                do_sample=False,
                num_beams=decoding.beam_size,
                repetition_penalty=decoding.repetition_penalty,
                no_repeat_ngram_size=decoding.no_repeat_ngram,
            )
        rows = []
        for row in output[:, 1:].tolist():
            end = row.index(self._encoder.end_id) if self._encoder.end_id in row else len(row)
            rows.append([index for index in row[:end] if index not in self._encoder.special_ids])
        return rows

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

    def _evaluating(self) -> AbstractContextManager[None]:
        return _Evaluating(self._model, self._autocast)


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
