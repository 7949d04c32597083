"""How the two families of networks turn prompts and targets into next-token logits.

An encoder-decoder reads the prompt and writes the target; a decoder-only model goes on from the prompt, and
only the target counts in its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers.modeling_outputs import BaseModelOutput

from r2d_edge.engines.transformers import pad_left
from train.batching import IGNORED, collate

Ids = Sequence[Sequence[int]]
Batch = dict[str, torch.Tensor]
After = Callable[[Sequence[int]], torch.Tensor]


class Family(Protocol):
    """Batches and logits of one family."""

    def collate(self, prompts: Ids, targets: Ids) -> Batch:
        """Tensors of n prompts and their targets; `labels` [n, longest target] is -100 where padded."""
        ...

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits [n, longest target, vocabulary], each position's for the label at the same position."""
        ...

    def branching(self, model: Any, batch: Batch) -> tuple[torch.Tensor, After]:
        """The same logits, and what gives those [n, vocabulary] of the token after some other beginning of a target.

        The logits' first position is that of every row's first target token, padding or none.
        """
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

    def branching(self, model: Any, batch: Batch) -> tuple[torch.Tensor, After]:
        output = self.output(model, batch)

        def after(prefix: Sequence[int]) -> torch.Tensor:
            return self.decode(model, output.encoder_last_hidden_state, batch["attention_mask"], prefix)

        return output.logits, after

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

    def branching(self, model: Any, batch: Batch) -> tuple[torch.Tensor, After]:
        logits = self.logits(model, batch)
        width = logits.shape[1]
        starts = (batch["labels"] == IGNORED).sum(dim=1)
        places = (torch.arange(width, device=logits.device) + starts[:, None]).clamp(max=width - 1)
        prompts = [
            row[len(row) - int(mask.sum()) : len(row) - width + int(start)].tolist()
            for row, mask, start in zip(batch["input_ids"], batch["attention_mask"], starts, strict=True)
        ]

        def after(prefix: Sequence[int]) -> torch.Tensor:
            # The last id is not read: any will do.
            longer = self.collate(prompts, [[*prefix, 0]] * len(prompts))
            return self.logits(model, {key: value.to(logits.device) for key, value in longer.items()})[:, -1]

        return torch.take_along_dim(logits, places[:, :, None], dim=1), after


def family_of(model: Any, *, decoder_only: bool, end_id: int) -> Family:
    """The family of a model; a model without a padding token is padded with its end token."""
    pad_id = model.config.pad_token_id
    kind = DecoderOnly if decoder_only else EncoderDecoder
    return kind(end_id if pad_id is None else pad_id)
