from pathlib import Path

import pytest

from train.recipe import RecipeError
from train.resume import begin


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
