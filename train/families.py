"""How the two families of networks turn prompts and targets into next-token logits.

An encoder-decoder reads the prompt and writes the target; a decoder-only model goes on from the prompt, and
only the target counts in its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.modeling_outputs import BaseModelOutput

from r2d_edge.engines.transformers import pad_left
from train.batching import IGNORED, collate

Ids = Sequence[Sequence[int]]
Batch = dict[str, torch.Tensor]


class Family(Protocol):
    """Batches and logits of one family."""

    def collate(self, prompts: Ids, targets: Ids) -> Batch:
        """Tensors of n prompts and their targets; `labels` [n, longest target] is -100 where padded."""
        ...

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits [n, longest target, vocabulary], each position's for the label at the same position."""
        ...


class EncoderDecoder:
    """T5, BART and their like."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def collate(self, prompts: Ids, targets: Ids) -> Batch:
        return collate(prompts, targets, self._pad_id)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        result: torch.Tensor = self.output(model, batch).logits
        return result

    def output(self, model: Any, batch: Batch) -> Any:
        """The model's whole output: `logits`, and the encoder's states as `encoder_last_hidden_state`."""
        # The decoder's inputs are shifted here, so that the model does not work out a loss of its own.
        bare = getattr(model, "module", model)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        shifted = bare.prepare_decoder_input_ids_from_labels(batch["labels"])
        return model(**inputs, decoder_input_ids=shifted, use_cache=False)

    def decode(self, model: Any, states: torch.Tensor, mask: torch.Tensor, prefix: Sequence[int]) -> torch.Tensor:
        """Logits [n, vocabulary] of the token after `prefix`, the prompts being encoded already.

        Args:
            model: the network.
            states: the encoder's, [n, input, width].
            mask: the prompts' attention mask, [n, input].
            prefix: what every row's target begins with.
        """
        # The last id is shifted out: any will do.
        labels = torch.tensor([[*prefix, 0]] * len(states), device=states.device)
        encoded = BaseModelOutput(last_hidden_state=states)
        result: torch.Tensor = self.logits(
            model, {"encoder_outputs": encoded, "attention_mask": mask, "labels": labels}
        )
        return result[:, -1]


class DecoderOnly:
    """Llama and its like. Rows end together, so that the answers' logits are the last ones of every row."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def collate(self, prompts: Ids, targets: Ids) -> Batch:
        rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
        mask = pad_left([[1] * len(row) for row in rows], 0)
        return {
            "input_ids": pad_left(rows, self._pad_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": pad_left(targets, IGNORED),
        }

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        kept = batch["labels"].shape[1] + 1
        result: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=kept).logits
        return result[:, :-1]


def family_of(model: Any, *, decoder_only: bool, end_id: int) -> Family:
    """The family of a model; a model without a padding token is padded with its end token."""
    pad_id = model.config.pad_token_id
    kind = DecoderOnly if decoder_only else EncoderDecoder
    return kind(end_id if pad_id is None else pad_id)
