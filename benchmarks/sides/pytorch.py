"""transformers: the full-size reference in PyTorch, on the processor or an NVIDIA GPU."""

from __future__ import annotations

import torch
import transformers

from benchmarks.sides.generating import GeneratingSide


def open_side(path: str, compute_type: str, threads: int, device: str = "cpu") -> GeneratingSide:
    """Loads a checkpoint.

    Args:
        path: the checkpoint's folder.
        compute_type: `float32` or `bfloat16`, for weights and arithmetic.
        threads: of PyTorch.
        device: `cpu` or `cuda`.
    """
    torch.set_num_threads(threads)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        path, dtype=getattr(torch, compute_type), local_files_only=True, use_safetensors=True
    )
    about = {
        "engine": "transformers",
        "version": f"{transformers.__version__}, torch {torch.__version__}",
        "device": device,
        "compute_type": compute_type,
        "threads": torch.get_num_threads(),
        "isa": torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability(),
    }
    return GeneratingSide(model.to(device).eval(), about)
