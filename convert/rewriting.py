"""A checkpoint written anew with some of its tensors changed: what such commands share.

Tensors are moved as they are stored, in their own type, so that what is kept is kept bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import Checkpoint
from r2d_edge import __version__
from r2d_edge.bundle import GOLDEN
from r2d_edge.casing import CASING
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
GENERATION = "generation_config.json"
CHAT_TEMPLATE = "chat_template.jinja"


def is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint's folder, or an empty one."""
    if not path.is_dir():
        return False
    return not any(path.iterdir()) or ((path / "config.json").is_file() and any(path.glob("*.safetensors")))


def read_tensors(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files by name, in the type it is stored in."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors |= load_file(path)
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes one weight file, as transformers reads it."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def parameters(tensors: Mapping[str, torch.Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(tensor.numel() for tensor in tensors.values())


def size_of(folder: Path, names: Sequence[str]) -> int:
    """Bytes of the named files, as far as they are there."""
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes readable JSON."""
    path.write_bytes((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def write_side_files(checkpoint: Checkpoint, draft: Path, step: str, facts: Mapping[str, Any]) -> None:
    """Writes what travels with the weights and depends on neither layers nor vocabulary.

    Args:
        step: what was done, as provenance names it.
        facts: what provenance says of it, beside the versions and the hashes of the weights it began with.
    """
    write_json(draft / TASK_FILE, checkpoint.task.to_json())
    for name in (CASING, GOLDEN, CHAT_TEMPLATE):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, draft / name)
    source = checkpoint.folder / PROVENANCE_FILE
    provenance = read_json(source) if source.is_file() else {}
    provenance[step] = {
        "from_sha256": checkpoint.weight_hashes(),
        **facts,
        "versions": {"r2d_edge": __version__} | {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(draft / PROVENANCE_FILE, provenance)


def next_logits(model: Any, start_id: int | None, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """A model's logits [1 + answer, vocabulary] before the answer and after each of its tokens.

    Args:
        start_id: the decoder's start token; None for a decoder-only model.
    """
    import torch

    with torch.inference_mode():
        if start_id is None:
            output = model(
                input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False, logits_to_keep=1 + len(answer)
            )
        else:
            decoder = torch.tensor([[start_id, *answer]])
            output = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=decoder, use_cache=False)
        result: torch.Tensor = output.logits[0].double()
    return result
