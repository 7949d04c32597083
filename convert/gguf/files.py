"""GGUF files: written from a model, quantized by llama.cpp, and measured."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import ConversionError
from convert.gguf.architectures import ARCHITECTURES, tensors, write_metadata
from convert.gguf.vocabulary import write_vocabulary

# What each type is called in a file; the mixtures hold tensors of several types.
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
QUANTIZATIONS = tuple(FILE_TYPES)
# What is written without llama.cpp.
_PLAIN = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
}
# Looked up by distance, a few rows in all: llama.cpp keeps them whole too.
_NEVER_ROUNDED = "attn_rel_b.weight"
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which llama-cpp-python gives no name
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Fallback:
    """Tensors of one name in all layers, whose rows the wanted type's blocks do not divide."""

    tensor: str
    row: int
    type: str
    count: int


@dataclass(frozen=True)
class Weights:
    """What a file's tensors really are.

    Attributes:
        bits_per_weight: all their bytes, times eight, by all their numbers.
        tensors: how many there are of each type.
        fell_back: those of another type than was asked for, because of the length of their rows.
    """

    bits_per_weight: float
    tensors: dict[str, int]
    fell_back: tuple[Fallback, ...]

    def to_json(self) -> dict[str, Any]:
        """For the manifest and a pipe."""
        return {
            "bits_per_weight": round(self.bits_per_weight, 3),
            "tensors": self.tensors,
            "fell_back": [asdict(fallback) for fallback in self.fell_back],
        }

    def said(self) -> str:
        """One line for the person who waits."""
        line = f"{self.bits_per_weight:.2f} bits per weight"
        if not self.fell_back:
            return line
        count = sum(fallback.count for fallback in self.fell_back)
        rows = ", ".join(map(str, sorted({fallback.row for fallback in self.fell_back})))
        kinds = ", ".join(sorted({fallback.type for fallback in self.fell_back}))
        return f"{line}; {count} tensors are {kinds} because their rows of {rows} do not fill whole blocks"


def write_model(
    path: Path, checkpoint: Checkpoint, model: Any, quantization: str, corrections: Set[str], name: str
) -> None:
    """Writes a model as GGUF.

    Args:
        path: the file to write.
        checkpoint: where the model comes from, for its vocabulary and task.
        model: its network, float32; or another of the same shape (a base without its adapter).
        quantization: `F32`, `F16` or `Q8_0`.
        corrections: which of `architectures.CORRECTIONS` to apply.
        name: what the file says the model is called.

    Raises:
        ConversionError: a weight has no place in GGUF.
    """
    arch = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[model.config.model_type]]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_metadata(writer, model.config, checkpoint.task.limits)
    write_vocabulary(writer, checkpoint)
    for tensor, array in tensors(model, corrections):
        kind = _tensor_type(tensor, array.shape, quantization)
        writer.add_tensor(tensor, gguf.quants.quantize(array, kind), raw_dtype=kind)
    finish(writer)


def finish(writer: Any) -> None:
    """Writes what was added to a `gguf.GGUFWriter`."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _tensor_type(name: str, shape: tuple[int, ...], quantization: str) -> gguf.GGMLQuantizationType:
    if len(shape) < 2 or name.endswith(_NEVER_ROUNDED):
        return gguf.GGMLQuantizationType.F32
    kind = _PLAIN[quantization]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def quantize(source: Path, target: Path, quantization: str, threads: int = 0) -> None:
    """Quantizes a float32 file with llama.cpp.

    Args:
        quantization: one of `QUANTIZATIONS`.
        threads: 0: as many as there are cores.

    Raises:
        ConversionError: llama.cpp refuses, with what it said.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(FILE_TYPES[quantization])
    parameters.nthread = threads
    said: list[str] = []

    def listen(level: int, text: bytes, _: Any) -> None:
        if level == _LOG_ERROR:
            said.append(text.decode("utf-8", "replace").strip())

    listener = llama_cpp.llama_log_callback(listen)  # kept: the library holds a bare pointer
    before, user = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user))
    llama_cpp.llama_log_set(listener, None)
    try:
        code = llama_cpp.llama_model_quantize(
            str(source).encode("utf-8"), str(target).encode("utf-8"), ctypes.byref(parameters)
        )
    finally:
        llama_cpp.llama_log_set(before, user)
    if code != 0:
        raise ConversionError([f"llama.cpp cannot quantize to {quantization}: {' '.join(said) or f'code {code}'}"])
    if not target.is_file():  # Windows: it names the file by the system's code page, where it reads UTF-8
        raise ConversionError([f"llama.cpp wrote to another name than {target.name}: use a path of ASCII letters"])


def measure(path: Path, quantization: str | None = None) -> Weights:
    """Reads what a file's tensors are.

    Args:
        quantization: what was asked for; None: nothing was, so nothing fell back.
    """
    reader = gguf.GGUFReader(path)
    size = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    fell_back: Counter[tuple[str, int, str]] = Counter()
    block = _block(quantization)
    for tensor in reader.tensors:
        # GGUF names a matrix's row length first.
        row = int(tensor.shape[0])
        if len(tensor.shape) > 1 and row % block and not tensor.name.endswith(_NEVER_ROUNDED):
            fell_back[_LAYER.sub(".*.", tensor.name), row, tensor.tensor_type.name] += 1
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    return Weights(
        8 * size / count,
        dict(sorted(types.items())),
        tuple(Fallback(*key, number) for key, number in sorted(fell_back.items())),
    )


def _block(quantization: str | None) -> int:
    """How many numbers of a row share a block of this type; a row must be a multiple of it."""
    if quantization is None:
        return 1
    if quantization in _PLAIN:
        return int(gguf.GGML_QUANT_SIZES[_PLAIN[quantization]][0])
    return int(gguf.QK_K)


def file_type(path: Path) -> str:
    """The type a GGUF file says it is of, as `Q4_1`.

    Raises:
        ConversionError: the file says none, or one that is not known.
    """
    field = gguf.GGUFReader(path).get_field(gguf.Keys.General.FILE_TYPE)
    try:
        name = str(gguf.LlamaFileType(int(field.contents())).name)
    except (AttributeError, TypeError, ValueError):
        raise ConversionError([f"{path.name} does not say of what type its weights are"]) from None
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


def rounded(array: Any, quantization: str) -> Any:
    """An adapter's matrix in the precision that suits its base: float32 beside `F32`, else float16."""
    return np.ascontiguousarray(array, dtype=np.float32 if quantization == "F32" else np.float16)
