"""What both stages ask of transformers' Seq2SeqTrainer beyond its defaults."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, TrainerState

from r2d_edge.engines.transformers import transformers_engine
from r2d_edge.task import PromptEncoder
from train.batching import LengthBucketedSampler
from train.checkpoint import precision, save_checkpoint, write_json
from train.families import Family, Ids, family_of
from train.losses import token_loss
from train.recipe import RecipeError, StageRecipe
from train.resume import begin, is_run, wait_for_everyone

HISTORY = "history.json"  # written last
STATE_FILE = "trainer_state.json"  # the Trainer's own, written last of a checkpoint
SECONDS_FILE = "seconds.json"


def training_arguments(recipe: StageRecipe, **more: Any) -> Seq2SeqTrainingArguments:
    """A recipe in the Trainer's words.

    Raises:
        RecipeError: several GPUs are to be seen by one process, which would change the size of a batch.
    """
    arguments = Seq2SeqTrainingArguments(
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
        gradient_checkpointing=recipe.gradient_checkpointing,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        # BART's one buffer is constant; broadcasting it would ask for as many forward passes on every process.
        ddp_broadcast_buffers=False,
        **{"save_steps": recipe.save_steps, **more},
    )
    if arguments.n_gpu > 1:
        raise RecipeError(
            f"{arguments.n_gpu} GPUs are visible: start `torchrun --nproc-per-node={arguments.n_gpu} -m train …`, or "
            "choose one with CUDA_VISIBLE_DEVICES"
        )
    return arguments


class StageTrainer(Seq2SeqTrainer):
    """Length-bucketed batches, a learning rate of its own for a pretrained encoder, and losses per global batch.

    A stage's loss is a mean over all targets of one optimizer step, whatever processes and accumulation steps
    hold them: `compute_loss` divides its sums by the counts it is given, which `counts` of each batch add up to.
    Where the rows do not go evenly into the processes' batches, rows without a target fill up an epoch's last
    ones, so that every row counts once.
    """

    recipe: StageRecipe
    family: Family
    lengths: list[int]
    optimizer: torch.optim.Optimizer | None
    state: TrainerState

    def __init__(
        self,
        recipe: StageRecipe,
        encoder: PromptEncoder,
        items: Sequence[Any],
        empty: Any,
        lengths: list[int],
        **arguments: Any,
    ) -> None:
        """Makes the trainer of a stage.

        Args:
            recipe: the stage's.
            encoder: makes prompts and targets.
            items: the rows.
            empty: a row of the same kind that has a prompt, but no target.
            lengths: of the rows, in tokens.
            arguments: the Trainer's own; `model` and `args` are needed.
        """
        self.recipe = recipe
        self.encoder = encoder
        self.lengths = lengths
        self.family = family_of(arguments["model"], decoder_only=recipe.template is not None, end_id=encoder.end_id)
        args = arguments["args"]
        # Accelerate would fill up with rows that were already seen, which would count twice.
        self._padding = -len(items) % (args.train_batch_size * args.world_size) if args.world_size > 1 else 0
        super().__init__(
            train_dataset=[*items, *[empty] * self._padding],
            data_collator=lambda batch: {"items": batch},
            **arguments,
        )
        self._started = time.monotonic()
        self.loss_is_scaled_for_ga = True
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._sampler = LengthBucketedSampler(lengths, size, recipe.seed, padding=self._padding)
        self.add_callback(SamplerEpoch(self._sampler))

    def counts(self, inputs: dict[str, Any]) -> list[int]:
        """What one batch adds to the divisors of the losses."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        own = torch.tensor([self.counts(inputs) for inputs in batch_samples], device=device).sum(dim=0)
        total: torch.Tensor = self.accelerator.reduce(own, reduction="sum")
        return total.clamp(min=1)

    def target_loss(
        self, model: Any, prompts: Ids, targets: Ids, count: torch.Tensor | int, *, smoothing: float = 0.0
    ) -> torch.Tensor:
        """This batch's part of the mean loss (nats) over the `count` target tokens of the global batch."""
        batch = self.collate(prompts, targets)
        return token_loss(self.family.logits(model, batch), batch["labels"], smoothing, total=True) / count

    def collate(self, prompts: Ids, targets: Ids) -> dict[str, torch.Tensor]:
        """A batch of the model's family on the training device."""
        # Rows without targets alone make labels without width, which torch takes for numbers of another type.
        return {key: value.long().to(self.args.device) for key, value in self.family.collate(prompts, targets).items()}

    @property
    def engine(self) -> Any:
        """The bare model as it stands now, for labels without gradient."""
        model = self.accelerator.unwrap_model(self.model)
        return transformers_engine(model, self.encoder, autocast=precision(self.recipe.bf16))

    @property
    def seconds(self) -> float:
        """What the run has taken, in all its processes; of one that was cut, up to its last checkpoint."""
        return time.monotonic() - self._started

    def is_over(self) -> bool:
        """Whether nothing is left to train in the run's state as it stands."""
        return bool(self.state.global_step >= self.state.max_steps)

    def run(self, last: str | None, started: float) -> None:
        """Trains to the end; a run that was over when it was cut is not trained further but read back.

        Args:
            last: the newest checkpoint of a run that was cut (see `last_checkpoint`).
            started: when this process began with the run, by `time.monotonic()`.
        """
        self._started = started
        if last is not None:
            self._started -= _seconds_until(Path(last))
            self.state = TrainerState.load_from_json(str(Path(last) / STATE_FILE))
            if self.is_over():
                self._read_back(Path(last))
                return
        self.train(resume_from_checkpoint=last)

    def _read_back(self, last: Path) -> None:
        """Takes the weights that training would have ended with: the best ones, or else the last."""
        self.state.init_training_references(self, self.state.max_steps, self.state.num_train_epochs, None)
        best = last.with_name(f"checkpoint-{self.state.best_global_step}")
        self._load_from_checkpoint(str(best if best.is_dir() else last))

    def kept(self) -> dict[str, Mapping[str, Any]]:
        """What a checkpoint holds beside the Trainer's own files, by file name."""
        return {SECONDS_FILE: {"seconds": self.seconds}}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First, since the Trainer's state file, written last, tells that a checkpoint is whole.
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in self.kept().items():
                write_json(folder / name, data)
        super()._save_checkpoint(model, trial)

    def save_result(self, tokenizer: Any, provenance: Mapping[str, Any], *, rationales: Iterable[str]) -> None:
        """Writes the trained checkpoint and the run's history (see `checkpoint.save_checkpoint`)."""
        if self.is_world_process_zero():
            self._save_result(tokenizer, provenance, rationales)
        wait_for_everyone()  # who goes on from this checkpoint must find it whole

    def _save_result(self, tokenizer: Any, provenance: Mapping[str, Any], rationales: Iterable[str]) -> None:
        output = self.recipe.output
        save_checkpoint(
            output,
            self.accelerator.unwrap_model(self.model),
            tokenizer,
            task=self.recipe.task,
            provenance=provenance,
            rationales=rationales,
        )
        write_json(output / HISTORY, {"log": self.state.log_history})

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self._sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model if model is not None else self.model
            pretrained = model.get_encoder().parameters() if self.recipe.template is None else ()
            self.optimizer = adamw(model, self.recipe, pretrained, self.get_decay_parameter_names(model))
        return self.optimizer


def adamw(
    model: torch.nn.Module, recipe: StageRecipe, pretrained: Iterable[torch.nn.Parameter], decay: Iterable[str]
) -> torch.optim.Optimizer:
    """AdamW over what is to be trained, in which `pretrained` learns at the recipe's `encoder_rate`.

    Args:
        model: the model.
        recipe: rate, encoder's share of it and weight decay.
        pretrained: the pretrained encoder's parameters.
        decay: names of the parameters that decay.
    """
    encoder, decaying = {id(parameter) for parameter in pretrained}, set(decay)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in encoder, name in decaying), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.learning_rate * (recipe.encoder_rate if in_encoder else 1.0),
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            for (in_encoder, decays), parameters in groups.items()
        ],
        lr=recipe.learning_rate,
        fused=True,
    )


class SamplerEpoch(TrainerCallback):
    """Tells a sampler its epoch: resumed, or among several processes, the Trainer does not reach it."""

    def __init__(self, sampler: LengthBucketedSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class SaveBetweenEvaluations(TrainerCallback):
    """Saves at every so many steps after an evaluation, too.

    The Trainer, where it keeps the best checkpoint, saves at evaluations only.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % state.eval_steps % self._steps == 0:
            control.should_save = True


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
    begin(
        recipe.output,
        recipe.settings(),
        recipe.files,
        recipe.checkpoint,
        state=recipe.output / "checkpoints",
        resume=resume,
        finished=recipe.output / HISTORY,
    )


def is_finished(recipe: StageRecipe) -> bool:
    """Whether a stage of this very recipe, data and starting weights has been trained to its end."""
    record = recipe.output / HISTORY
    return record.exists() and is_run(recipe.output, recipe.settings(), recipe.files, recipe.checkpoint)


def last_checkpoint(recipe: StageRecipe) -> str | None:
    """The newest whole checkpoint of a run that was cut, or None.

    A kill can leave a checkpoint half written; the Trainer writes its state file last.
    """
    found = {}
    for folder in (recipe.output / "checkpoints").glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            found[int(state["global_step"])] = str(folder)
    return found[max(found)] if found else None


def _seconds_until(checkpoint: Path) -> float:
    """What a run had taken when it wrote this checkpoint; 0 where an earlier version wrote it."""
    try:
        return float(json.loads((checkpoint / SECONDS_FILE).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0
