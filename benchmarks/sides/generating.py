"""What transformers and optimum share: a model with `generate`, in PyTorch's tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.sides import Lap, Row, Wish, batches, by_length


class GeneratingSide:
    """A sequence-to-sequence model; prompts are padded at the right."""

    def __init__(self, model: Any, about: dict[str, Any]) -> None:
        self._model = model
        self._about = about
        self._config = model.config

    def describe(self) -> dict[str, Any]:
        return self._about

    def note(self, row: Row, wish: Wish) -> Lap:
        start = time.perf_counter()
        self._labels([row])
        label = time.perf_counter()
        clock = _FirstToken()
        [ids] = self._write([row], wish, clock)
        end = time.perf_counter()
        return Lap(label - start, (clock.at or end) - label, end - label, len(ids), ids)

    def many(self, rows: Sequence[Row], wish: Wish, batch_size: int) -> int:
        written = 0
        for part in batches(by_length(rows), batch_size):
            self._labels(part)
            written += sum(map(len, self._write(part, wish)))
        return written

    def _labels(self, rows: Sequence[Row]) -> list[int]:
        """The likeliest first token of each label: one encoder pass and one decoder step."""
        ids, mask = self._padded([row.predict for row in rows])
        begun = torch.full((len(rows), 1), self._config.decoder_start_token_id, device=ids.device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, decoder_input_ids=begun).logits[:, -1]
        best: list[int] = logits.argmax(dim=-1).tolist()
        return best

    def _write(self, rows: Sequence[Row], wish: Wish, clock: _FirstToken | None = None) -> list[list[int]]:
        ids, mask = self._padded([row.explain for row in rows])
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=wish.tokens,
                min_new_tokens=wish.tokens if wish.forced else 0,
                do_sample=False,
                num_beams=1,
                repetition_penalty=wish.repetition_penalty,
                no_repeat_ngram_size=wish.no_repeat_ngram,
                forced_eos_token_id=None,
                stopping_criteria=StoppingCriteriaList([clock] if clock else []),
            )
        return [self._until_end(row) for row in output[:, 1:].tolist()]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, both [n, longest]."""
        width = max(map(len, prompts))
        fill = self._config.pad_token_id
        ids = [[*prompt, *[fill] * (width - len(prompt))] for prompt in prompts]
        mask = [[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
        return torch.tensor(ids, device=self._model.device), torch.tensor(mask, device=self._model.device)

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self._config.eos_token_id
        return ids[: ids.index(end)] if end in ids else ids


class _FirstToken(StoppingCriteria):
    """Stops nothing; notes when it was first asked, which is after the first token."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
