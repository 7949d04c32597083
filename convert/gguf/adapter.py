"""A LoRA adapter beside its base: PEFT's matrices as a GGUF adapter that llama.cpp adds while it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from convert.errors import ConversionError
from convert.gguf.architectures import ARCHITECTURES, rotary_order, tensor_names
from convert.gguf.files import finish, rounded
from convert.lora import FOLDER, Lora, named_base, read_chain
from convert.merge import ADAPTER_CONFIG, load_network, locate_base


@dataclass(frozen=True)
class Base:
    """A base model: a checkpoint's folder, or a GGUF file in one."""

    name: str
    folder: Path
    gguf_file: str | None

    @property
    def path(self) -> Path:
        """The folder, or the file."""
        return self.folder if self.gguf_file is None else self.folder / self.gguf_file


def find(checkpoint: Path, base: str | None, reasons: list[str]) -> tuple[Base | None, list[Lora]]:
    """A checkpoint's base and what was trained on top of it, the last adapter first.

    Args:
        checkpoint: a folder as training writes it, with merged weights and the adapter in `adapter/`.
        base: a checkpoint folder, a .gguf file or `package:NAME`; default: what the adapter itself names. Adapters
            of checkpoints that lie between the two (stage 1's) are found by what each names as its base.
        reasons: gets every reason why they cannot be told apart.
    """
    adapter = checkpoint / FOLDER
    wanted = base or named_base(adapter)
    if not wanted and (adapter / ADAPTER_CONFIG).is_file():
        reasons.append(f"{adapter} names no base: say which with --base")
    found = _find_base(wanted, reasons) if wanted else None
    ends = () if found is None else (found.folder.resolve(), found.path.resolve())
    return found, read_chain(adapter, reasons, ends=ends)


def _find_base(base: str, reasons: list[str]) -> Base | None:
    folder, gguf_file = locate_base(base, reasons)
    if folder is None:
        return None
    if gguf_file is None and not (folder / "config.json").is_file():
        # A model that transformers read from a GGUF file remembers the folder alone.
        files = sorted(folder.glob("*.gguf"))
        if len(files) != 1:
            reasons.append(f"{base} holds neither a config.json nor one .gguf file: name the base with --base")
            return None
        gguf_file = files[0].name
    name = base if base.startswith("package:") else (gguf_file or folder.resolve().name)  # never a machine's path
    return Base(name, folder, gguf_file)


def load_base(base: Base, config: Any) -> Any:
    """The base's network in float32.

    Args:
        config: the checkpoint's configuration; the base must be of its shape.

    Raises:
        ConversionError: it cannot be read, or has another shape than the checkpoint.
    """
    try:
        model = load_network(base.folder, base.gguf_file)
    except ConversionError as error:
        raise ConversionError(error.reasons) from None
    check_shape(model.config, config)
    return model


def check_shape(base: Any, config: Any) -> None:
    """Whether a base is of its checkpoint's shape.

    Raises:
        ConversionError: it is not.
    """
    names = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    other = [name for name in names if getattr(base, name) != getattr(config, name)]
    if other:
        said = ", ".join(f"{name} {getattr(base, name)} for {getattr(config, name)}" for name in other)
        raise ConversionError([f"the base is not of the checkpoint's shape: {said}"])


def write_adapter(path: Path, config: Any, loras: Sequence[Lora], quantization: str, *, reorder: bool) -> int:
    """Writes adapters as one GGUF adapter of their summed ranks.

    Args:
        path: the file to write.
        config: the model's configuration.
        loras: what is added to the base.
        quantization: the base's type; beside `F32` the matrices are float32, else float16.
        reorder: whether the base's query and key rows are in llama.cpp's rotary order.

    Returns:
        The rank.

    Raises:
        ConversionError: a matrix has no place in the model.
    """
    names = tensor_names(config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    modules = sorted({module for lora in loras for module in lora.a})
    ranks = [sum(len(lora.a[module]) for lora in loras if module in lora.a) for module in modules]
    # llama.cpp scales by alpha over the matrix's own rank: with alpha so chosen the first adapter's numbers stay.
    rank = max(ranks)
    alpha = loras[0].scale * rank
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, own in zip(modules, ranks, strict=True):
        held = [lora for lora in loras if module in lora.a]
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None or any(module not in lora.b for lora in held):
            raise ConversionError([f"the adapter's {module} has no place in GGUF"])
        try:
            a = np.concatenate([lora.a[module] for lora in held])
            b = np.concatenate([lora.b[module] * np.float32(lora.scale * own / alpha) for lora in held], axis=1)
        except ValueError:
            raise ConversionError([f"the adapters' {module} are not of one shape"]) from None
        if reorder:
            b = rotary_order(f"{module}.weight", b, config)
        writer.add_tensor(f"{name}.lora_a", rounded(a, quantization))
        writer.add_tensor(f"{name}.lora_b", rounded(b, quantization))
    finish(writer)
    return rank
