"""The errors a caller may want to tell apart. Messages name what was wrong, never a note's text."""

from __future__ import annotations


class R2DError(Exception):
    """Anything this package raises on purpose; the command line prints it and exits with 1."""


class BundleError(R2DError):
    """A bundle was refused before any engine opened it (exit code 3)."""


class InputError(R2DError):
    """An input cannot be read as asked: the file, the format or a row (exit code 1)."""


class EngineError(R2DError):
    """An engine is missing, cannot run here, or failed (exit code 1)."""
