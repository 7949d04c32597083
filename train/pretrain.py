"""Denoising pre-training on plain text: span infilling after BART (Lewis et al. 2020, section 2.2).

Spans of Poisson length are each replaced by one mask token; the decoder writes the whole text. Every
block of a step is a pure function of (seed, step), so a run that was killed resumes where it stood.
"""

from __future__ import annotations

import lzma
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r2d_edge.task import PROVENANCE_FILE, LabelSet
from train.checkpoint import (
    git_commit,
    load_model,
    load_tokenizer,
    parent_provenance,
    precision,
    write_json,
)
from train.data import read_dataset
from train.files import describe_file, replace_file
from train.losses import token_loss
from train.resume import begin

STATE = "pretrain_state.pt"
DATASET_SUFFIXES = (".jsonl", ".csv", ".parquet")
Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class PretrainRecipe:
    """How to pre-train. Lengths in tokens, rates per optimizer step.

    Attributes:
        checkpoint: an encoder-decoder checkpoint folder with tokenizer.json and a mask token.
        texts: files of documents (`.txt`/`.txt.xz`, one a line, or dataset `.jsonl`), each with its
            share of the blocks.
        encoder_rate: the learning rate of the pretrained encoder and embeddings, as a share.
        freeze_encoder_steps: steps at the start in which the encoder's layers stand still while the decoder learns
            to listen to them. Embeddings that the encoder shares with the decoder are trained from the first step,
            at their rate.
        cooldown_share: share of the steps, at the end, over which the rate falls to zero.
    """

    checkpoint: Path
    output: Path
    texts: dict[str, float]
    steps: int = 2200
    batch_size: int = 16
    block: int = 128
    mask_share: float = 0.5
    span_mean: float = 3.0
    learning_rate: float = 1e-3
    encoder_rate: float = 0.1
    freeze_encoder_steps: int = 0
    warmup: int = 150
    cooldown_share: float = 0.25
    weight_decay: float = 0.01
    dropout: float = 0.0
    seed: int = 13
    bf16: bool | None = None
    save_every: int = 100
    log_every: int = 10


def read_documents(path: Path) -> Iterator[str]:
    """Yields documents: lines of a text file, or a dataset row's note followed by each of its rationales."""
    if path.suffix.lower() in DATASET_SUFFIXES:
        for row in read_dataset(path, LabelSet((), "open"), unlabelled="taken"):
            yield from [f"{row.text} {rationale}" for rationale in row.rationales.values()] or [row.text]
    elif path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            yield from lines
    else:
        with path.open(encoding="utf-8") as lines:
            yield from lines


def tokenize_source(path: Path, tokenizer_file: Path, separator: int) -> Tokens:
    """All documents of `path` as one array of ids, `separator` after each document."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    parts: list[list[int]] = []
    batch: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            parts.append([*encoding.ids, separator])
        batch.clear()

    for document in read_documents(path):
        batch.append(document.strip())
        if len(batch) == 512:
            flush()
    flush()
    if not parts:
        raise ValueError(f"{path} holds no document")
    return np.concatenate([np.asarray(part, dtype=np.uint32) for part in parts])


def mask_spans(block: Tokens, share: float, span_mean: float, mask: int, rng: np.random.Generator) -> list[int]:
    """Replaces spans covering about `share` of `block` by one `mask` each; spans that touch are one."""
    hidden = np.zeros(len(block), dtype=bool)
    goal = round(share * len(block))
    while hidden.sum() < goal:
        length = max(1, int(rng.poisson(span_mean)))
        first = int(rng.integers(0, len(block)))
        hidden[first : first + length] = True
    out: list[int] = []
    for position, token in enumerate(block):
        if not hidden[position]:
            out.append(int(token))
        elif position == 0 or not hidden[position - 1]:
            out.append(mask)
    return out


def draw_blocks(
    sources: Sequence[tuple[Tokens, float]], recipe: PretrainRecipe, step: int
) -> tuple[list[Tokens], np.random.Generator]:
    """The `batch_size` blocks of one step and the generator that masks them, from (seed, step) alone."""
    rng = np.random.default_rng([recipe.seed, step])
    weights = np.array([weight for _, weight in sources], dtype=float)
    picks = rng.choice(len(sources), size=recipe.batch_size, p=weights / weights.sum())
    length = recipe.block - 1  # the end token makes it a block
    blocks = []
    for pick in picks:
        tokens = sources[pick][0]
        first = int(rng.integers(0, max(1, len(tokens) - length)))
        blocks.append(tokens[first : first + length])
    return blocks, rng


def learning_rate_factor(step: int, recipe: PretrainRecipe) -> float:
    """Warm-up, plateau, then a linear cool-down to zero over the last `cooldown_share` of the steps."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    cooldown = max(1, math.ceil(recipe.steps * recipe.cooldown_share))
    return min(1.0, (recipe.steps - step) / cooldown)


def _collate(
    blocks: list[Tokens], rng: np.random.Generator, recipe: PretrainRecipe, ids: dict[str, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    noisy = [
        [ids["bos"], *mask_spans(block, recipe.mask_share, recipe.span_mean, ids["mask"], rng), ids["eos"]]
        for block in blocks
    ]
    width = max(map(len, noisy))
    source = torch.tensor([row + [ids["pad"]] * (width - len(row)) for row in noisy])
    target_rows = [[*map(int, block), ids["eos"]] for block in blocks]
    length = max(map(len, target_rows))
    target = torch.tensor([row + [-100] * (length - len(row)) for row in target_rows])
    decoder_input = torch.full_like(target, ids["pad"])
    decoder_input[:, 0] = ids["start"]
    decoder_input[:, 1:] = target[:, :-1].clamp(min=0)
    return source, (source != ids["pad"]).long(), decoder_input, target


def pretrain(recipe: PretrainRecipe, *, resume: bool = True, stop_after: int | None = None) -> Path:
    """Trains `recipe.checkpoint` to infill text and writes it to `recipe.output`; resumes what was cut.

    Args:
        resume: go on from where a cut run stood.
        stop_after: leave after this many steps of this call (a test's stand-in for a kill).

    Returns:
        `recipe.output`.
    """
    files = [Path(path) for path in recipe.texts]
    state = recipe.output / STATE
    begin(recipe.output, asdict(recipe), files, str(recipe.checkpoint), state=state, resume=resume)
    run = _Run(recipe)
    if state.exists():
        run.restore(state)
    _train(run, recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after))
    return recipe.output


def _train(run: _Run, last: int) -> None:
    """Takes the steps up to `last`; the losses are logged, the run is saved."""
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    recipe = run.recipe
    writer = SummaryWriter(str(recipe.output / "tensorboard"))
    bar = tqdm(total=recipe.steps, initial=run.step, desc="pretrain", unit="step", disable=None)
    started, window = time.monotonic(), []
    while run.step < last:
        window.append(run.take_step())
        bar.update()
        if run.step % recipe.log_every == 0 or run.step == last:
            rate = len(window) * recipe.batch_size * recipe.block / (time.monotonic() - started)
            mean = sum(window) / len(window)
            writer.add_scalar("pretrain/loss", mean, run.step)
            print(f"step {run.step} loss {mean:.4f} target tokens/s {rate:.0f}", flush=True)
            started, window = time.monotonic(), []
        if run.step % recipe.save_every == 0 or run.step == last:
            run.save()
    writer.close()
    bar.close()


class _Run:
    """A pre-training as it stands after `step` optimizer steps: the model, its optimizer and its texts."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.step = 0
        self.tokenizer = load_tokenizer(str(recipe.checkpoint))
        named = {name: getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
        if missing := [name for name, token in named.items() if token is None]:
            raise ValueError(
                f"{recipe.checkpoint} has no {', '.join(missing)} token: denoising needs a BART-shaped checkpoint"
            )
        # One pass over fresh text does not overfit: dropout would only cost time.
        self.model = load_model(str(recipe.checkpoint), dropout=recipe.dropout)
        self.ids: dict[str, int] = {**named, "start": self.model.config.decoder_start_token_id}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = precision(recipe.bf16)
        self.model.to(self.device).train()
        self.optimizer = _optimizer(self.model, recipe)
        tokenizer_file = recipe.checkpoint / "tokenizer.json"
        self.data = [
            (tokenize_source(Path(path), tokenizer_file, self.ids["eos"]), weight)
            for path, weight in recipe.texts.items()
        ]

    def take_step(self) -> float:
        """One optimizer step; returns its loss, in nats a token."""
        recipe = self.recipe
        blocks, rng = draw_blocks(self.data, recipe, self.step)
        batch = _collate(blocks, rng, recipe, self.ids)
        source, mask, decoder_input, target = (tensor.to(self.device) for tensor in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * group["scale"] * learning_rate_factor(self.step, recipe)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            with torch.set_grad_enabled(self.step >= recipe.freeze_encoder_steps):
                encoded = self.model.get_encoder()(input_ids=source, attention_mask=mask)
            logits = self.model(
                encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=decoder_input, use_cache=False
            ).logits
        loss = token_loss(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Writes the state to resume from, the model and its provenance."""
        output = self.recipe.output
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        # What a cut run resumes from is one file, put in place whole.
        with replace_file(output / STATE) as temporary:
            torch.save(state, temporary)
        self.model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)
        write_json(output / PROVENANCE_FILE, _provenance(self.recipe, self.step, self.data))

    def restore(self, state: Path) -> None:
        """Goes back to what `save` wrote."""
        saved = torch.load(state, weights_only=True, map_location="cpu")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]


def _optimizer(model: Any, recipe: PretrainRecipe) -> torch.optim.Optimizer:
    pretrained = {id(parameter) for parameter in model.get_encoder().parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in pretrained], "scale": 1.0},
        {"params": [p for p in model.parameters() if id(p) in pretrained], "scale": recipe.encoder_rate},
    ]
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )


def _provenance(recipe: PretrainRecipe, step: int, data: Sequence[tuple[Tokens, float]]) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(recipe).items() if k not in ("checkpoint", "output", "texts")}
    return {
        "method": "denoising pre-training (span infilling)",
        "recipe": settings,
        "steps": step,
        "target_tokens": step * recipe.batch_size * recipe.block,
        "texts": [
            {**describe_file(Path(path)), "share": weight, "tokens": len(tokens)}
            for (path, weight), (tokens, _) in zip(recipe.texts.items(), data, strict=True)
        ],
        "commit": git_commit(),
        "from": parent_provenance(str(recipe.checkpoint)),
    }
