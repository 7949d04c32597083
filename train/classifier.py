"""A label teacher too large for a laptop: a pretrained encoder with a classification head, fine-tuned on the notes.

It has no rationales. What it knows goes into a small model as label distributions (Hinton et al. 2015, arXiv
1503.02531; see `train.teach`), and held against that model it shows what label-only fine-tuning of a bigger encoder
would have given.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from r2d_edge.base_models import locate
from r2d_edge.decide import why_unreadable
from r2d_edge.metrics import accuracy, macro_f1
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE, Prompts, Task
from train import checkpoint
from train.answering import BATCH, Answer, read_provenance
from train.batching import LengthBucketedSampler
from train.data import Example
from train.files import file_sha256
from train.recipe import RecipeError, StageRecipe
from train.resume import processes
from train.stage1 import read_splits
from train.trainer import HISTORY, SamplerEpoch, adamw, begin_stage, last_checkpoint, training_arguments

ARCHITECTURE = "ForSequenceClassification"  # how transformers' classes of this kind end


@dataclass(frozen=True)
class ClassifierRecipe(StageRecipe):
    """How to fine-tune an encoder on labels alone; what concerns rationales is not used.

    Attributes:
        trained_layers: how many of the encoder's layers are trained, the last ones; 0 trains all of it.
        evaluations: how many times the validation sets are scored; the best by macro-F1 is kept.
    """

    trained_layers: int = 0
    evaluations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_kind == "open":
            raise RecipeError("a classifier needs a list of labels, not open ones")
        if self.template is not None or self.lora_rank:
            raise RecipeError(
                "a classifier is an encoder, trained whole or by its last layers: no template, no lora_rank"
            )
        if self.trained_layers < 0 or self.evaluations < 1:
            raise RecipeError(
                f"trained_layers must be 0 or more, not {self.trained_layers}, and evaluations 1 or more, "
                f"not {self.evaluations}"
            )

    @property
    def prompts(self) -> Prompts:
        return Prompts(explain=None)


def train_classifier(recipe: ClassifierRecipe, *, resume: bool = True) -> Path:
    """Fine-tunes the recipe's encoder, in one process, and writes it to `recipe.output`, which it returns.

    The loss is the label's cross-entropy, with the recipe's label smoothing.

    Raises:
        RecipeError: the encoder has fewer layers than are to be trained, or reads less than `max_input`; or several
            processes were started.
    """
    if processes() > 1:
        raise RecipeError("a classifier is trained in one process: start it without torchrun")
    started = time.monotonic()
    begin_stage(recipe, resume=resume)
    train, validation = read_splits(recipe)
    model, tokenizer = _load_for_training(recipe)
    items = _items(train, recipe, tokenizer)
    batch = recipe.batch_size * recipe.gradient_accumulation
    each = max(1, math.ceil(recipe.epochs * math.ceil(len(items) / batch)) // recipe.evaluations)
    sizes = {name: len(rows) for name, rows in validation.items()}
    trainer = _ClassifierTrainer(
        recipe,
        LengthBucketedSampler([len(item["input_ids"]) for item in items], batch, recipe.seed),
        model=model,
        args=_arguments(recipe, each),
        train_dataset=items,
        eval_dataset=_items([row for rows in validation.values() for row in rows], recipe, tokenizer),
        data_collator=lambda chosen: _batch(chosen, tokenizer),
        compute_metrics=lambda outcome: _macro_f1(outcome, sizes),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(recipe))
    model.save_pretrained(recipe.output)
    tokenizer.save_pretrained(recipe.output)
    checkpoint.write_json(recipe.output / TASK_FILE, recipe.task.to_json())
    provenance = checkpoint.provenance(
        "classifier", recipe, rows=len(train), steps=trainer.state.global_step, seconds=time.monotonic() - started
    )
    checkpoint.write_json(recipe.output / PROVENANCE_FILE, provenance)
    checkpoint.write_json(recipe.output / HISTORY, {"log": trainer.state.log_history})
    return recipe.output


class _ClassifierTrainer(Trainer):
    """Batches of about one length, the same in a resumed run, and validation rows in their order."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, recipe: ClassifierRecipe, sampler: LengthBucketedSampler, **arguments: Any) -> None:
        self._recipe = recipe
        self._sampler = sampler
        super().__init__(**arguments)
        # MPNet's forward takes any keyword, from which the Trainer concludes that it averages over accumulated
        # batches itself.
        self.model_accepts_loss_kwargs = False
        self.add_callback(SamplerEpoch(sampler))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model if model is not None else self.model
            encoder = model.base_model.parameters()
            self.optimizer = adamw(model, self._recipe, encoder, self.get_decay_parameter_names(model))
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)


def _arguments(recipe: ClassifierRecipe, each: int) -> TrainingArguments:
    """The recipe in the plain Trainer's words, validated and saved after every `each` steps."""
    arguments = training_arguments(recipe).to_dict()
    if not recipe.gradient_checkpointing:  # the Trainer warns of the word alone
        del arguments["gradient_checkpointing"]
    known = TrainingArguments.__dataclass_fields__
    return TrainingArguments(
        **{key: value for key, value in arguments.items() if key in known}
        | {
            "label_smoothing_factor": recipe.label_smoothing,
            "eval_strategy": "steps",
            "eval_steps": each,
            "save_steps": each,
            "load_best_model_at_end": True,
            "metric_for_best_model": "macro_f1",
        }
    )


class ClassifierModel:
    """A fine-tuned encoder that is asked for labels; it explains nothing and is not calibrated."""

    temperature = 1.0

    def __init__(self, folder: Path, *, batch_size: int = BATCH, bf16: bool = False, device: str = "auto") -> None:
        self.task = Task.from_json(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
        self.provenance: Mapping[str, Any] = read_provenance(folder)
        self.name = f"{folder.name} sha256:{file_sha256(folder / 'model.safetensors')[:12]}"
        self._tokenizer = checkpoint.load_tokenizer(str(folder))
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._model = _load(str(folder)).to(chosen).eval()
        self._precision = torch.bfloat16 if bf16 else None
        self._batch_size = batch_size

    def answer(self, texts: Sequence[str], *, rationales: bool) -> list[Answer]:
        """Labels and probabilities, in the order of the texts.

        Raises:
            ValueError: rationales are asked for.
        """
        if rationales:
            raise ValueError("a classifier writes no rationales")
        answers = [Answer(None, {}, abstained=True)] * len(texts)
        readable = sorted(
            (row for row, text in enumerate(texts) if why_unreadable(text) is None), key=lambda row: len(texts[row])
        )
        limit = self.task.limits.input
        for first in range(0, len(readable), self._batch_size):
            rows = readable[first : first + self._batch_size]
            ids = [_ids(texts[row], self._tokenizer) for row in rows]
            with torch.inference_mode(), self._computing():
                batch = _batch([{"input_ids": _cut(row, limit)} for row in ids], self._tokenizer).to(self._model.device)
                found = torch.softmax(self._model(**batch).logits.double(), dim=-1).tolist()
            for row, own, chances in zip(rows, ids, found, strict=True):
                label = self.task.labels.labels[int(np.argmax(chances))]
                cut = len(own) > limit
                answers[row] = Answer(
                    label, dict(zip(self.task.labels.labels, chances, strict=True)), truncated=cut, abstained=cut
                )
        return answers

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "compute_type": "bfloat16" if self._precision else "float32",
            "device": str(self._model.device),
            "batch_size": self._batch_size,
        }

    def _computing(self) -> Any:
        enabled = self._precision is not None
        return torch.autocast(self._model.device.type, dtype=self._precision, enabled=enabled)


def is_classifier(folder: Path) -> bool:
    """Whether a checkpoint folder holds a fine-tuned encoder rather than a model that writes."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(str(name).endswith(ARCHITECTURE) for name in config.get("architectures") or ())


def _load(name: str, attention: str = "auto", **config: Any) -> Any:
    if attention != "auto":
        config["attn_implementation"] = attention
    elif not torch.cuda.is_available():  # where there is CUDA transformers chooses: not every encoder has sdpa
        config["attn_implementation"] = "eager"
    return AutoModelForSequenceClassification.from_pretrained(
        locate(name)[0], use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **config
    )


def _load_for_training(recipe: ClassifierRecipe) -> tuple[Any, Any]:
    """The encoder with a new head, all but its last layers at rest, and its tokenizer."""
    torch.manual_seed(recipe.seed)  # the head starts at random
    model = _load(
        recipe.checkpoint,
        recipe.attention,
        num_labels=len(recipe.labels),
        id2label=dict(enumerate(recipe.labels)),
        label2id={label: index for index, label in enumerate(recipe.labels)},
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
    )
    positions = model.config.max_position_embeddings
    if recipe.max_input > positions - 2:  # some families begin to count after the padding's number
        raise RecipeError(f"the encoder has {positions} positions: lower max_input from {recipe.max_input}")
    layers = model.base_model.encoder.layer
    if recipe.trained_layers > len(layers):
        raise RecipeError(f"the encoder has {len(layers)} layers, {recipe.trained_layers} are to be trained")
    if recipe.trained_layers:
        model.base_model.requires_grad_(False)
        for layer in layers[-recipe.trained_layers :]:
            layer.requires_grad_(True)
    return model, checkpoint.load_tokenizer(recipe.checkpoint)


def _items(examples: Sequence[Example], recipe: ClassifierRecipe, tokenizer: Any) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": _cut(_ids(example.text, tokenizer), recipe.max_input),
            "labels": recipe.task.labels.index(example.label),
        }
        for example in examples
    ]


def _ids(text: str, tokenizer: Any) -> list[int]:
    """A note's tokens between those of begin and end; what looks like a special token in it is spelled out."""
    ids: list[int] = tokenizer(text, split_special_tokens=True)["input_ids"]
    return ids


def _cut(ids: list[int], limit: int) -> list[int]:
    """The tokens up to a limit, the end token kept."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _batch(items: Sequence[Mapping[str, Any]], tokenizer: Any) -> Any:
    batch = tokenizer.pad({"input_ids": [item["input_ids"] for item in items]}, return_tensors="pt")
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def _macro_f1(outcome: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """Macro-F1 and accuracy of each set, and the macro-F1s' mean, which chooses the checkpoint."""
    logits, gold = np.asarray(outcome.predictions), np.asarray(outcome.label_ids)
    found: dict[str, float] = {}
    first = 0
    for name, size in sizes.items():
        rows = slice(first, first + size)
        found[f"{name}_macro_f1"] = macro_f1(gold[rows], logits[rows].argmax(axis=1), logits.shape[1])
        found[f"{name}_accuracy"] = accuracy(gold[rows], logits[rows].argmax(axis=1))
        first += size
    return {"macro_f1": float(np.mean([found[f"{name}_macro_f1"] for name in sizes])), **found}
