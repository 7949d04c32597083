from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convert.golden import sample_rows
from tests.tiny_models import write_tiny_bart, write_tiny_t5

GOLDEN_ROWS = 5
WRITERS: dict[str, Callable[[Path], Path]] = {
    "t5-tied": write_tiny_t5,
    "t5-untied-gated": lambda folder: write_tiny_t5(folder, tied=False, gated=True),
    "t5-other-epsilon": lambda folder: write_tiny_t5(folder, layer_norm_epsilon=0.05),
    "mt5": lambda folder: write_tiny_t5(folder, tied=False, gated=True, mt5=True),
    "bart": write_tiny_bart,
    "bart-scaled-embedding": lambda folder: write_tiny_bart(folder, scale_embedding=True),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny checkpoints by shape, each made once; not to be changed."""
    made: dict[str, Path] = {}

    def get(shape: str) -> Path:
        if shape not in made:
            made[shape] = WRITERS[shape](tmp_path_factory.mktemp("checkpoint") / shape)
            lines = [json.dumps({"id": row.id, "text": row.text}) + "\n" for row in sample_rows()[:GOLDEN_ROWS]]
            (made[shape] / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
        return made[shape]

    return get


@pytest.fixture
def own(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny checkpoint that a test may damage."""

    def copy(shape: str) -> Path:
        return Path(shutil.copytree(tiny(shape), tmp_path / f"own-{shape}"))

    return copy
