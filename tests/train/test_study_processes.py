"""A study's cells in processes of their own: how they are begun, and what tells that they are done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.train.study_files import study_data, tiny_study
from train.cli import main
from train.study import parallel
from train.study.own_data import _toml
from train.study.results import Result, write_result
from train.study.run import result_path

ROOT = Path(__file__).parents[2]


def silent(_: str) -> None: ...


def test_a_code_page_that_lacks_an_arrow_stops_no_table(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(_toml(study_data(tmp_path, methods=["r2d"], sources=[["nurse", "llm"]])), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "train", "study", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8")
    assert "nurse → llm" in done.stdout.decode("utf-8")


@pytest.mark.parametrize(("code", "finished"), [(1, True), (0, False)])
def test_a_cell_is_judged_by_its_result(
    code: int, finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_study(tmp_path, methods=["sft"])
    [cell] = study.cells
    commands = []

    def child(command, **_):
        commands.append(command)
        if finished:
            write_result(result_path(study, cell), Result(cell.digest))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(parallel.subprocess, "run", child)
    said: list[str] = []
    failed = parallel.run_in_processes(tmp_path / "tiny.toml", study, study.cells, [{}], said.append)
    assert failed == ([] if finished else [cell.name])
    assert said[-1] == f"{cell.name}: {'finished' if finished else 'failed'}"
    assert commands[0][-3:] == ["--jobs", "1", "--no-plots"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_one_job_among_several_gpus_has_one_to_itself(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_gpus", lambda: [str(index) for index in range(gpus)])
    places = []
    monkeypatch.setattr(parallel, "run_in_processes", lambda *arguments: places.extend(arguments[3]) or [])
    monkeypatch.setattr("train.study.run.run_cells", lambda *_: [])
    file = tmp_path / "tiny.toml"
    file.write_text(_toml(study_data(tmp_path)), encoding="utf-8")
    result = CliRunner().invoke(main, ["study", str(file), "--train", "--jobs", "1", "--no-plots"])
    assert result.exit_code == 0, result.stderr
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in places] == (["0"] if gpus else [])
