"""A LoRA adapter folded into its base model, with the proof that nothing else changed.

The merged checkpoint is read back from disk and compared with the base as PEFT runs it with the adapter
beside it: their next-token log-probabilities must agree on every position of the golden rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.errors import ConversionError, ParityError
from convert.golden import GoldenRow, sample_rows
from convert.output import check_output, put_in_place, workspace
from convert.rewriting import is_checkpoint
from r2d_edge.base_models import BaseModelError, locate
from r2d_edge.bundle import GOLDEN, TOKENIZER
from r2d_edge.casing import CASING
from r2d_edge.hashing import file_sha256
from r2d_edge.task import PROVENANCE_FILE, TASK_FILE

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What travels beside the weights, taken from the first place that has it.
SIDE_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    TASK_FILE,
    CASING,
    GOLDEN,
)
BOUND = 1e-3  # nats; float32 and another order of summation alone
TOP_K = 10
MAX_TOKENS = 48
ANSWER_TOKENS = 8
HEADING = "the adapter cannot be merged"


@dataclass(frozen=True)
class MergeResult:
    """A merged checkpoint in its place.

    Attributes:
        size: bytes of all its files.
        rows: golden rows that were compared.
        measured: the greatest difference of next-token log-probabilities between adapter and merged, in nats.
        effect: the greatest difference that the adapter makes to its base, in nats.
    """

    output: Path
    size: int
    rows: int
    measured: float
    effect: float

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {**asdict(self), "output": str(self.output)}


def merge_lora(
    base: str,
    adapter: Path,
    output: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> MergeResult:
    """Merges a LoRA adapter into its base model and writes the checkpoint, in float32.

    Args:
        base: a checkpoint folder, a .gguf file, or `package:NAME` for the one .gguf file of an installed package.
        adapter: a folder as PEFT writes it, safetensors only. The task, the casing and the tokenizer come from it,
            from the checkpoint it is the `adapter/` of, or from the base, whichever has them first.
        output: the folder to write.
        force: replace a checkpoint that stands there.
        progress: told of each step.

    Raises:
        ConversionError: with the reasons why they cannot be merged.
        ParityError: the merged model does not compute what base and adapter compute. Nothing is written.
    """
    reasons: list[str] = []
    folder, gguf_file = locate_base(base, reasons)
    _check_adapter(adapter, reasons)
    sources = [adapter, *([folder] if folder is not None else [])]
    reasons += check_output(output, sources, what="checkpoint", replaceable=is_checkpoint, force=force)
    if reasons or folder is None:
        raise ConversionError(reasons, HEADING)

    import peft

    progress("reading the base")
    model = load_network(folder, gguf_file)
    with workspace(output) as work:
        draft = work / "checkpoint"
        draft.mkdir()
        _copy_side_files(draft, adapter, folder, gguf_file)
        rows = _tokenized(draft / TOKENIZER)
        before = _log_probabilities(model, rows)
        progress("merging")
        adapted = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
        _check_names(adapted, adapter)
        expected = _log_probabilities(adapted, rows)
        effect, _ = _difference(before, expected)
        if effect == 0:
            raise ConversionError([f"{adapter} changes nothing: it was not trained"], HEADING)
        adapted.merge_and_unload().save_pretrained(draft)
        del model, adapted
        _write_provenance(draft, base, adapter)
        progress(f"comparing on {len(rows)} rows")
        measured, row = _difference(expected, _log_probabilities(load_network(draft, None), rows))
        if not measured <= BOUND:  # so written that a NaN fails
            unequal = "the merged model is not the equal of its base with the adapter"
            raise ParityError(unequal, "next-token log-probabilities", row, measured, BOUND)
        size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
        put_in_place(draft, output, work)
    return MergeResult(output, size, len(rows), float(f"{measured:.4g}"), float(f"{effect:.4g}"))


def locate_base(base: str, reasons: list[str]) -> tuple[Path | None, str | None]:
    """The folder of a base on this machine and, if it is a GGUF, the file in it; or the reason why there is none."""
    try:
        folder, gguf_file = locate(base, local=True)
    except BaseModelError as error:
        reasons.append(str(error))
        return None, None
    return Path(folder), gguf_file


def _check_adapter(adapter: Path, reasons: list[str]) -> None:
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError):
        reasons.append(f"{adapter / ADAPTER_CONFIG} is missing or not an adapter's configuration")
        return
    if kind != "LORA":
        reasons.append(f"the adapter is of type {kind!r}: only LORA is merged")
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        reasons.append(f"{adapter / ADAPTER_WEIGHTS} is missing; pickled adapters are not read: they can run code")


def load_network(folder: Path, gguf_file: str | None) -> Any:
    """A language model in float32, in evaluation mode.

    Raises:
        ConversionError: it cannot be read, or not all its weights are there.
    """
    import torch
    import transformers

    from r2d_edge.engines.transformers import forget_quantization

    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    where |= {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **where)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        model, loading = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            **where,
            **({} if gguf_file else {"use_safetensors": True}),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConversionError([f"{gguf_file or folder} cannot be read: {error}"], HEADING) from None
    missing = sorted(loading["missing_keys"])
    if missing:
        reason = f"{len(missing)} weights are not in {gguf_file or folder}, for one {missing[0]}"
        raise ConversionError([reason], HEADING)
    if gguf_file:
        forget_quantization(model)
    return model.eval()


def _copy_side_files(draft: Path, adapter: Path, folder: Path, gguf_file: str | None) -> None:
    places = [*_with_adapter(adapter), *([folder] if gguf_file is None else [])]
    for name in SIDE_FILES:
        found = next((place / name for place in places if (place / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, draft / name)
    if (draft / TOKENIZER).is_file():
        return
    if gguf_file is None:
        raise ConversionError([f"{TOKENIZER} is neither with the adapter nor with the base"], HEADING)
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, local_files_only=True).save_pretrained(draft)


def _with_adapter(adapter: Path) -> list[Path]:
    """Where an adapter's side files lie: beside it, or in the checkpoint whose `adapter/` it is."""
    whole = adapter.resolve()
    return [whole, whole.parent] if whole.name == "adapter" else [whole]


def _check_names(adapted: Any, adapter: Path) -> None:
    """PEFT leaves weights it does not find at their beginnings, and drops those it has no place for."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="np") as file:
        found = set(file.keys())
    if wanted != found:
        odd = sorted(wanted ^ found)
        reason = f"{len(odd)} of the adapter's weights do not fit this base, for one {odd[0]}"
        raise ConversionError([reason], HEADING)


def _tokenized(tokenizer_file: Path) -> list[tuple[GoldenRow, list[int]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [(row, tokenizer.encode(row.text).ids[:MAX_TOKENS]) for row in sample_rows()]


def _log_probabilities(model: Any, rows: Sequence[tuple[GoldenRow, list[int]]]) -> dict[str, torch.Tensor]:
    """Next-token log-probabilities [positions, vocabulary] for each row by its id."""
    import torch

    found = {}
    for row, ids in rows:
        inputs = {"input_ids": torch.tensor([ids])}
        if model.config.is_encoder_decoder:
            # Any answer serves: both models are given the same.
            inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id, *ids[:ANSWER_TOKENS]]])
        with torch.inference_mode():
            found[row.id] = model(**inputs, use_cache=False).logits[0].double().log_softmax(-1)
    return found


def _difference(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The greatest difference over the `TOP_K` likeliest tokens of every position, in nats, and its row."""
    worst = {}
    for row, wanted in expected.items():
        top = wanted.topk(min(TOP_K, wanted.shape[-1])).indices
        worst[row] = float((got[row].gather(1, top) - wanted.gather(1, top)).abs().max())
    unequal = next((row for row, value in worst.items() if value != value), None)
    row = unequal if unequal is not None else max(worst, key=worst.__getitem__)
    return worst[row], row


def _write_provenance(draft: Path, base: str, adapter: Path) -> None:
    provenance: dict[str, Any] = {}
    for place in reversed(_with_adapter(adapter)):
        if (place / PROVENANCE_FILE).is_file():
            provenance = json.loads((place / PROVENANCE_FILE).read_text(encoding="utf-8"))
    provenance["merge"] = {
        "base": base if base.startswith("package:") else Path(base).name,  # never a machine's path
        "adapter_sha256": file_sha256(adapter / ADAPTER_WEIGHTS),
        **{package: version(package) for package in ("peft", "torch", "transformers")},
    }
    text = json.dumps(provenance, indent=2, ensure_ascii=False) + "\n"
    (draft / PROVENANCE_FILE).write_text(text, encoding="utf-8")
