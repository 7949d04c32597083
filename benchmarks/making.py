"""Making what sides need (checkpoints of a shape, conversions), once, in a cache folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.notes import CORPUS, corpus_rows, corpus_texts
from benchmarks.process import run_tool
from benchmarks.shapes import Shape, make_checkpoint

PROOF_NOTES = 2  # on which a conversion is proven here, and a cut vocabulary

Tell = Callable[[str], None]
Parts = Sequence[str | Path]


class Maker:
    """Makes things in one folder; what is there already is kept.

    Every method gives the path of what it made and raises `SideError` where its command fails.

    Args:
        folder: where what is made stays.
        name: of the bundles that are made.
        tell: told of what takes long.
    """

    def __init__(self, folder: Path, name: str, tell: Tell) -> None:
        self._folder = folder
        self._name = name
        self._tell = tell
        folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, shape: Shape, tokens: int) -> Path:
        """A random checkpoint that writes rationales of so many tokens."""
        return self._make("checkpoint", lambda draft: make_checkpoint(draft, shape, corpus_texts(), tokens=tokens))

    def bundle(self, checkpoint: Path, quantization: str, *, engine: str = "ctranslate2") -> Path:
        """A checkpoint's bundle for an engine, `ctranslate2` or `gguf`."""
        told: Parts = ["--quantization", quantization, "--golden", self._proof_notes(), "--name", self._name]
        return self._convert(f"{checkpoint.name}-{engine}-{quantization}", [engine, checkpoint, *told])

    def trimmed(self, checkpoint: Path) -> Path:
        """A checkpoint with the vocabulary that the corpus uses."""
        corpus: Parts = ["--corpus", CORPUS / "train.jsonl", "--unseen", self._proof_notes()]
        return self._convert(f"{checkpoint.name}-trimmed", ["trim-vocabulary", checkpoint, *corpus])

    def shallow(self, checkpoint: Path, layers: int) -> Path:
        """A checkpoint with fewer decoder layers."""
        return self._convert(
            f"{checkpoint.name}-decoder-{layers}", ["shallow", checkpoint, "--decoder-layers", str(layers)]
        )

    def onnx(self, checkpoint: Path, python: str) -> Path:
        """A checkpoint's networks for ONNX Runtime, made in another environment."""
        command: Parts = [python, "-m", "benchmarks.sides.onnx", checkpoint]
        return self._make(f"{checkpoint.name}-onnx", lambda draft: _run([*command, draft]))

    def _proof_notes(self) -> Path:
        path = self._folder / "proof.jsonl"
        rows = [json.dumps({"text": row["text"]}) for row in corpus_rows("validation")[:PROOF_NOTES]]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")
        return path

    def _convert(self, name: str, command: Parts) -> Path:
        return self._make(name, lambda draft: _run([sys.executable, "-m", "convert", *command, "-o", draft]))

    def _make(self, name: str, make: Callable[[Path], object]) -> Path:
        output = self._folder / name
        if not output.exists():
            self._tell(f"making {output}")
            draft = output.with_name(f"{name}.draft")
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.replace(output)
        return output


def _run(command: Parts) -> None:
    run_tool([str(part) for part in command], threads=1)
