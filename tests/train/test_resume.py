import json
from pathlib import Path

import pytest

from train.recipe import RecipeError
from train.resume import RUN_FILE, begin, is_run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    return path


def _begin(output: Path, data: Path, *, resume: bool = True, **settings: object) -> None:
    begin(output, {"epochs": 2, **settings}, [data], "a/hub-name", state=output / "checkpoints", resume=resume)


def test_only_the_same_run_is_resumed(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    _begin(output, data)
    (output / "checkpoints").mkdir()
    _begin(output, data)
    with pytest.raises(RecipeError, match="other epochs, seed"):
        _begin(output, data, epochs=3, seed=1)
    data.write_text("{}\n{}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="other data"):
        _begin(output, data)


def test_only_as_many_processes_go_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has a batch of its own: with more of them, the schedule and the place in the data would jump."""
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    _begin(alone, data)
    assert "processes" not in json.loads((alone / RUN_FILE).read_text(encoding="utf-8"))  # as of earlier versions
    (alone / "checkpoints").mkdir()
    monkeypatch.setattr("train.resume.wait_for_everyone", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="begun with other processes"):
        _begin(alone, data)
    assert not is_run(alone, {"epochs": 2}, [data], "a/hub-name")
    _begin(pair, data)
    (pair / "checkpoints").mkdir()
    _begin(pair, data)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(RecipeError, match="begun with other processes"):
        _begin(pair, data)
    _begin(alone, data)


def test_no_resume_throws_the_old_state_away(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "run"
    _begin(output, data)
    (output / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    _begin(output, data, resume=False, epochs=3)
    assert not (output / "checkpoints").exists()
    _begin(output, data, epochs=3)


def test_without_state_nothing_binds(tmp_path: Path, data: Path) -> None:
    _begin(tmp_path, data)
    _begin(tmp_path, data, epochs=3)
