"""The GGUF export as bundling asks for it: a model, merged or a base with its adapter beside it."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

from convert.bundling import Exported, model_type_of
from convert.checkpoint import Checkpoint, load_model
from convert.errors import ConversionError
from convert.extras import ConversionOptions
from convert.gguf.adapter import Base, find, load_base, write_adapter
from convert.gguf.architectures import corrections_for, unsupported
from convert.gguf.files import QUANTIZATIONS, file_type, measure, quantize, write_model
from convert.lora import Lora
from r2d_edge.hashing import file_sha256

MODEL = "model.gguf"
ADAPTER = "adapter.gguf"
AS_IS = "as-is"
# What needs no llama.cpp to be written; it is needed for the proof all the same.
_PLAIN = ("F32", "F16", "Q8_0")


class GgufExport:
    """Writes `model.gguf` and, where the adapter is kept apart, `adapter.gguf`.

    Args:
        checkpoint_folder: what is exported.
        keep_adapter: whether its adapter stays apart from its base.
        base: the base; None: what the adapter names.
        corrections: None: those the model needs.
        progress: told of what the weights became.
    """

    engine = "llama.cpp"
    packages: tuple[str, ...] = ("gguf", "llama-cpp-python")

    def __init__(
        self,
        checkpoint_folder: Path,
        keep_adapter: bool,
        base: str | None,
        corrections: Set[str] | None,
        progress: Callable[[str], None],
    ) -> None:
        self._corrections = corrections
        self._progress = progress
        self._base: Base | None = None
        self._loras: list[Lora] = []
        self._reasons: list[str] = []
        if keep_adapter:
            self._base, self._loras = find(checkpoint_folder, base, self._reasons)
        elif base is not None:
            self._reasons.append("a base is for an adapter that is kept apart: --base goes with --keep-adapter")
        self.sources: Sequence[Path] = () if self._base is None else (self._base.path,)

    def refusals(self, checkpoint_folder: Path, compute_type: str) -> list[str]:
        reasons = []
        if compute_type == AS_IS:
            if self._base is None or self._base.gguf_file is None:
                reasons.append(f"{AS_IS} is for a base that is a .gguf file, with its adapter kept apart")
        elif compute_type not in QUANTIZATIONS:
            known = ", ".join((*QUANTIZATIONS, AS_IS))
            reasons.append(f"quantization {compute_type!r} is not supported; supported: {known}")
        if importlib.util.find_spec("llama_cpp") is None:
            reasons.append(
                "llama-cpp-python is not installed, which quantizes and proves: pip install 'r2d-edge[gguf]'"
            )
        reasons += unsupported(model_type_of(checkpoint_folder), _config(checkpoint_folder))
        return reasons + self._reasons

    def write(self, checkpoint: Checkpoint, target: Path, work: Path, options: ConversionOptions) -> Exported:
        target.mkdir()
        needed = corrections_for(checkpoint.config)
        corrections = needed if self._corrections is None else needed & self._corrections
        path, name, compute_type = target / MODEL, options.name or checkpoint.folder.name, options.quantization
        asked: str | None = compute_type
        if compute_type == AS_IS and self._base is not None:
            shutil.copyfile(self._base.path, path)
            compute_type, asked = file_type(path), None
        else:
            model = load_model(checkpoint) if self._base is None else load_base(self._base, checkpoint.config)
            if compute_type in _PLAIN:
                write_model(path, checkpoint, model, compute_type, corrections, name)
            else:
                whole = work / "float32.gguf"
                write_model(whole, checkpoint, model, "F32", corrections, name)
                quantize(whole, path, compute_type)
                whole.unlink()
        weights = measure(path, asked)
        self._progress(weights.said())
        extra: dict[str, Any] = {"weights": weights.to_json()}
        if self._base is not None:
            reorder = "llama-rotary-order" in corrections
            rank = write_adapter(target / ADAPTER, checkpoint.config, self._loras, compute_type, reorder=reorder)
            extra["adapter"] = self._adapter(rank)
        return Exported(compute_type, corrections, extra)

    def _adapter(self, rank: int) -> dict[str, Any]:
        if self._base is None:
            raise ConversionError(["there is no base"])
        said: dict[str, Any] = {"base": self._base.name}
        if self._base.gguf_file is not None:
            said["base_sha256"] = file_sha256(self._base.path)
        return {**said, "rank": rank, "sha256": [lora.sha256 for lora in self._loras]}


def _config(folder: Path) -> Any | None:
    """A checkpoint's configuration; None where it cannot be read, which its reader then says."""
    import transformers

    with contextlib.suppress(Exception):  # transformers' configuration checks raise whatever they like
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return None
