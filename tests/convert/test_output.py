"""What stands in the way of writing is said in a line, and what stood at the output stands there still."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from convert.__main__ import main
from convert.errors import ConversionError
from convert.output import put_in_place, workspace


def shallow(checkpoint: Path, output: Path) -> Result:
    return CliRunner().invoke(main, ["shallow", str(checkpoint), "--decoder-layers", "1", "-o", str(output)])


def test_a_parent_that_cannot_be_made_is_one_line(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ran = shallow(tiny("bart"), tmp_path / "file" / "below" / "student")
    assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "file") in line
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "error: {parent}: No space left on device"),
        (PermissionError(13, "Permission denied", "of-its-own"), "error: of-its-own: Permission denied"),
        (OSError("a message\nof many lines"), "error: a message"),
        (OSError(), "error: OSError"),
    ],
)
def test_an_error_of_the_system_names_path_and_reason(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("convert.shallow.write_tensors", fail)
    ran = shallow(tiny("bart"), tmp_path / "student")
    assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
    assert ran.stderr.splitlines()[-1] == words.format(parent=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_own_error_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"I/O|IO|[Dd]irectory"), workspace(tmp_path / "student") as work:
        save_file({"weight": np.zeros(1)}, work)  # no file can be written there, as on a full disk
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_moved_away_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "old").write_bytes(b"")
    move = Path.replace

    def held(path: Path, target: Path) -> Path:
        if path == output:
            raise PermissionError(13, "The process cannot access the file", os.fspath(path))
        return move(path, target)

    monkeypatch.setattr(Path, "replace", held)
    (tmp_path / "new").mkdir()
    with pytest.raises(ConversionError, match="cannot be moved"), workspace(output) as work:
        put_in_place(tmp_path / "new", output, work)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bundle", "new", "old"]


def test_what_stood_there_stands_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "old").write_bytes(b"")
    with pytest.raises(ConversionError, match="cannot be moved"), workspace(output) as work:
        put_in_place(work / "absent", output, work)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "old"]
