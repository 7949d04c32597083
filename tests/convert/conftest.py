from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convert.golden import sample_rows
from tests.tiny_models import gemma3_rope, write_tiny_bart, write_tiny_causal, write_tiny_t5

GOLDEN_ROWS = 5
WRITERS: dict[str, Callable[[Path], Path]] = {
    "t5-tied": write_tiny_t5,
    "t5-untied-gated": lambda folder: write_tiny_t5(folder, tied=False, gated=True),
    "t5-other-epsilon": lambda folder: write_tiny_t5(folder, layer_norm_epsilon=0.05),
    "mt5": lambda folder: write_tiny_t5(folder, tied=False, gated=True, mt5=True),
    "bart": write_tiny_bart,
    "bart-scaled-embedding": lambda folder: write_tiny_bart(folder, scale_embedding=True),
    "llama": write_tiny_causal,
    "llama-untied": lambda folder: write_tiny_causal(folder, tied=False),
    "llama-no-gqa": lambda folder: write_tiny_causal(folder, num_key_value_heads=4),
    "llama-biased": lambda folder: write_tiny_causal(folder, attention_bias=True, mlp_bias=True, rms_norm_eps=0.05),
    "llama-linear-rope": lambda folder: write_tiny_causal(
        folder, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "qwen2": lambda folder: write_tiny_causal(folder, "Qwen2", tied=False, rms_norm_eps=0.05),
    "qwen3": lambda folder: write_tiny_causal(folder, "Qwen3", head_dim=12),
    "gemma": lambda folder: write_tiny_causal(folder, "Gemma", head_dim=12),
    "gemma3": lambda folder: write_tiny_causal(
        folder, "Gemma3", rms_norm_eps=0.05, query_pre_attn_scalar=8, **gemma3_rope(500.0, 20_000.0)
    ),
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
