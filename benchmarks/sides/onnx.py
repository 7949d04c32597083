"""ONNX Runtime through optimum, in an environment of its own.

`python -m benchmarks.sides.onnx CHECKPOINT OUT`, run there, exports a checkpoint (encoder, decoder, decoder with
past) and quantizes it dynamically to int8, weights by channel.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM  # type: ignore[import-not-found,unused-ignore]

from benchmarks.sides.generating import GeneratingSide

# Three networks instead of optimum's merged decoder: the quantizer does not look into the merged one's branches.
PARTS = ("encoder_model", "decoder_model", "decoder_with_past_model")


def open_side(path: str, threads: int) -> GeneratingSide:
    """Loads what `export` wrote."""
    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    files = {f"{part.removesuffix('_model')}_file_name": f"{part}_quantized.onnx" for part in PARTS}
    model = ORTModelForSeq2SeqLM.from_pretrained(
        path, use_merged=False, local_files_only=True, session_options=options, **files
    )
    about = {
        "engine": "onnxruntime",
        "version": f"{onnxruntime.__version__}, optimum {_version('optimum')}, transformers {_version('transformers')}",
        "device": "cpu",
        "compute_type": "int8",
        "threads": threads,
        "isa": None,  # it does not tell
    }
    return GeneratingSide(model, about)


def export(checkpoint: Path, output: Path) -> None:
    """Writes the three networks of a checkpoint in int8."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found,unused-ignore]
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig  # type: ignore[import-not-found,unused-ignore]

    config = AutoQuantizationConfig.avx512_vnni if _has_vnni() else AutoQuantizationConfig.avx2
    with tempfile.TemporaryDirectory() as full:
        main_export(
            str(checkpoint),
            output=full,
            task="text2text-generation-with-past",
            no_post_process=True,
            do_validation=False,
        )
        for part in PARTS:
            quantizer = ORTQuantizer.from_pretrained(full, file_name=f"{part}.onnx")
            quantizer.quantize(save_dir=output, quantization_config=config(is_static=False, per_channel=True))


def _has_vnni() -> bool:
    try:
        return "avx512_vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
