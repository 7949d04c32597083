"""Recipes: a TOML file a stage, with overrides from the command line."""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from r2d_edge.task import LabelKind, LabelSet, Limits, Task
from train.schedule import Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Recipe = TypeVar("Recipe")


class RecipeError(ValueError):
    """A recipe has unknown, missing or ill-typed keys; the message lists all of them."""


@dataclass(frozen=True)
class StageRecipe:
    """What both stages need. Lengths in tokens, rates per optimizer step.

    Attributes:
        checkpoint: a folder or a hub name that transformers loads as a seq2seq LM.
        sources: rationale sources to learn from; a row gives one target for each it has.
        encoder_rate: the encoder's and embeddings' learning rate as a share of the others'.
        warmup: share of the steps over which the learning rate grows; then it falls linearly to 0.
        bf16: bfloat16 autocast; None lets the hardware decide.
        attention: transformers' attention implementation; "auto" takes eager on a CPU, where it trains
            a third faster at note length.
    """

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
    save_steps: int = 200
    log_steps: int = 10

    @property
    def task(self) -> Task:
        """The task contract that this recipe trains for."""
        return Task(
            LabelSet(tuple(self.labels), self.label_kind),
            limits=Limits(input=self.max_input, label=self.max_label, rationale=self.max_rationale),
        )


@dataclass(frozen=True)
class Stage1Recipe(StageRecipe):
    """Stage 1: rationales alone."""


@dataclass(frozen=True)
class Stage2Recipe(StageRecipe):
    """Stage 2: label and rationale together; the schedule's numbers are the paper's.

    Attributes:
        evaluations: how many times the validation sets are scored over the whole training.
        int8_from: share of the steps after which activations are rounded as an int8 engine rounds them
            (quantization-aware training, not part of the paper's method); 1 never rounds.
        patience: evaluations without a better macro-F1 after which training stops; 0 never stops.
    """

    alpha: float = 0.7
    alpha_warmup: float = 0.05
    transition: float = 0.60
    cap: float = 0.9
    int8_from: float = 1.0
    evaluations: int = 20
    patience: int = 5


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
    recipe = kind(**values)
    try:
        if isinstance(recipe, StageRecipe):
            _ = recipe.task
        if isinstance(recipe, Stage2Recipe):
            Schedule(1, recipe.alpha, recipe.alpha_warmup, recipe.transition, recipe.cap)
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
    if bool in arguments and (value is None or isinstance(value, bool)):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError
