"""What is compared: models, and the sides on which each of them runs.

A side that cannot be made or run keeps its reason and stands in every table as not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.making import Maker, Tell
from benchmarks.process import ROOT, SideError
from benchmarks.shapes import SHAPES
from benchmarks.sides import Wish
from r2d_edge.bundle import TOKENIZER, Bundle, open_bundle
from r2d_edge.catalogue import find_model
from r2d_edge.errors import R2DError
from r2d_edge.task import TASK_FILE, PromptEncoder, Task

DEFAULT_CACHE = ROOT / "runs" / "benchmarks"
FULL_SIZE = "transformers float32"
INT8 = "ctranslate2 int8"
TRIMMED = f"{INT8}, trimmed"
HALF_SIZE = "transformers bfloat16"
PRODUCT = "r2d-edge"
STUDENT = "ctranslate2 int8, student"
NO_CHECKPOINT = "no checkpoint: give the full-size model's folder with --checkpoint"
NO_ONNX = "no environment for it: make one as benchmarks/sides/onnx.py says and give its Python with --onnx-python"
NO_GPU = "no NVIDIA GPU here"
BATCH_SIZES = (8, 16, 32)  # of the full-size model, tried in turn: the best one counts


@dataclass
class SideSpec:
    """One side of a model.

    Attributes:
        name: as it is shown.
        kind: one of those `benchmarks.sides` knows.
        settings: what opens it, threads aside.
        encoder: makes its prompts.
        files: the network on disk.
        python: whose environment it needs; None: this one's.
        reason: why it is not run; None: it is.
        best_threads: whether it is also timed with every core.
        batch_sizes: for many notes, tried in turn, 0 being one call; empty: it is not asked.
        same_network: whether it computes, but for rounding, what the full-size model does, in the same token ids.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: PromptEncoder | None = None
    files: Sequence[Path] = ()
    python: str | None = None
    reason: str | None = None
    best_threads: bool = False
    batch_sizes: Sequence[int] = ()
    same_network: bool = True


@dataclass
class Model:
    """A model with its sides.

    Attributes:
        weights: `trained` or `random`.
        equal: how much every side writes where all must do the same work.
        natural: how the model writes by itself; None: it has not learned to stop.
        bundles: what `r2d-edge infer --model` is timed with, by side; None: the embedded model, its default.
        parity: for each bundle side what its conversion's proof found.
    """

    name: str
    weights: str
    equal: Wish
    natural: Wish | None
    sides: list[SideSpec]
    bundles: dict[str, str | None] = field(default_factory=dict)
    parity: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What the command line says about models.

    Attributes:
        cache: where what is made stays.
        tokens: of every rationale where all must do the same work.
        checkpoint: the embedded model at full size.
        student: a bundle of a smaller model that was distilled from it.
        onnx_python: a Python with optimum.
        gpu: whether there is one.
    """

    cache: Path = DEFAULT_CACHE
    tokens: int = 48
    checkpoint: Path | None = None
    student: Path | None = None
    onnx_python: str | None = None
    gpu: bool = False


def embedded(choice: Choice, tell: Tell) -> Model:
    """The embedded model beside the checkpoint it came from."""
    bundle = open_bundle(find_model(None))
    manifest = bundle.manifest
    maker = Maker(choice.cache / manifest.name, manifest.name, tell)
    sides = [*_full_size(choice, maker, choice.checkpoint), _bundle_side(INT8, lambda: bundle)]
    if (student := choice.student) is not None:
        sides.append(_bundle_side(STUDENT, lambda: open_bundle(student)))
    return Model(
        name=manifest.name,
        weights="trained",
        equal=Wish(choice.tokens),
        natural=Wish(
            tokens=manifest.task.limits.rationale,
            forced=False,
            repetition_penalty=manifest.decoding.repetition_penalty,
            no_repeat_ngram=manifest.decoding.no_repeat_ngram,
        ),
        sides=[*sides, _product_side(None, bundle)],
        bundles={INT8: None},
        parity={INT8: manifest.extra.get("parity", {})},
    )


def shaped(name: str, choice: Choice, tell: Tell, *, lean: bool = False) -> Model:
    """A T5 of a published shape with random weights.

    Args:
        name: one of `SHAPES`.
        choice: of the command line.
        tell: told of what takes long.
        lean: PyTorch and CTranslate2 alone, for shapes that take long.
    """
    maker = Maker(choice.cache / f"{name}-{choice.tokens}", name, tell)
    checkpoint = maker.checkpoint(SHAPES[name], choice.tokens)
    made: dict[str, Callable[[], Path]] = {INT8: lambda: checkpoint}
    if not lean:
        made |= {
            TRIMMED: lambda: maker.trimmed(checkpoint),
            f"{INT8}, decoder of 2": lambda: maker.shallow(checkpoint, 2),
            f"{TRIMMED}, decoder of 2": lambda: maker.shallow(maker.trimmed(checkpoint), 2),
            f"{TRIMMED}, decoder of 1": lambda: maker.shallow(maker.trimmed(checkpoint), 1),
        }
    bundles = {title: _bundle_side(title, partial(_int8_bundle, maker, make)) for title, make in made.items()}
    sides = [*_full_size(choice, maker, checkpoint, lean=lean), *bundles.values()]
    if not lean:
        sides += [_gguf_side(maker, checkpoint, quantization) for quantization in ("Q8_0", "Q4_K_M")]
    made_bundles = {title: _int8_bundle(maker, made[title]) for title, side in bundles.items() if side.reason is None}
    if INT8 in made_bundles:
        sides.append(_product_side(str(made_bundles[INT8].root), made_bundles[INT8]))
    return Model(
        name=name,
        weights="random",
        equal=Wish(choice.tokens),
        natural=None,
        sides=sides,
        bundles={title: str(made_bundles[title].root) for title in (INT8, TRIMMED) if title in made_bundles},
        parity={title: bundle.manifest.extra["parity"] for title, bundle in made_bundles.items()},
    )


def _full_size(choice: Choice, maker: Maker, checkpoint: Path | None, *, lean: bool = False) -> list[SideSpec]:
    """The sides that are made of the unquantized checkpoint."""

    def transformers(compute_type: str, device: str = "cpu") -> SideSpec:
        folder = _given(checkpoint)
        settings = {"path": str(folder), "compute_type": compute_type, "device": device}
        return SideSpec("", "transformers", settings, _encoder(folder), [folder / "model.safetensors"])

    def float32(device: str = "cpu", compute_type: str = "default") -> SideSpec:
        side = _of_bundle(open_bundle(maker.bundle(_given(checkpoint), "float32")))
        side.settings |= {"device": device, "compute_type": compute_type}
        return side

    def onnx() -> SideSpec:
        folder = _given(checkpoint)
        if choice.onnx_python is None:
            raise SideError(NO_ONNX)
        made = maker.onnx(folder, choice.onnx_python)
        files = sorted(made.glob("*.onnx"))
        return SideSpec("", "onnxruntime", {"path": str(made)}, _encoder(folder), files, python=choice.onnx_python)

    def on_gpu(make: Callable[[], SideSpec]) -> SideSpec:
        if not choice.gpu:
            raise SideError(NO_GPU)
        return make()

    sides = [
        _attempt(FULL_SIZE, lambda: transformers("float32")),
        _attempt(HALF_SIZE, lambda: transformers("bfloat16")),
        *([] if lean else [_attempt("onnxruntime int8", onnx)]),
        _attempt("ctranslate2 float32", float32),
        _attempt("transformers bfloat16, CUDA", lambda: on_gpu(lambda: transformers("bfloat16", "cuda"))),
        _attempt("ctranslate2 bfloat16, CUDA", lambda: on_gpu(lambda: float32("cuda", "bfloat16"))),
    ]
    full, half = sides[:2]
    full.best_threads, full.batch_sizes = True, BATCH_SIZES
    half.batch_sizes = BATCH_SIZES[1:2]
    return sides


def _bundle_side(title: str, bundle: Callable[[], Bundle]) -> SideSpec:
    side = _attempt(title, lambda: _of_bundle(bundle()))
    if title == INT8:
        side.best_threads, side.batch_sizes = True, (0,)
    side.same_network = title == INT8
    return side


def _int8_bundle(maker: Maker, checkpoint: Callable[[], Path]) -> Bundle:
    return open_bundle(maker.bundle(checkpoint(), "int8"))


def _of_bundle(bundle: Bundle) -> SideSpec:
    """A CTranslate2 bundle's network by itself."""
    folder = bundle.root / "model"
    encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), bundle.manifest.task)
    settings = {"path": str(folder), "compute_type": "default"}
    return SideSpec("", "ctranslate2", settings, encoder, [folder / "model.bin"])


def _gguf_side(maker: Maker, checkpoint: Path, quantization: str) -> SideSpec:
    def make() -> SideSpec:
        path = maker.bundle(checkpoint, quantization, engine="gguf") / "model" / "model.gguf"
        settings = {"path": str(path), "checkpoint": str(checkpoint)}
        return SideSpec("", "llama.cpp", settings, _encoder(checkpoint), [path])

    return _attempt(f"llama.cpp {quantization}", make)


def _product_side(path: str | None, bundle: Bundle) -> SideSpec:
    encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), bundle.manifest.task)
    files = [bundle.root / name for name in bundle.manifest.files]
    return SideSpec(PRODUCT, "r2d-edge", {"path": path}, encoder, files, batch_sizes=(0,))


def _attempt(title: str, make: Callable[[], SideSpec]) -> SideSpec:
    """What `make` gives under its name, or a side with the reason why there is none."""
    try:
        side = make()
    except (SideError, R2DError) as error:
        return SideSpec(title, "", reason=str(error))
    side.name = title
    return side


def _given(checkpoint: Path | None) -> Path:
    if checkpoint is None:
        raise SideError(NO_CHECKPOINT)
    if not (checkpoint / "model.safetensors").is_file():
        raise SideError(f"{checkpoint} holds no model.safetensors")
    return checkpoint


def _encoder(checkpoint: Path) -> PromptEncoder:
    task = Task.from_json(json.loads((checkpoint / TASK_FILE).read_text(encoding="utf-8")))
    return PromptEncoder.from_file(checkpoint / TOKENIZER, task)
