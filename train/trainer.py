"""What both stages ask of transformers' Seq2SeqTrainer beyond its defaults."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from train.batching import LengthBucketedSampler
from train.checkpoint import precision
from train.recipe import StageRecipe
from train.resume import begin


def training_arguments(recipe: StageRecipe, **more: Any) -> Seq2SeqTrainingArguments:
    """A recipe in the Trainer's words."""
    return Seq2SeqTrainingArguments(
        output_dir=str(recipe.output / "checkpoints"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=max(32, recipe.batch_size),
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup,
        lr_scheduler_type="linear",
        weight_decay=recipe.weight_decay,
        label_smoothing_factor=0.0,  # applied by the stages' own losses
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=precision(recipe.bf16) is not None,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=recipe.log_steps,
        save_total_limit=2,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        # BART's one buffer is constant; broadcasting it would ask for as many forward passes on every process.
        ddp_broadcast_buffers=False,
        **{"save_steps": recipe.save_steps, **more},
    )


class StageTrainer(Seq2SeqTrainer):
    """Length-bucketed batches, and a learning rate of its own for the pretrained encoder."""

    recipe: StageRecipe
    lengths: list[int]
    optimizer: torch.optim.Optimizer | None
    sampler: LengthBucketedSampler | None = None

    def __init__(self, recipe: StageRecipe, lengths: list[int], **arguments: Any) -> None:
        self.recipe = recipe
        self.lengths = lengths
        super().__init__(**arguments)
        # The stages' losses are means over their own targets; the Trainer averages them over accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_SamplerEpoch(self))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.sampler = LengthBucketedSampler(self.lengths, size, self.recipe.seed)
        return self.sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model if model is not None else self.model
            encoder = {id(parameter) for parameter in model.get_encoder().parameters()}
            decay = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((id(parameter) in encoder, name in decay), []).append(parameter)
            rate = self.args.learning_rate
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": rate * (self.recipe.encoder_rate if in_encoder else 1.0),
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                    }
                    for (in_encoder, decays), parameters in groups.items()
                ],
                lr=rate,
                fused=True,
            )
        return self.optimizer


class _SamplerEpoch(TrainerCallback):
    """Tells the sampler its epoch: resumed among several processes, the Trainer does not reach it."""

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.sampler is not None:
            self._trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class StopAfter(TrainerCallback):
    """Saves and leaves at a given step, as if the run had been cut there."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= self._step:
            control.should_save = True
            control.should_training_stop = True


def begin_stage(recipe: StageRecipe, *, resume: bool) -> None:
    """Starts the run of a stage, or checks that what is resumed is the same run (see `train.resume`)."""
    files = [*recipe.train, *recipe.validation.values()]
    begin(recipe.output, asdict(recipe), files, recipe.checkpoint, state=recipe.output / "checkpoints", resume=resume)


def last_checkpoint(recipe: StageRecipe) -> str | None:
    """The newest whole checkpoint of a run that was cut, or None.

    A kill can leave a checkpoint half written; the Trainer writes its state file last.
    """
    found = {}
    for folder in (recipe.output / "checkpoints").glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            found[int(state["global_step"])] = str(folder)
    return found[max(found)] if found else None
