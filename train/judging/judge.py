"""Judging record files: single scores on a rubric, or pairs of rationales asked in both orders.

Asking each pair twice with the places swapped, and counting a win only where both answers agree, keeps a
judge's liking for a place out of the wins (Zheng et al. 2023, NeurIPS, arXiv 2306.05685).
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2d_edge.bootstrap import Figure, estimate, mean, ratio
from r2d_edge.task import LabelSet
from train.data import Example, read_dataset
from train.files import describe_file
from train.judging.backends import Backend, weakness
from train.judging.cache import AnswerCache, answer_key
from train.judging.rubric import (
    CRITERIA,
    PAIR_RUBRIC,
    SCORE_RUBRIC,
    JudgeError,
    Question,
    RefusedError,
    pair_question,
    rubric_sha256,
    score_question,
)

SCHEMA = 1
MAX_LISTED = 5
_FIRST_FEW = 10  # questions: a judge that refuses them all is set up wrongly

Verdict = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Case:
    """One row to judge: its note, its gold label, and a rationale from each record file."""

    id: str
    note: str
    label: str
    rationales: tuple[str, ...]


def judge_scores(
    records: Path,
    data: Path,
    backend: Backend,
    cache: AnswerCache,
    *,
    limit: int | None = None,
    seed: int = 13,
    parallel: int = 1,
) -> dict[str, Any]:
    """Scores the rationales of one record file, 1 to 5 on each criterion.

    Args:
        records: a file that `evaluate` wrote.
        data: the data set with the notes of these records.
        limit: judge a random sample of so many rows; None judges all.
        seed: of the sample, the marks in the prompts and the intervals.
        parallel: questions under way at once (endpoints only).

    Returns:
        JSON-ready: the judge, the rubric's hash, `answers` (asked, refused, unparsable), for each criterion and in all
        `value`, `low`, `high` (mean and 95 % interval over the rows that could be read; null without one) and
        `counts` of each score, and the scores of every row. The same answers give the same result.

    Raises:
        JudgeError: the files do not fit each other, or the judge fails.
        DatasetError: the data set has faults.
    """
    cases, available = read_cases([records], data, limit, seed)
    questions = [score_question(case.id, case.note, case.label, case.rationales[0], seed=seed) for case in cases]
    answers, counts = _ask_all(questions, backend, cache, parallel)
    read = [[int(answer[criterion]) for criterion in CRITERIA] for answer in answers if answer is not None]
    table = np.array(read, dtype=float).reshape(-1, len(CRITERIA))
    scores: dict[str, Any] = {
        criterion: {
            **_interval(mean(column), seed),
            "counts": {str(score): int((column == score).sum()) for score in range(1, 6)},
        }
        for criterion, column in zip(CRITERIA, table.T, strict=True)
    }
    scores["overall"] = _interval(mean(table.mean(axis=1)), seed)
    return {
        "schema": SCHEMA,
        "mode": "score",
        **_origin(backend, SCORE_RUBRIC, [records], data, seed),
        "rows": {"available": available, "judged": len(cases), "blank_rationales": _blank(cases, 0)},
        "answers": counts,
        "scores": scores,
        "judgements": [{"id": case.id, "scores": answer} for case, answer in zip(cases, answers, strict=True)],
    }


def judge_pairs(
    first: Path,
    second: Path,
    data: Path,
    backend: Backend,
    cache: AnswerCache,
    *,
    limit: int | None = None,
    seed: int = 13,
    parallel: int = 1,
) -> dict[str, Any]:
    """Compares the rationales of two record files row by row, each pair in both orders.

    Arguments and errors as of `judge_scores`; `first` is a and `second` is b in the result.

    Returns:
        JSON-ready, as `judge_scores`, with what `summarize_pairs` gives and both answers of every row.
    """
    cases, available = read_cases([first, second], data, limit, seed)
    questions = []
    for case in cases:
        a, b = case.rationales
        questions += [
            pair_question(case.id, case.note, case.label, a, b, seed=seed),
            pair_question(case.id, case.note, case.label, b, a, seed=seed),
        ]
    answers, counts = _ask_all(questions, backend, cache, parallel)
    named = [None if answer is None else str(answer["better"]) for answer in answers]
    verdicts = [
        (_verdict(straight, a_place="A"), _verdict(swapped, a_place="B"))
        for straight, swapped in zip(named[::2], named[1::2], strict=True)
    ]
    return {
        "schema": SCHEMA,
        "mode": "pair",
        **_origin(backend, PAIR_RUBRIC, [first, second], data, seed),
        "rows": {
            "available": available,
            "judged": len(cases),
            "blank_rationales": {"a": _blank(cases, 0), "b": _blank(cases, 1)},
        },
        "answers": counts,
        **summarize_pairs(verdicts, seed=seed),
        "judgements": [
            {"id": case.id, "a_first": pair[0], "b_first": pair[1], "outcome": outcome(*pair)}
            for case, pair in zip(cases, verdicts, strict=True)
        ],
    }


def outcome(a_first: Verdict | None, b_first: Verdict | None) -> Verdict | None:
    """What two answers to one pair come to: a win if both say so, None if one could not be read, else a tie."""
    if a_first is None or b_first is None:
        return None
    return a_first if a_first == b_first else "tie"


def summarize_pairs(verdicts: Sequence[tuple[Verdict | None, Verdict | None]], *, seed: int) -> dict[str, Any]:
    """The figures of pairs that were asked twice, first with a and then with b in the first place.

    Returns:
        `wins_a`, `wins_b`; `ties` with how many were `agreed` (two answers "tie") and `disagreed`; `unjudged`
        rows (a question refused or an answer unparsable, in no other figure);
        `preference_a`: wins of a plus half the ties, as a share of the judged rows;
        `sign_test_p`: two-sided exact, over the rows that one side won;
        `self_agreement`: the share of judged rows with the same verdict in both orders (a judge that always
        answers "tie" has 1, one that always names a place has 0);
        `position`: how often the judged rows' answers named the first place, the second, or neither, and the
        first place's share of those that named one (0.5 is no bias). Shares with 95 % intervals over rows.
    """
    judged = [(a_first, b_first) for a_first, b_first in verdicts if a_first is not None and b_first is not None]
    outcomes = [outcome(*pair) for pair in judged]
    counts = Counter(outcomes)
    agreed = [a_first == b_first for a_first, b_first in judged]
    named_first = np.array([(a_first == "a") + (b_first == "b") for a_first, b_first in judged], dtype=float)
    named_second = np.array([(a_first == "b") + (b_first == "a") for a_first, b_first in judged], dtype=float)
    points = [{"a": 1.0, "tie": 0.5, "b": 0.0}[found] for found in outcomes if found is not None]
    return {
        "wins_a": counts["a"],
        "wins_b": counts["b"],
        "ties": {
            "all": counts["tie"],
            "agreed": sum(pair == ("tie", "tie") for pair in judged),
            "disagreed": agreed.count(False),
        },
        "unjudged": len(verdicts) - len(judged),
        "preference_a": _interval(mean(points), seed),
        "sign_test_p": sign_test(counts["a"], counts["b"]),
        "self_agreement": _interval(mean(agreed), seed),
        "position": {
            "first": int(named_first.sum()),
            "second": int(named_second.sum()),
            "neither": int(2 * len(judged) - named_first.sum() - named_second.sum()),
            "first_share": _interval(ratio(named_first, named_first + named_second), seed),
        },
    }


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test (a binomial test against one half); 1 where nothing was won or lost."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << n))


def read_cases(files: Sequence[Path], data: Path, limit: int | None, seed: int) -> tuple[list[Case], int]:
    """The rows to judge, in the first file's order, and of how many they are a sample.

    Raises:
        JudgeError: a record is not as `evaluate` writes it, the files hold different rows, or a row's note or
            gold label is not the data set's.
        DatasetError: the data set has faults.
    """
    if limit is not None and limit < 1:
        raise JudgeError(f"a sample needs a row or more, not {limit}")
    tables = [_read_records(path) for path in files]
    ids = list(tables[0])
    for path, table in zip(files[1:], tables[1:], strict=True):
        _refuse(sorted(set(table) ^ set(ids)), f"{files[0]} and {path} do not hold the same rows; only in one")
    examples = {example.id: example for example in read_dataset(data, LabelSet((), "open"))}
    _refuse([row for row in ids if row not in examples], f"{data} does not hold the notes of these rows")
    for path, table in zip(files, tables, strict=True):
        other = [row for row in ids if table[row]["gold"] != examples[row].label]
        _refuse(other, f"{path} and {data} have different gold labels for")
    if limit is not None and limit < len(ids):
        kept = set(random.Random(seed).sample(sorted(ids), limit))
        chosen = [row for row in ids if row in kept]
    else:
        chosen = ids
    return [_case(examples[row], [table[row] for table in tables]) for row in chosen], len(ids)


def _case(example: Example, records: Iterable[dict[str, Any]]) -> Case:
    return Case(example.id, example.text, example.label, tuple(record["rationale"] or "" for record in records))


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise JudgeError(f"{path} is not UTF-8") from None
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise JudgeError(f"{path}, line {number}: not JSON") from None
        if (
            not isinstance(record, dict)
            or not all(isinstance(record.get(key), str) for key in ("id", "gold"))
            or not isinstance(record.get("rationale"), (str, type(None)))
            or "rationale" not in record
        ):
            raise JudgeError(f"{path}, line {number}: not a record with texts `id`, `gold` and `rationale`")
        if record["id"] in records:
            raise JudgeError(f"{path}, line {number}: id {record['id']!r} stands twice")
        records[record["id"]] = record
    if not records:
        raise JudgeError(f"{path} holds no record")
    if all(record["rationale"] is None for record in records.values()):
        raise JudgeError(f"{path} holds no rationales: evaluate with them")
    return records


def _refuse(ids: Sequence[str], what: str) -> None:
    if ids:
        more = f" and {len(ids) - MAX_LISTED} more" if len(ids) > MAX_LISTED else ""
        raise JudgeError(f"{what}: {', '.join(ids[:MAX_LISTED])}{more}")


def _ask_all(
    questions: Sequence[Question], backend: Backend, cache: AnswerCache, parallel: int
) -> tuple[list[dict[str, int | str] | None], dict[str, Any]]:
    """Each question's answer, from the cache or from the judge, None without one that can be read; and their counts.

    Every new answer is kept at once. A refusal is not kept: another run asks again, as what stood against the question
    may be gone.
    """
    from tqdm import tqdm

    keys = [answer_key(backend.identity, question) for question in questions]
    # By key: two questions can be the same, as where both rationales of a pair are.
    missing = {key: question for key, question in zip(keys, questions, strict=True) if cache.get(key) is None}
    answers = _answers_of(list(missing.values()), backend, parallel, answered=len(missing) < len(set(keys)))
    for key, answer in tqdm(zip(missing, answers, strict=True), total=len(missing), desc="judge", disable=None):
        if answer is not None:
            cache.put(key, answer)
    texts = [cache.get(key) for key in keys]
    read = [
        None if text is None else question.form.parse(text) for question, text in zip(questions, texts, strict=True)
    ]
    refused = texts.count(None)
    unparsable = read.count(None) - refused
    counts = {"asked": len(read), "refused": refused, "unparsable": unparsable}
    return read, {**counts, "unparsable_share": unparsable / len(read)}


def _answers_of(
    questions: Sequence[Question], backend: Backend, parallel: int, *, answered: bool
) -> Iterator[str | None]:
    """Each question's answer, None where the judge refuses the question.

    Args:
        answered: whether the judge has answered a question of this run before.

    Raises:
        JudgeError: it failed, or refuses the first few questions, which is no matter of single rows.
    """
    refused: list[str] = []

    def ask(question: Question) -> str | None:
        nonlocal answered
        try:
            answer = backend.ask(question.prompt, question.form)
        except RefusedError as error:
            refused.append(question.row)
            if not answered and len(refused) >= min(_FIRST_FEW, len(questions)):
                raise JudgeError(
                    f"row {question.row}: {error}; the judge refused all of the first {len(refused)} questions"
                ) from None
            return None
        except JudgeError as error:
            raise JudgeError(f"row {question.row}: {error}") from None
        answered = True
        return answer

    if parallel == 1:
        yield from map(ask, questions)
        return
    with ThreadPoolExecutor(parallel) as pool:
        yield from pool.map(ask, questions)


def _verdict(named: str | None, *, a_place: str) -> Verdict | None:
    if named is None or named == "tie":
        return named  # type: ignore[return-value]  # exactly these two
    return "a" if named == a_place else "b"


def _origin(backend: Backend, rubric: str, files: Sequence[Path], data: Path, seed: int) -> dict[str, Any]:
    return {
        "judge": {**backend.identity, "parameters": backend.parameters},
        "warning": weakness(backend),
        "rubric_sha256": rubric_sha256(rubric),
        "seed": seed,
        "records": [describe_file(path) for path in files],
        "data": describe_file(data),
    }


def _blank(cases: Sequence[Case], file: int) -> int:
    return sum(not case.rationales[file].strip() for case in cases)


def _interval(figure: Figure, seed: int) -> dict[str, float | None]:
    """A figure with its 95 % interval; nulls where there was no row or it is undefined."""
    if not len(figure.rows):
        return {"value": None, "low": None, "high": None}
    found = estimate(figure, seed=seed)._asdict()
    return {name: None if math.isnan(value) else float(value) for name, value in found.items()}
