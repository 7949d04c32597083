"""Loading and saving checkpoints: weights, tokenizer, task contract, provenance, casing."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2d_edge.base_models import locate
from r2d_edge.casing import CASING, Caser
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE, PromptEncoder, Task
from train import lora
from train.files import describe_file
from train.recipe import RecipeError, StageRecipe

if TYPE_CHECKING:
    import torch


def load_model(name: str, *, decoder_only: bool = False, attention: str = "auto", **config: Any) -> Any:
    """Loads a language model, safetensors or GGUF only, no remote code.

    Args:
        name: a folder, a hub name, a .gguf file, or `package:NAME` (see `r2d_edge.base_models`).
        decoder_only: whether it is a decoder-only model.
        attention: transformers' attention implementation; "auto" takes eager on a CPU.
        config: overrides of the model's configuration (dropout and the like), and its dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from r2d_edge.engines.transformers import forget_quantization

    if attention == "auto":
        attention = "sdpa" if torch.cuda.is_available() else "eager"
    folder, file = locate(name)
    model = (AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM).from_pretrained(
        folder,
        **({"gguf_file": file} if file else {"use_safetensors": True}),
        trust_remote_code=False,
        attn_implementation=attention,
        **config,
    )
    if file:
        forget_quantization(model)
    return model


def load_tokenizer(name: str) -> Any:
    """Loads a checkpoint's fast tokenizer; `name` as in `load_model`."""
    from transformers import AutoTokenizer

    folder, file = locate(name)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **({"gguf_file": file} if file else {}))


def load_for_training(recipe: StageRecipe) -> tuple[Any, Any, PromptEncoder]:
    """The recipe's model, its transformers tokenizer and the prompt encoder over the same vocabulary."""
    import torch
    from tokenizers import Tokenizer

    # Whatever type the weights are stored in, what learns is kept in float32 (autocast computes in less).
    settings: dict[str, Any] = {"dtype": torch.float32}
    if recipe.template is None:
        settings["dropout_rate" if _is_t5(recipe.checkpoint) else "dropout"] = recipe.dropout
    if recipe.lora_rank and torch.cuda.is_available():
        # Frozen weights need no float32 copy. On a CPU, though, bfloat16 weights make everything around the matrix
        # products three times slower, and autocast does not.
        settings["dtype"] = precision(recipe.bf16) or torch.float32
    model = load_model(
        recipe.checkpoint, decoder_only=recipe.template is not None, attention=recipe.attention, **settings
    )
    if recipe.lora_rank:
        model = lora.add_adapter(model, recipe)
        if recipe.gradient_checkpointing:
            model.enable_input_require_grads()
    tokenizer = load_tokenizer(recipe.checkpoint)
    positions = getattr(model.config, "max_position_embeddings", None)
    longest = max(recipe.max_input, recipe.max_rationale)
    if recipe.template is not None:
        longest = recipe.max_input + recipe.max_rationale
    if positions is not None and longest > positions:
        raise RecipeError(f"the model has {positions} positions, the recipe asks for {longest}: lower max_input")
    encoder = PromptEncoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), recipe.task)
    return model, tokenizer, encoder


def _is_t5(name: str) -> bool:
    from transformers import AutoConfig

    return "t5" in AutoConfig.from_pretrained(locate(name)[0]).model_type


def save_checkpoint(
    output: Path, model: Any, tokenizer: Any, *, task: Task, provenance: Mapping[str, Any], rationales: Iterable[str]
) -> None:
    """Writes a trained checkpoint with all that conversion needs to know.

    A model with an adapter is written merged, and the adapter by itself to `adapter/`.

    Args:
        rationales: training rationales; an uncased tokenizer's lexicon of spellings is learned from them.
    """
    output.mkdir(parents=True, exist_ok=True)
    if lora.has_adapter(model):
        model.save_pretrained(output / "adapter")
        model = lora.merged(model)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_json(output / TASK_FILE, task.to_json())
    write_json(output / PROVENANCE_FILE, provenance)
    backend = tokenizer.backend_tokenizer
    if backend.encode("A", add_special_tokens=False).ids == backend.encode("a", add_special_tokens=False).ids:
        Caser.learn(rationales).save(output / CASING)


def provenance(
    method: str, recipe: StageRecipe, *, rows: int, steps: int, seconds: float, **more: Any
) -> dict[str, Any]:
    """Where a checkpoint comes from: method, data with hashes, seed, steps, versions, commit, and its parent's."""
    return {
        "method": method,
        "recipe": {
            key: value
            for key, value in asdict(recipe).items()
            if key not in ("train", "validation", "output", "checkpoint", "adapter")
        },
        "train": [describe_file(path) for path in recipe.train],
        "validation": [describe_file(path) for path in recipe.validation.values()],
        "rows": rows,
        "steps": steps,
        "seconds": round(seconds),
        "device": _device(),
        "commit": git_commit(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")}
        | {"python": platform.python_version()},
        **more,
        **({} if recipe.adapter is None else {"adapter_from": parent_provenance(recipe.adapter.parent)}),
        "from": parent_provenance(recipe.checkpoint),
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def parent_provenance(checkpoint: str | Path) -> Any:
    """What the checkpoint that training starts from says of itself, or its name."""
    file = Path(checkpoint) / PROVENANCE_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else Path(checkpoint).name


def git_commit() -> str | None:
    """The commit this code is at, with '+' after it if the tree was changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes readable JSON."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def precision(bf16: bool | None) -> torch.dtype | None:
    """bfloat16 where asked for or, with None, where the hardware multiplies in it; else None (float32)."""
    import torch

    if bf16 is None:
        if torch.cuda.is_available():
            bf16 = torch.cuda.is_bf16_supported()
        else:
            bf16 = bool(torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if bf16 else None
