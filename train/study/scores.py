"""A language model's scores of a cell's rationales, as the study file's table `[judge]` asks for them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2d_edge.errors import R2DError
from train.judging.backends import Backend, weakness
from train.judging.cache import AnswerCache
from train.judging.command import open_backend
from train.judging.judge import judge_scores
from train.judging.rubric import SCORE_RUBRIC, rubric_sha256
from train.recipe import RecipeError

_SEED = 13
_COUNTS = ("limit", "parallel")
_BACKEND = set(inspect.signature(open_backend).parameters)
_NOT_ASKED = {"api_key_env", "i_may_send_notes", "allow_http", "timeout", "parallel"}  # no answer depends on them


def judge_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a study's judge, as far as can be told without opening a local model."""
    known = _BACKEND.union(_COUNTS)
    problems = [
        f"judge has no option {key!r}; it has: {', '.join(sorted(known))}" for key in options if key not in known
    ]
    for key in _COUNTS:
        if type(options.get(key, 1)) is not int or options.get(key, 1) < 1:
            problems.append(f"judge.{key} must be a whole number from 1, not {options[key]!r}")
    named = options.keys() & {"endpoint", "gguf", "transformers"}
    if options and not problems and (len(named) != 1 or "endpoint" in named):
        try:
            # The tables can be made without the service's key.
            open_judge({key: value for key, value in options.items() if key != "api_key_env"})
        except RecipeError as error:
            problems.append(str(error))
    return problems


def open_judge(options: Mapping[str, Any]) -> Backend:
    """The judge that a study names.

    Raises:
        RecipeError: it cannot be opened, or notes may not be sent to it.
    """
    try:
        return open_backend(**{"seed": _SEED, **{key: value for key, value in options.items() if key in _BACKEND}})
    except (R2DError, TypeError, AttributeError) as error:
        raise RecipeError(f"the judge cannot be used (an option --a-b is the key a_b of [judge]): {error}") from None


def options_digest(options: Mapping[str, Any]) -> str:
    """What tells whether a result's scores are those that a study asks for."""
    asked = {key: value for key, value in options.items() if key not in _NOT_ASKED}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8")).hexdigest()


def score_sets(
    options: Mapping[str, Any], folder: Path, data: Mapping[str, Path], cache: Path
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Scores the rationales of an evaluation.

    Args:
        options: the study's judge.
        folder: where the evaluation has written its records; a set without rationales is passed over.
        data: the sets' files by name.
        cache: the file of answers, from which a run that was cut goes on.

    Returns:
        By set and row id the mean of the four scores, 1 to 5, where the judge gave them; and, for the result, who
        judged.

    Raises:
        RecipeError: the judge cannot be opened.
        JudgeError: it failed.
    """
    backend = open_judge(options)
    answers = AnswerCache(cache)
    seed = options.get("seed", _SEED)
    scores: dict[str, dict[str, float]] = {}
    counts: dict[str, Any] = {}
    for name, path in data.items():
        records = folder / f"{name}.jsonl"
        lines = records.read_text(encoding="utf-8").split("\n")
        if not any(json.loads(line)["rationale"] is not None for line in lines if line):
            continue
        found = judge_scores(
            records,
            path,
            backend,
            answers,
            limit=options.get("limit"),
            seed=seed,
            parallel=options.get("parallel", 1),
        )
        counts[name] = found["answers"]
        judged = {row["id"]: row["scores"] for row in found["judgements"] if row["scores"] is not None}
        scores[name] = {row: sum(given.values()) / len(given) for row, given in judged.items()}
    judge = {**backend.identity, "parameters": backend.parameters, "rubric_sha256": rubric_sha256(SCORE_RUBRIC)}
    asked = {"identity": judge, "seed": seed, "limit": options.get("limit"), "warning": weakness(backend)}
    return scores, {**asked, "options": options_digest(options), "answers": counts}
