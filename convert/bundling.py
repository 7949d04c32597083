"""From a checkpoint to a proven bundle, put in place whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.compact import compact_json
from convert.errors import ConversionError
from convert.extras import ConversionOptions, manifest_extra, plain_card, read_extras
from convert.golden import GoldenRow, write_rows
from convert.output import check_output, put_in_place, workspace
from convert.parity import Parity, prove
from r2d_edge.bundle import CARD, GOLDEN, MANIFEST, TOKENIZER, Manifest, pack, seal
from r2d_edge.casing import CASING


@dataclass(frozen=True)
class ConversionResult:
    """A bundle in its place.

    Attributes:
        size: bytes of all its files.
        extra: what the export says of itself, as real bits per weight; also in the manifest.
    """

    output: Path
    name: str
    version: str
    compute_type: str
    size: int
    digest: str
    parity: Parity
    engine: str = "ctranslate2"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {
            "output": str(self.output),
            "name": self.name,
            "version": self.version,
            "engine": self.engine,
            "compute_type": self.compute_type,
            "bytes": self.size,
            "sha256": self.digest,
            "parity": self.parity.to_json(),
            **self.extra,
        }


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        compute_type: for the manifest, and for the bound of the proof.
        corrections: what was put right on the way.
        extra: what the manifest is to say of it.
    """

    compute_type: str
    corrections: Set[str]
    extra: Mapping[str, Any] = field(default_factory=dict)


class Export(Protocol):
    """A way from a checkpoint to an engine's files.

    Attributes:
        engine: as the manifest names it.
        packages: whose versions the provenance states.
        sources: what is read beside the checkpoint, and must outlive the writing.
    """

    engine: str
    packages: tuple[str, ...]
    sources: Sequence[Path]

    def refusals(self, checkpoint_folder: Path, compute_type: str) -> list[str]:
        """Every reason against it that the checkpoint's reader does not know."""
        ...

    def write(self, checkpoint: Checkpoint, target: Path, work: Path, options: ConversionOptions) -> Exported:
        """Writes the engine's files to the new folder `target`; `work` is for what is needed on the way.

        Raises:
            ConversionError: it cannot be done.
        """
        ...


def convert_to_ctranslate2(
    checkpoint_folder: Path,
    output: Path,
    options: ConversionOptions | None = None,
    *,
    progress: Callable[[str], None] = lambda step: None,
    corrections: Set[str] | None = None,
) -> ConversionResult:
    """Exports a checkpoint to CTranslate2, proves the export and writes the bundle.

    Args:
        checkpoint_folder: a transformers checkpoint with safetensors and tokenizer.json.
        output: where the bundle goes: a folder, or one file with `as_zip`.
        options: what may be told.
        progress: told of each step.
        corrections: which of `ct2.CORRECTIONS` to apply (default: all); fewer only to show what each is for.

    Raises:
        ConversionError: with every reason why the checkpoint cannot be converted as asked.
        ParityError: the export does not compute what the checkpoint computes. Nothing is written.
    """
    return convert(checkpoint_folder, output, options or ConversionOptions(), _CTranslate2(corrections), progress)


def convert_to_gguf(
    checkpoint_folder: Path,
    output: Path,
    options: ConversionOptions | None = None,
    *,
    keep_adapter: bool = False,
    base: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
    corrections: Set[str] | None = None,
) -> ConversionResult:
    """Exports a checkpoint to GGUF for llama.cpp, proves the export and writes the bundle.

    Args:
        checkpoint_folder: a transformers checkpoint with safetensors and tokenizer.json, of T5's or Llama's family.
        output: where the bundle goes: a folder, or one file with `as_zip`.
        options: what may be told; `quantization` is one of `gguf.files.QUANTIZATIONS` (default: Q8_0), or `as-is`
            for a base that is a GGUF file already.
        keep_adapter: export the base and, beside it, the checkpoint's adapter; else the merged weights.
        base: the base, where the adapter's own configuration does not lead to it: a checkpoint folder, a .gguf file
            or `package:NAME` for the one .gguf file of an installed package.
        progress: told of each step.
        corrections: which of `gguf.architectures.CORRECTIONS` to apply (default: those the model needs); fewer only
            to show what each is for.

    Raises:
        ConversionError: with every reason why the checkpoint cannot be converted as asked.
        ParityError: the export does not compute what the checkpoint computes. Nothing is written.
    """
    from convert.gguf.export import GgufExport

    options = options or ConversionOptions(quantization="Q8_0")
    export = GgufExport(checkpoint_folder, keep_adapter, base, corrections, progress)
    return convert(checkpoint_folder, output, options, export, progress)


class _CTranslate2:
    """The export that `convert.ct2` writes."""

    engine = "ctranslate2"
    packages: tuple[str, ...] = ("ctranslate2",)
    sources: Sequence[Path] = ()

    def __init__(self, corrections: Set[str] | None) -> None:
        self._corrections = corrections

    def refusals(self, checkpoint_folder: Path, compute_type: str) -> list[str]:
        from convert import ct2

        return ct2.check_compute_type(compute_type, model_type_of(checkpoint_folder))

    def write(self, checkpoint: Checkpoint, target: Path, work: Path, options: ConversionOptions) -> Exported:
        from convert import ct2

        corrections = frozenset(ct2.CORRECTIONS) if self._corrections is None else self._corrections
        ct2.export(checkpoint, target, options.quantization, corrections)
        return Exported(options.quantization, corrections)


def convert(
    checkpoint_folder: Path,
    output: Path,
    options: ConversionOptions,
    export: Export,
    progress: Callable[[str], None] = lambda step: None,
) -> ConversionResult:
    """Exports a checkpoint, proves the export with the runtime's own engine and writes the bundle.

    Raises:
        ConversionError: with every reason why the checkpoint cannot be converted as asked.
        ParityError: the export does not compute what the checkpoint computes. Nothing is written.
    """
    sources = [checkpoint_folder, *export.sources]
    reasons = check_output(output, sources, what="bundle", replaceable=_is_replaceable, force=options.force)
    reasons += export.refusals(checkpoint_folder, options.quantization)
    extras = read_extras(checkpoint_folder, options, reasons)
    checkpoint = None
    try:
        checkpoint = read_checkpoint(checkpoint_folder, options.task)
    except ConversionError as error:
        reasons += error.reasons
    if reasons or checkpoint is None or extras is None:
        raise ConversionError(reasons)

    name = options.name or checkpoint_folder.resolve().name
    with workspace(output) as work:
        draft = work / "bundle"
        draft.mkdir()
        progress(f"exporting as {options.quantization}")
        exported = export.write(checkpoint, draft / "model", work, replace(options, name=name))
        compact_json(checkpoint_folder / TOKENIZER, draft / TOKENIZER)
        if (checkpoint_folder / CASING).is_file():
            shutil.copyfile(checkpoint_folder / CASING, draft / CASING)
        manifest = Manifest(
            name=name,
            version=options.version,
            task=checkpoint.task,
            engine=export.engine,
            compute_type=exported.compute_type,
            files={},
            calibration=extras.calibration,
            decoding=options.decoding,
        )
        progress(f"proving on {len(extras.rows)} golden rows")
        parity = _prove_draft(checkpoint, draft, manifest, extras.rows, options)
        write_rows(draft / GOLDEN, extras.rows, checkpoint.task.labels.labels, parity.golden)
        extra = manifest_extra(checkpoint, options, extras, parity, exported.corrections, export.packages)
        extra.update(exported.extra)
        card = extras.card if extras.card is not None else plain_card(manifest, extra)
        (draft / CARD).write_bytes(card.encode("utf-8"))
        progress("sealing")
        bundle = seal(draft, replace(manifest, extra=extra))
        size = sum(path.stat().st_size for path in draft.rglob("*") if path.is_file())
        finished = draft
        if options.as_zip:
            finished = work / "bundle.zip"
            pack(bundle, finished)
        put_in_place(finished, output, work)
    return ConversionResult(
        output=output,
        name=name,
        version=options.version,
        compute_type=exported.compute_type,
        size=size,
        digest=bundle.digest,
        parity=parity,
        engine=export.engine,
        extra=exported.extra,
    )


def _prove_draft(
    checkpoint: Checkpoint, draft: Path, manifest: Manifest, rows: list[GoldenRow], options: ConversionOptions
) -> Parity:
    """Opens the draft with the runtime's own engine and proves it."""
    from convert.ct2 import GPU_COMPUTE_TYPES
    from r2d_edge.engines import EngineOptions, open_engine
    from r2d_edge.task import PromptEncoder

    for placeholder in (GOLDEN, CARD):
        (draft / placeholder).write_bytes(b"")
    bundle = seal(draft, manifest)
    encoder = PromptEncoder.from_file(bundle.path(TOKENIZER), checkpoint.task)
    # Read again: the export may have changed the tensors it was given.
    model = load_model(checkpoint)
    device = "cuda" if manifest.compute_type in GPU_COMPUTE_TYPES else "cpu"
    engine = open_engine(bundle, encoder, EngineOptions(device=device))
    try:
        return prove(
            model,
            checkpoint.start_id,
            engine,
            encoder,
            rows,
            compute_type=manifest.compute_type,
            bound=options.bound_for(manifest.compute_type),
        )
    finally:
        # An engine that maps its file into memory holds it open; Windows renames no such file.
        close = getattr(engine, "close", None)
        if close is not None:
            close()
        (draft / MANIFEST).unlink()


def _is_replaceable(path: Path) -> bool:
    if path.is_dir():
        return (path / MANIFEST).is_file() or not any(path.iterdir())
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return MANIFEST in archive.namelist()


def model_type_of(checkpoint: Path) -> str | None:
    """What a checkpoint's configuration calls its architecture; None where there is none to read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        model_type = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("model_type")
        return None if model_type is None else str(model_type)
    return None
