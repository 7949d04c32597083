"""Plain LoRA adapters as PEFT writes them, read for what is not merged."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS

FloatArray = npt.NDArray[np.float32]

_PREFIX = "base_model.model."
# What PEFT can do beyond `scale · B A`, by the names in its configuration.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)


@dataclass(frozen=True)
class Lora:
    """One adapter: `a` [rank, in] and `b` [out, rank] by transformers' module names; their product times `scale`."""

    a: Mapping[str, FloatArray]
    b: Mapping[str, FloatArray]
    scale: float
    sha256: str


def read_lora(folder: Path, reasons: list[str]) -> tuple[dict[str, Any], Lora | None]:
    """An adapter's configuration and matrices; None with the reason where it is no plain LoRA of blocks' layers."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        sha256 = hashlib.sha256((folder / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reasons.append(f"{folder} is not an adapter as PEFT writes it: {type(error).__name__}: {error}")
        return {}, None
    odd = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        what = ", ".join(odd) or f"type {config.get('peft_type')!r} with bias {config.get('bias')!r}"
        reasons.append(f"{folder}: {what} is not supported: only plain LoRA can be kept apart from its base")
        return config, None
    halves: dict[str, dict[str, FloatArray]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        module, _, half = name.removesuffix(".weight").rpartition(".lora_")
        layer = module.removeprefix(_PREFIX)
        if half not in halves or layer == module or not {"layers", "block"} & set(layer.split(".")):
            reasons.append(f"{folder}: {name} belongs to no linear layer of a block")
            return config, None
        halves[half][layer] = tensor.astype(np.float32)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return config, Lora(halves["A"], halves["B"], scale, sha256)
