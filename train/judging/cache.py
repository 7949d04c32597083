"""A judge's answers on disk, so that a run that was cut goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.judging.rubric import Question


def answer_key(identity: Mapping[str, Any], question: Question) -> str:
    """What an answer depends on, as one hash: the judge with its options, the prompt, the allowed answers."""
    content = [identity, question.prompt, question.form.schema()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class AnswerCache:
    """Answers by key in a JSON Lines file that is only ever appended to.

    The file holds what the judge wrote, word for word, which may quote a note: keep it as you keep the notes.
    A line that was cut while it was written is passed over. One process may write at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, str] = {}
        self._torn = False
        if path.exists():
            text = path.read_bytes().decode("utf-8", "replace")
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.split("\n"):
                self._take(line)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer to a question that was asked before."""
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        """Keeps an answer; it is in the file when this returns."""
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n" + line if self._torn else line)
        self._torn = False
        self._answers[key] = answer

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if isinstance(entry, dict) and isinstance(entry.get("key"), str) and isinstance(entry.get("answer"), str):
            self._answers[entry["key"]] = entry["answer"]
