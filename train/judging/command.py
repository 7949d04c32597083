"""What `python -m train judge` does: open the judge, ask, write the result, print it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from r2d_edge.base_models import locate
from train.files import replace_file
from train.judging.backends import Backend, Endpoint, LlamaCpp, Transformers, weakness
from train.judging.cache import AnswerCache
from train.judging.judge import judge_pairs, judge_scores
from train.judging.rubric import JudgeError
from train.judging.table import result_table


def run(
    score: Path | None,
    pair: tuple[Path, Path] | None,
    data: Path,
    output: Path,
    *,
    cache: Path | None = None,
    limit: int | None = None,
    seed: int = 13,
    parallel: int = 1,
    **judge: Any,
) -> dict[str, Any]:
    """Judges, writes the result to `output` and prints it; arguments as the command's options.

    Raises:
        JudgeError: the options do not fit each other, the files do not fit, or the judge fails.
        DatasetError: the data set has faults.
    """
    if (score is None) == (pair is None):
        raise JudgeError("say either --score FILE or --pair FILE FILE")
    backend = open_backend(seed=seed, **judge)
    if parallel > 1 and not isinstance(backend, Endpoint):
        raise JudgeError("--parallel is for endpoints")
    notices = Console(stderr=True)
    if warning := weakness(backend):
        notices.print(f"warning: {warning}", style="yellow", markup=False)
    answers = AnswerCache(cache or output.with_suffix(".answers.jsonl"))
    before = len(answers)
    if pair is not None:
        result = judge_pairs(*pair, data, backend, answers, limit=limit, seed=seed, parallel=parallel)
    elif score is not None:
        result = judge_scores(score, data, backend, answers, limit=limit, seed=seed, parallel=parallel)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replace_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    notices.print(f"{len(answers) - before} new answers", markup=False)
    Console().print(result_table(result))
    return result


def open_backend(
    *,
    seed: int,
    endpoint: str | None = None,
    model: str | None = None,
    api_key_env: str | None = None,
    i_may_send_notes: bool = False,
    allow_http: bool = False,
    body: str | None = None,
    timeout: float = 120.0,
    gguf: str | None = None,
    context: int = 4096,
    transformers: str | None = None,
    constrain: bool = True,
    max_tokens: int = 64,
    billions: float | None = None,
) -> Backend:
    """The judge that the command's options name.

    Raises:
        JudgeError: they name none or several, or it cannot be opened.
    """
    if sum(judge is not None for judge in (endpoint, gguf, transformers)) != 1:
        raise JudgeError("name one judge: --endpoint URL --model NAME, --gguf PATH, or --transformers PATH")
    parameters = None if billions is None else billions * 1e9
    if gguf is not None:
        folder, file = locate(gguf)
        return LlamaCpp(
            Path(folder, file or ""),
            constrained=constrain,
            max_tokens=max_tokens,
            seed=seed,
            context=context,
            parameters=parameters,
        )
    if transformers is not None:
        return Transformers(transformers, constrained=constrain, max_tokens=max_tokens)
    if model is None or endpoint is None:
        raise JudgeError("--endpoint needs --model NAME")
    return Endpoint(
        endpoint,
        model,
        api_key=_key(api_key_env),
        may_send=i_may_send_notes,
        allow_http=allow_http,
        constrained=constrain,
        max_tokens=max_tokens,
        seed=seed,
        body=_fields(body),
        parameters=parameters,
        timeout=timeout,
    )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        # The value is not named: who mistakes the option for the key itself would find it in a log.
        raise JudgeError("the environment variable that --api-key-env names is not set")
    return key


def _fields(body: str | None) -> dict[str, Any]:
    if body is None:
        return {}
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise JudgeError("--body is not a JSON object")
    return fields
