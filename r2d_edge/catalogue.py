"""The models there are by name: those that come whole, and those that are assembled on first use."""

from __future__ import annotations

from pathlib import Path

from r2d_edge.assembly import is_parts
from r2d_edge.bundle import Bundle, open_bundle
from r2d_edge.errors import BundleError

MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "triage-nano"
SHORT_NAMES = {"nano": "triage-nano", "small": "triage-small"}


def model_names() -> list[str]:
    """The names under which models come with this package."""
    return sorted(folder.name for folder in MODELS.glob("*") if folder.is_dir())


def find_model(name: str | Path | None = None) -> Path:
    """The path of a bundle: that of a model by its name (default: the embedded one), or as given.

    A name wins over a file of the same name, so that what a name means does not depend on the folder one stands in;
    `./name` is the file. A model that comes in parts is assembled if it is not yet.

    Raises:
        BundleError: there is no such model, or what there is was refused.
        AssemblyError: the model must be assembled first and cannot be.
    """
    path = _find(name)
    return open_model(path).root if is_parts(path) else path


def open_model(name: str | Path | None = None) -> Bundle:
    """Opens a model by name or path, checked whole; `find_model` says what is found and raised."""
    path = _find(name)
    if is_parts(path):
        from r2d_edge.assembly.store import open_assembled

        return open_assembled(path)
    return open_bundle(path)


def _find(name: str | Path | None) -> Path:
    wanted = DEFAULT_MODEL if name is None else name
    if isinstance(wanted, str):
        shipped = SHORT_NAMES.get(wanted, wanted)
        if shipped in model_names():
            return MODELS / shipped
    path = Path(wanted)
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}; models by name: {', '.join(model_names()) or 'none'}")
    return path
