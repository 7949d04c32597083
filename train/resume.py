"""What makes two runs the same run: a run that was cut is only ever resumed as itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train.files import file_sha256, replace_file
from train.recipe import RecipeError

RUN_FILE = "run.json"


def begin(
    output: Path,
    settings: Mapping[str, Any],
    files: Iterable[Path],
    checkpoint: str,
    *,
    state: Path,
    resume: bool,
    finished: Path | None = None,
) -> None:
    """Starts a run in `output`, or checks that the one to be resumed there is the same.

    Args:
        settings: the recipe.
        files: its data.
        checkpoint: what it starts from.
        state: the file or folder that a cut run left to go on from.
        resume: False throws that state away.
        finished: the file that tells of a finished run; an earlier one's is thrown away where another run starts.

    Raises:
        RecipeError: `state` is of a run with other settings, data or starting weights.
    """
    if int(os.environ.get("RANK", "0")) == 0:  # one process speaks for all
        _begin(output, _identity(settings, files, checkpoint), state=state, resume=resume, finished=finished)
    wait_for_everyone()


def is_run(output: Path, settings: Mapping[str, Any], files: Iterable[Path], checkpoint: str) -> bool:
    """Whether the run recorded in `output` is this one; arguments as for `begin`."""
    record = output / RUN_FILE
    if not record.exists():
        return False
    same: bool = json.loads(record.read_text(encoding="utf-8")) == _identity(settings, files, checkpoint)
    return same


def processes() -> int:
    """How many processes train together: what torchrun says, or one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_everyone() -> None:
    """Under torchrun, returns once every process has come here."""
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def _identity(settings: Mapping[str, Any], files: Iterable[Path], checkpoint: str) -> dict[str, Any]:
    weights = Path(checkpoint) / "model.safetensors"
    identity = {
        **{key: value for key, value in settings.items() if key != "output"},
        "data": {path.as_posix(): file_sha256(path) for path in files},
        "weights": file_sha256(weights) if weights.is_file() else checkpoint,
    }
    # Each process has a batch of its own: with their number, the rows of a step and the schedule would change.
    # One process goes without saying, as in the records of earlier versions.
    if processes() > 1:
        identity["processes"] = processes()
    plain: dict[str, Any] = json.loads(json.dumps(identity, default=str))
    return plain


def _begin(output: Path, identity: Mapping[str, Any], *, state: Path, resume: bool, finished: Path | None) -> None:
    record = output / RUN_FILE
    if not resume:
        shutil.rmtree(state) if state.is_dir() else state.unlink(missing_ok=True)
    if state.exists() and record.exists():
        begun = json.loads(record.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*begun, *identity} if begun.get(key) != identity.get(key))
        if changed:
            raise RecipeError(
                f"the run in {output} was begun with other {', '.join(changed)}: "
                "choose another output, or throw it away with --no-resume"
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    if finished is not None:  # else this run, were it cut, would be taken for finished
        finished.unlink(missing_ok=True)
    with replace_file(record) as temporary:
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
