"""A report's folder: in its place whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from r2d_edge.errors import InputError

JSON = "report.json"
HTML = "report.html"
FILES = (JSON, HTML)


def check_output(output: Path, sources: Sequence[Path], *, force: bool) -> None:
    """Says before any work whether a report may be written to `output`.

    Args:
        output: the folder.
        sources: what is read and must outlive the writing.
        force: whether an earlier report may be replaced.

    Raises:
        InputError: something else stands there, or a report does and `force` is not given.
    """
    place = output.absolute()
    if any(place == source.absolute() or place in source.absolute().parents for source in sources):
        raise InputError(f"{output} holds what is compared: choose another folder for the report")
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{parent} is not a folder")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError(f"{output} exists and is not a folder: choose another name")
    if not output.exists() or not any(output.iterdir()):
        return
    if {path.name for path in output.iterdir()} - set(FILES):
        raise InputError(f"{output} holds something else than a report: choose another folder")
    if not force:
        raise InputError(f"{output} holds a report: choose another folder or replace it with --force")


def write_report(output: Path, files: Mapping[str, str]) -> None:
    """Writes the files of a report by name, UTF-8, beside the folder first and then in its place.

    Raises:
        InputError: the folder cannot be put in its place; what stood there stands again.
    """
    place = output.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    try:
        finished = work / "finished"
        finished.mkdir()
        for name, text in files.items():
            with (finished / name).open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        replaced = work / "replaced"
        if place.exists():
            place.replace(replaced)
        try:
            finished.replace(place)
        except OSError as error:
            if replaced.exists():
                replaced.replace(place)
            raise InputError(f"the report cannot be put at {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
