"""A result in its place, whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from convert.errors import ConversionError


def check_output(
    output: Path, sources: Sequence[Path], *, what: str, replaceable: Callable[[Path], bool], force: bool
) -> list[str]:
    """Why nothing may be written to `output`; empty if it may.

    Args:
        sources: what is read and must outlive the writing.
        what: the kind of thing that is written, as "bundle".
        replaceable: tells whether an existing path is such a thing, which `force` may replace.
        force: whether to replace it.
    """
    reasons = []
    resolved = output.resolve()
    held = [source for source in sources if resolved == source.resolve() or resolved in source.resolve().parents]
    if held:
        reasons.append(f"{output} holds the checkpoint itself, or what else is read: choose another output")
    elif output.is_symlink() or output.exists():
        if not force:
            reasons.append(f"{output} exists: choose another name or replace it with --force")
        elif output.is_symlink() or not replaceable(output):
            reasons.append(f"{output} exists and is not a {what}: --force replaces {what}s only")
    parent = output.absolute().parent
    if parent.exists() and not parent.is_dir():
        reasons.append(f"{parent} is not a folder")
    return reasons


@contextlib.contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """A temporary folder beside the target, so that the last step is a rename.

    Raises:
        OSError: it cannot be made or written in; the error names a path.
        ConversionError: safetensors says so, in its own words.
    """
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=parent))
    try:
        yield work
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(parent)  # a disk that fills up while a file is written names none
        raise
    except SafetensorError as error:
        raise ConversionError([f"{parent}: {error}"]) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put_in_place(finished: Path, output: Path, work: Path) -> None:
    """Moves what is finished to its place; what stood there goes only once the new one stands.

    Raises:
        ConversionError: it cannot be moved there; what stood there stands again.
    """
    replaced = work / "replaced"
    try:
        if output.exists():
            output.replace(replaced)
        finished.replace(output)
    except OSError as error:
        if replaced.exists():
            replaced.replace(output)
        raise ConversionError([f"the result cannot be moved to {output}: {error}"]) from None
