"""Base models by name: a folder, a .gguf file, or `package:NAME` for the one that an installed PyPI package holds."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path

from r2d_edge.errors import R2DError

PACKAGE = "package:"
_GGUF = ".gguf"


class BaseModelError(R2DError):
    """A base model is not where its name says (exit code 1)."""


def locate(name: str, *, local: bool = False) -> tuple[str, str | None]:
    """Where a base model lies: a folder, and the file in it if it is a GGUF.

    Args:
        name: a checkpoint folder, a .gguf file, `package:NAME`, or any other name, which is taken for a hub's and
            given back as the folder.
        local: whether a name that is neither a folder nor a file here is refused.

    Raises:
        BaseModelError: there is no such package, it holds no or several .gguf files, or nothing local has this name.
    """
    if name.startswith(PACKAGE):
        folders = package_folders(name.removeprefix(PACKAGE))
        if folders is None:
            raise BaseModelError(f"{name}: the package is not installed")
        files = sorted(file for folder in folders for file in folder.glob(f"*{_GGUF}"))
        if len(files) != 1:
            raise BaseModelError(f"{name}: the package holds {len(files)} {_GGUF} files, not one")
        return str(files[0].parent), files[0].name
    path = Path(name)
    is_file = path.suffix == _GGUF and not path.is_dir()
    if local and not (path.is_file() if is_file else path.is_dir()):
        raise BaseModelError(f"{name} is neither a checkpoint folder nor a {_GGUF} file nor {PACKAGE}NAME")
    return (str(path.parent), path.name) if is_file else (name, None)


def package_folders(name: str) -> list[Path] | None:
    """The folders of an installed package, which is not imported; None if there is no such package.

    Args:
        name: as pip or as an import statement writes it.
    """
    for module in (name, re.sub(r"[-.]", "_", name)):
        with contextlib.suppress(ImportError, ValueError):
            if spec := importlib.util.find_spec(module):
                return [Path(folder) for folder in spec.submodule_search_locations or ()]
    return None
