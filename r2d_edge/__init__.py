"""r2d-edge: a label and its rationale for a clinical note, offline.

Decision support for clinicians, not a medical device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Decision", "__version__", "load"]

if TYPE_CHECKING:
    from r2d_edge.decide import load
    from r2d_edge.decision import Decision


def __getattr__(name: str) -> object:
    # Importing the package must cost next to nothing; what it offers is imported when used.
    if name == "load":
        from r2d_edge.decide import load

        return load
    if name == "Decision":
        from r2d_edge.decision import Decision

        return Decision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
