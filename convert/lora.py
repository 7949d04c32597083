"""Plain LoRA adapters as PEFT writes them, read for what is not merged."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from r2d_edge.hashing import file_sha256

FloatArray = npt.NDArray[np.float32]

# Where a checkpoint's adapter lies.
FOLDER = "adapter"
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


def read_chain(
    folder: Path, reasons: list[str], *, earlier: Sequence[Path] = (), ends: Collection[Path] = ()
) -> list[Lora]:
    """An adapter and those that were merged below it, the last one first.

    Args:
        folder: the adapter. The one below is that of the checkpoint that its configuration names as its base.
        reasons: gets every reason why one of them cannot be read.
        earlier: adapters that are not found so.
        ends: resolved paths of the base: an adapter of its own is no part of the chain.
    """
    found: list[Lora] = []
    seen: set[Path] = set()
    pending = [folder, *earlier]
    while pending:
        current = pending.pop(0)
        if current.resolve() in seen:
            continue
        seen.add(current.resolve())
        lora = read_lora(current, reasons)
        if lora is not None:
            found.append(lora)
        named = named_base(current)
        if named and Path(named).resolve() not in ends and (Path(named) / FOLDER / ADAPTER_CONFIG).is_file():
            pending.append(Path(named) / FOLDER)
    return found


def named_base(folder: Path) -> str | None:
    """What an adapter's configuration names as its base; None where it names none or cannot be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        named = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        return named if isinstance(named, str) else None
    return None


def read_lora(folder: Path, reasons: list[str]) -> Lora | None:
    """An adapter's matrices; None with the reason where it is no plain LoRA of blocks' layers."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        sha256 = file_sha256(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reasons.append(f"{folder} is not an adapter as PEFT writes it: {type(error).__name__}: {error}")
        return None
    odd = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        what = ", ".join(odd) or f"type {config.get('peft_type')!r} with bias {config.get('bias')!r}"
        reasons.append(f"{folder}: {what} is not supported: only plain LoRA can be kept apart from its base")
        return None
    halves: dict[str, dict[str, FloatArray]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        module, _, half = name.removesuffix(".weight").rpartition(".lora_")
        layer = module.removeprefix(_PREFIX)
        if half not in halves or layer == module or not {"layers", "block"} & set(layer.split(".")):
            reasons.append(f"{folder}: {name} belongs to no linear layer of a block")
            return None
        halves[half][layer] = tensor.astype(np.float32)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Lora(halves["A"], halves["B"], scale, sha256)
