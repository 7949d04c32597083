"""A tiny study on a tiny model, for the tests of the study."""

import json
from pathlib import Path

from tests.tiny_models import TEXTS, write_tiny_bart
from train.study.spec import Study, build_study

LABELS = ["low", "middle", "high"]


def write_rows(path: Path, count: int, name: str) -> Path:
    lines = [
        {
            "id": f"{name}-{row}",
            "text": f"{TEXTS[1 + row % 8]} {name} {row}",
            "label": LABELS[row % 3],
            "rationales": {"llm": TEXTS[1 + row % 3], "nurse": TEXTS[4 + row % 3]},
        }
        for row in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def study_data(folder: Path, **changes) -> dict:
    """The study as plain data; its files are written to `folder`."""
    base = folder / "base"
    if not base.exists():
        write_tiny_bart(base)
        write_rows(folder / "train.jsonl", 12, "train")
        write_rows(folder / "validation.jsonl", 6, "validation")
    data = {
        "name": "tiny",
        "runs": (folder / "runs").as_posix(),
        "results": (folder / "results").as_posix(),
        "methods": ["sft", "r2d"],
        "sources": ["llm"],
        "seeds": [1],
        "sizes": {"tiny": base.as_posix()},
        "data": {
            "notes": {
                "train": [(folder / "train.jsonl").as_posix()],
                "validation": {"tiny": (folder / "validation.jsonl").as_posix()},
                "labels": LABELS,
            }
        },
        "recipe": {
            "max_input": 96,
            "max_rationale": 16,
            "epochs": 2,
            "stage1_epochs": 1,
            "batch_size": 6,
            "learning_rate": 1e-3,
            "evaluations": 2,
            "bf16": False,
        },
        "evaluation": {"bertscore": False},
    }
    return {**data, **changes}


def tiny_study(folder: Path, **changes) -> Study:
    return build_study(study_data(folder, **changes), "tiny.toml")
