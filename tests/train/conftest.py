import json
from pathlib import Path

import pytest
import torch

from tests.tiny_models import TEXTS
from train.recipe import FitRecipe, Stage1Recipe

LABELS = ["resuscitation", "emergent", "urgent", "less urgent", "non-urgent"]


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Path]:
    """A training and a validation file in the dataset schema, a few rows a label."""
    paths = {}
    for part, count in (("train", 4), ("validation", 1)):
        lines = []
        for number in range(count):
            for index, label in enumerate(LABELS):
                text = TEXTS[1 + (number + index) % 8] + f" {part} {number} {index}"
                rationales = {"llm": TEXTS[1 + index], "nurse": label} if (number, index) != (0, 0) else {}
                lines.append({"id": f"{part}-{number}-{index}", "text": text, "label": label, "rationales": rationales})
        paths[part] = tmp_path / f"{part}.jsonl"
        paths[part].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths


def _settings(rows: dict[str, Path]) -> dict[str, object]:
    return {
        "train": [rows["train"]],
        "validation": {"tiny": rows["validation"]},
        "labels": LABELS,
        "max_input": 96,
        "max_rationale": 32,
        "batch_size": 4,
        "dropout": 0.1,
        "bf16": False,
        "learning_rate": 1e-3,
        "log_steps": 1,
        "epochs": 2.0,
    }


@pytest.fixture
def stage1_recipe(rows: dict[str, Path], tmp_path: Path):
    def make(checkpoint: Path, **changes: object) -> Stage1Recipe:
        settings = {**_settings(rows), "sources": ["llm", "nurse"], "output": tmp_path / "stage1", **changes}
        return Stage1Recipe(checkpoint=str(checkpoint), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def fit_recipe(rows: dict[str, Path], tmp_path: Path):
    def make(checkpoint: Path, **changes: object) -> FitRecipe:
        settings = {**_settings(rows), "output": tmp_path / "fit", "evaluations": 5, "stage1_epochs": 0.0, **changes}
        return FitRecipe(checkpoint=str(checkpoint), **settings)  # type: ignore[arg-type]

    return make
