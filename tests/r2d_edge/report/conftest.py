from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.task import CTAS_LEVELS
from tests.cli.bundles import make_bundle
from tests.tiny_models import TEXTS

NOTES = TEXTS[1:9]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint (`checkpoint`) and its float32 bundle (`bundle`)."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("report")
    make_bundle(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled(count: int = 16) -> list[dict[str, Any]]:
    """Rows over all labels, whose texts differ."""
    return [
        {
            "id": f"row-{number}",
            "text": f"{NOTES[number % 8]} Seen {number} times.",
            "label": CTAS_LEVELS[number % 5],
            "rationales": {"llm": TEXTS[1 + number % 5], "nurse": f"short {number}"},
        }
        for number in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data.jsonl", labelled())
