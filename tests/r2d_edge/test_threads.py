import time
from pathlib import Path

import pytest

from r2d_edge import threads
from r2d_edge.bundle import Bundle, Manifest
from tests.tiny_models import TINY_TASK


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(threads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    return Bundle(tmp_path, Manifest("m", "1", TINY_TASK, "ctranslate2", "int8", {"a": {"size": 10}}), "digest")


def test_rule_depends_on_the_models_size(bundle: Bundle) -> None:
    assert threads.choose_threads(bundle).count == 1
    large = Bundle(bundle.root, Manifest("m", "1", TINY_TASK, "e", "t", {"a": {"size": 10**9}}), "other")
    assert threads.choose_threads(large).count == 4


def test_asked_wins(bundle: Bundle) -> None:
    assert threads.choose_threads(bundle, 3) == threads.ThreadChoice(3, "as asked")


def test_tuning_remembers_the_fastest_for_this_bundle_only(bundle: Bundle) -> None:
    naps = {1: 0.1, 2: 0.002, 4: 0.1}
    seconds = threads.tune(bundle, lambda count: lambda: time.sleep(naps[count]), repeats=2)
    assert set(seconds) == {1, 2, 4}
    assert threads.choose_threads(bundle).count == 2
    assert "measured" in threads.choose_threads(bundle).why
    other = Bundle(bundle.root, bundle.manifest, "other digest")
    assert threads.choose_threads(other).count == 1


def test_a_damaged_memory_is_ignored(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "threads.json").write_text("[not json", encoding="utf-8")
    assert threads.choose_threads(bundle).count == 1
