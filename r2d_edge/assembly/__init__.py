"""Models that come in parts: an adapter of ours for a base model that is had elsewhere.

`parts` reads what is shipped, `base` finds the base model's file, `llama` reads it, `adapter` holds what is folded
into its weights, `network` writes the result for the engine, and `store` keeps it for the next time. Reading the base
model asks for the gguf library; nothing here asks for torch.
"""

from __future__ import annotations

from pathlib import Path

from r2d_edge.errors import R2DError

ASSEMBLY = "assembly.json"


class AssemblyError(R2DError):
    """A model cannot be assembled here: something is missing or cannot be written (exit code 1)."""


def is_parts(path: Path) -> bool:
    """Whether a folder holds a model in parts."""
    return (path / ASSEMBLY).is_file()
